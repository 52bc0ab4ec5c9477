"""What is wrong with a stage's entries, or with what they ask of its model, before the first stage starts."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

from cutaway import store
from cutaway.data import rows
from cutaway.errors import UserError, quoted
from cutaway.evaluate.task import EvaluationTask
from cutaway.model.config import Decoder
from cutaway.model.config_dict import from_dict, to_dict
from cutaway.model.context import ContextExtension
from cutaway.pipeline import budget, named
from cutaway.pipeline.config import Pipeline
from cutaway.pipeline.data import TEMPLATE, DataRecipe
from cutaway.pipeline.verbs import VERBS
from cutaway.store import reading
from cutaway.tokenizer import Tokenizer, training
from cutaway.tokenizer.bpe import BYTES
from cutaway.tokenizer.word_counts import WordCounts
from cutaway.train import methods
from cutaway.train.config import TrainingConfig, read_run_config
from cutaway.weights import load

MADE_OF = {"finetune": "base", "quantize": "source", "convert": "source", "merge": "paths"}  # of a stage
ANSWER = {  # the most tokens of an answer to a task, where max_tokens does not say
    "file": EvaluationTask.max_tokens,
    "programs": 64,
    "reasoning_gym": 64,
    "bfcl": 192,
    "gsm8k": 320,
    "humaneval": 384,
}
CONTROL = re.compile(r"<\|[^<>|\s]+\|>|</?tool_call>")  # tokens that chat templates write around messages


# ---- a stage's own entries ---------------------------------------------------------------------------------


def entries(pipeline: Pipeline, name: str) -> None:
    """UserError for a stage that trains, or makes data, whose entries are wrong; it names the stage."""
    stage = pipeline[name]
    try:
        if stage.verb == "data":
            from_dict(stage.config, DataRecipe)
        elif stage.verb == "pretrain":
            _share(read_run_config(stage.config), pipeline.processes)
        else:
            _share(_finetuning(pipeline, name), pipeline.processes)
    except UserError as error:
        raise UserError(f"stages.{name}: {error}") from None


def _finetuning(pipeline: Pipeline, name: str) -> TrainingConfig:
    """A finetuning run on a model that an earlier stage will make, or on one that there is."""
    from cutaway.train.recipes.finetune import FinetuningConfig
    from cutaway.train.rewards_config import RewardsConfig

    found = copy.deepcopy(pipeline[name].config)
    objective = found.get("objective")
    kind = objective.get("kind") if isinstance(objective, dict) else "next_token"
    known = methods.learned()
    if not isinstance(kind, str) or kind not in known:
        raise UserError(
            f"config.objective.kind: there is no {quoted(kind)}; known: {', '.join(sorted(known))}"
        )
    base = str(found.get("base", methods.BASE))
    made = lineage(pipeline, name, base)
    for own in made:
        if own in pipeline.names and not VERBS[pipeline[own].verb].trains:
            raise UserError(f"config.base: {base}: the stage {own} makes no model that is trained further")
    model = _config(pipeline, [name, *made])
    if not isinstance(model, Decoder):
        raise UserError(f"config.base: {base} is not a decoder, and only decoders are finetuned")
    found["model"] = to_dict(model)
    return from_dict(found, RewardsConfig if known[kind].source == "task" else FinetuningConfig)


def _share(run: TrainingConfig, processes: int) -> None:
    """UserError for a batch that the pipeline's processes cannot share."""
    devices, left = divmod(processes, run.tensor_parallel)
    if left:
        raise UserError(
            f"config.tensor_parallel: {processes} processes cannot be grouped by {run.tensor_parallel}"
        )
    if devices > 1 and not run.batch_size:
        raise UserError(
            f"config.batch_size: is missing: {devices} processes share each batch, so write a multiple of "
            f"{devices * run.micro_batch_size}"
        )
    run.share(devices)


# ---- what is asked of its model ----------------------------------------------------------------------------


def models(pipeline: Pipeline) -> None:
    """UserError for a stage whose model, or vocabulary, cannot do what is asked of it.

    All that the stages name is there (``named.check``).
    """
    asked = {"tokenizer train": _vocabulary, "eval": _room_for_answers}
    asked |= dict.fromkeys(("quantize", "merge", "convert"), _text_of_its_own)
    for name, stage in pipeline.stages:
        try:
            if stage.verb in asked:
                asked[stage.verb](pipeline, name)
        except UserError as error:
            raise UserError(f"stages.{name}: {error}") from None


def _vocabulary(pipeline: Pipeline, name: str) -> None:
    """A vocabulary has room for its special tokens, and those of its chat template are among them."""
    config = pipeline[name].config
    kind, end = config.get("kind", "bpe"), config.get("end_of_text")
    special = list(named.texts(config.get("special")))
    files = [Path(file) for file in named.texts(config["files"])]
    if any(file.is_file() and WordCounts.is_file(file) for file in files):  # which bring their own
        return
    known = {*special, training.usual_end(kind, special) if end is None else end} - {"", None}
    least, size = len(BYTES) + len(known), config.get("size")
    if kind == "bpe" and config.get("level", "byte") == "byte" and isinstance(size, int) and size < least:
        raise UserError(f"config.size: is {size}; it must be {least} or more: bytes and special tokens")
    template = str(config.get("chat_template") or "")
    stage = template.partition("/")[0]
    if not template or (stage in pipeline.names and pipeline[stage].verb != "data"):
        return
    text = reading.text(TEMPLATE if stage in pipeline.names else Path(template))
    if lacking := [token for token in dict.fromkeys(CONTROL.findall(text)) if token not in known]:
        raise UserError(
            f"config.special: lacks {', '.join(lacking)}, which the chat template {template} writes: without "
            "them there these would be read as ordinary text"
        )


def _room_for_answers(pipeline: Pipeline, name: str) -> None:
    """The context of a model has room for the answers to its tasks."""
    config = pipeline[name].config
    for task in named.names(config["tasks"]):
        usual = _answer(task)
        most = _whole(config.get("max_tokens"), usual)
        for model in named.texts([config["model"], config.get("against")]) if usual else ():
            made = _config(pipeline, lineage(pipeline, name, model))
            if isinstance(made, Decoder) and most >= (context := _whole(config.get("context"), made.context)):
                raise UserError(
                    f"config.max_tokens: an answer to {task} may have {most} tokens, and the context of "
                    f"{model} holds {context}, the question among them: write fewer, as max_tokens: "
                    f"{context // 4}"
                )


def _whole(value: Any, usual: int) -> int:
    """A whole number, which may be written as a text; the usual one where none is given."""
    return int(value) if str(value).isdecimal() else usual


def _answer(task: str) -> int:
    """The most tokens of an answer to a task; 0 where none is written."""
    kind, _, path = task.partition(":")
    if Path(kind.removesuffix(".gz")).suffix in rows.TABLES:
        kind, path = "file", kind
    if kind == "file" and Path(path).is_absolute():
        _, row = next(rows.rows(path), ("", {}))
        return 0 if "choices" in row else ANSWER[kind]
    return ANSWER.get(kind, 0)


def _text_of_its_own(pipeline: Pipeline, name: str) -> None:
    """A model that is measured on a text of its own has a token to begin one by."""
    verb, config = pipeline[name].verb, pipeline[name].config
    measured = {
        "quantize": True,
        "merge": config.get("type") or not config.get("method"),
        "convert": config.get("attention"),
    }
    if not measured[verb] or config.get("text") or config.get("measure") is False:
        return
    model = next(named.texts(config[MADE_OF[verb]]))
    if not _begins(pipeline, lineage(pipeline, name, model)[-1]):
        raise UserError(
            f"config.text: is missing: the vocabulary of {model} has no token that begins a text, so the "
            "model writes none to be measured on: name one, or write measure: false"
        )


# ---- where a model comes from ------------------------------------------------------------------------------


def lineage(pipeline: Pipeline, name: str, model: str) -> list[str]:
    """What made a model that the stage ``name`` names: stages, the last one first, and behind them a model
    that there is, unless the first of them pretrains.
    """
    own = model.partition("/")[0]
    if own not in pipeline.names:
        return [model]
    if pipeline.names.index(own) >= pipeline.names.index(name):
        raise UserError(f"config.base: {model}: this stage comes later, or is the same: put it before")
    stage = pipeline[own]
    if stage.verb == "pretrain":
        return [own]
    if stage.verb not in MADE_OF:
        raise UserError(f"config.base: {model}: the stage {own} makes no model that is trained further")
    return [
        own,
        *lineage(pipeline, own, next(named.texts(stage.config.get(MADE_OF[stage.verb], methods.BASE)))),
    ]


def _config(pipeline: Pipeline, made: list[str]) -> Any:
    """The config of a model that was made so."""
    *stages, first = made
    if first in pipeline.names:
        config: Any = budget.pretraining(pipeline, first, pipeline[first].config["model"]).model
    else:
        config = load.read_checkpoint(store.resolve(first, pull=True)).config
    for name in reversed(stages):
        if extension := pipeline[name].config.get("context_extension"):
            config = from_dict(extension, ContextExtension, "config.context_extension").extended(config)
    return config


def _begins(pipeline: Pipeline, model: str) -> bool:
    """Whether the vocabulary of a model, the first of its lineage, has a token that begins a text."""
    if model not in pipeline.names:
        return load.read_checkpoint(store.resolve(model, pull=True)).tokenizer.bos is not None
    vocabulary = str(pipeline[model].config["data"].get("tokenizer", "bytes"))
    stage = vocabulary.partition("/")[0]
    if stage not in pipeline.names:
        own = vocabulary == "bytes" or vocabulary.startswith("bpe:")
        return own or Tokenizer.load(vocabulary).bos is not None
    if pipeline[stage].verb == "tokenizer train":
        return pipeline[stage].config.get("kind") == "wordpiece"
    return _begins(pipeline, lineage(pipeline, model, stage)[-1])
