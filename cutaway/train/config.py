"""A run as data: one frozen dataclass, read from YAML and written beside the result. No torch.

``read`` takes a file, or the name of a preset in ``train/presets``, and changes to it as a command line gives
them: ``--optimizer.learning-rate 3e-4``, ``--model.blocks.0.times=4``, and ``--lr`` for any optimizer.
An unknown option is a UserError that names the nearest one.
"""

from __future__ import annotations

import copy
import difflib
import math
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml

from cutaway.bounds import Bound, Bounded, Count, Decay, Inner, Natural, Positive
from cutaway.data.filters import Filters
from cutaway.data.sources import HUB, Source
from cutaway.errors import UserError, quoted
from cutaway.model.config import Decoder
from cutaway.model.config_dict import from_dict, to_dict
from cutaway.model.kinds import variant
from cutaway.store import yaml_files
from cutaway.train.flops import per_token
from cutaway.train.objectives import next_token
from cutaway.train.objectives.common.objective import Objective
from cutaway.train.optim import AdamW, Muon
from cutaway.train.schedule import WSD, Cosine, Linear
from cutaway.weights.load import RUN

PRESETS = Path(__file__).parent / "presets"
RATES = ("lr", "learning_rate")  # options that set the optimizer's
SYNONYMS = {  # what trl, peft and transformers call an entry
    "r": "rank",
    "lora_r": "rank",
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "max_iters": "steps",
    "batch": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "max_length": "context",
    "max_seq_len": "context",
    "max_seq_length": "context",
    "block_size": "context",
    "warmup": "warmup_steps",
    "grad_clip": "gradient_clip",
    "max_grad_norm": "gradient_clip",
    "eval_steps": "evaluate",
    "save_steps": "save",
    "logging_steps": "log",
    "gradient_checkpointing": "activation_checkpointing",
    "dataset": "data",
}
ELSEWHERE = {  # options that others have, and what does it here
    ("finetune", "lora"): "sft trains by LoRA unless --adapter.kind says otherwise",
    ("finetune", "qlora"): "--base-type packed leaves the base as it is in its file, beside LoRA",
    ("finetune", "full"): "--adapter null trains all weights",
}
NOVELS = "novels"  # the path of a source that means the six novels Cutaway knows how to fetch


@dataclass(frozen=True)
class DataConfig(Bounded):
    """What is read. ``tokenizer``: "bytes", "bpe:SIZE" (trained on the text), a file, or a model's name.

    ``validation_fraction``: the last part of each source, which is never trained on. ``workers``: processes
    that tokenise (None: one a core). ``ray`` has a Ray cluster clean and tokenise. ``folder`` keeps the
    tokens (None: in the run's folder).
    """

    sources: tuple[Source, ...]
    tokenizer: str = "bytes"
    filters: Filters = Filters()
    validation_fraction: Decay = 0.05
    workers: Count | None = None
    ray: bool = False
    folder: str | None = None


@dataclass(frozen=True)
class Intervals(Bounded):
    """How often, in steps, and how much. ``keep``: how many checkpoints stay. 0 means never.

    ``evaluate`` None is ten times a run.
    """

    log: Natural = 1
    evaluate: Natural | None = 100
    save: Natural = 100
    sample: Natural = 100
    keep_checkpoints: Natural = 2
    evaluate_sequences: Count = 64
    sample_tokens: Count = 60


@dataclass(frozen=True)
class TrainingConfig(Bounded):
    """One training run. A step trains on ``batch_size`` sequences of the model's context.

    ``micro_batch_size`` sequences pass the model at a time; a step accumulates their gradients, so that the
    result does not depend on the number of devices. ``gradient_clip`` bounds the gradient's norm. ``ema`` is
    the decay of an exponential moving average of the weights, which is then evaluated and exported.
    ``early_stopping``: after so many evaluations in a row above the lowest validation loss the run stops (0:
    never); the model is then that of the lowest.
    ``activation_checkpointing`` keeps each block's input and recomputes the rest in the backward pass
    (1604.06174). ``precision`` is that of matrix products: "auto" measures which is faster here, and run.yaml
    records the choice. ``compile`` "auto" uses torch.compile where there is a C++ compiler and the run is
    long enough to pay it back; run.yaml records that choice too. ``tensor_parallel`` devices hold each matrix
    together. ``git_diff`` stores what differs from the commit, which runs git.
    """

    replicated: ClassVar[bool] = False  # whether every process of several holds all weights
    verb: ClassVar[str] = "pretrain"  # the verb that trains it
    model: Decoder
    data: DataConfig
    steps: Count
    batch_size: Count
    micro_batch_size: Count
    objective: Objective = field(
        default=next_token.Config(), metadata={"variants": "cutaway.train.objectives"}
    )
    optimizer: AdamW | Muon = field(default=AdamW(), metadata={"variants": "cutaway.train.optim"})
    schedule: Cosine | Linear | WSD = field(default=Cosine(), metadata={"variants": "cutaway.train.schedule"})
    gradient_clip: Positive | None = 1.0
    ema: Inner | None = None
    early_stopping: Natural = 0
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    activation_checkpointing: bool = False
    compile: Literal["auto", "always", "never"] = "auto"
    device: str = "auto"
    threads: Annotated[int, Bound(1, 4096)] | None = None
    tensor_parallel: Count = 1
    seed: Annotated[int, Bound(0, 2**64 - 1)] = 0
    intervals: Intervals = Intervals()
    tensorboard: bool = False
    wandb: str | None = None
    prompts: tuple[str, ...] = ("",)
    git_diff: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.micro_batch_size:
            raise UserError(
                f"config.batch_size is {self.batch_size}; it must be a multiple of config.micro_batch_size, "
                f"{self.micro_batch_size}"
            )

    @property
    def width(self) -> int:
        """How many tokens a row has."""
        return self.model.context

    @property
    def frozen(self) -> bool:
        """Whether the model's own weights are not trained."""
        return False

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of a step for each token of a row that one document fills."""
        return per_token(self.model, self.width, self.frozen)

    @property
    def gradient_accumulation(self) -> int:
        """How many micro-batches make a step, over all devices."""
        return self.batch_size // self.micro_batch_size

    def share(self, devices: int) -> int:
        """How many of them each of so many devices reads; UserError where these would be uneven."""
        count, left = divmod(self.gradient_accumulation, devices)
        if left:
            raise UserError(
                f"config.batch_size: {self.batch_size} in micro-batches of {self.micro_batch_size} cannot be "
                f"split evenly over {devices} devices: change batch_size or micro_batch_size"
            )
        return count

    @property
    def evaluation_interval(self) -> int:
        """Steps between evaluations; 0: there are none."""
        chosen = self.intervals.evaluate
        return max(1, self.steps // 10) if chosen is None else chosen


Run = TypeVar("Run", bound=TrainingConfig)


def presets() -> list[str]:
    """The names of the runs that come with Cutaway."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_run_config(
    source: str | dict[str, Any], changes: Sequence[str] = (), kind: type[Run] = TrainingConfig
) -> Run:
    """The run that a YAML file, a preset or entries describe, with a command line's changes."""
    plain = _read(source) if isinstance(source, str) else source
    check_names(changes, plain, kind)
    data = without_other_kinds(entries(plain, changes), changes, kind)
    if isinstance(model := data.get("model"), dict) and "kind" not in model:
        model.setdefault("vocab", 0)  # 0: as many as the tokenizer has
    return from_dict(data, kind)


def entries(source: str | dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A YAML file's, a preset's or these entries, with a command line's changes."""
    data = _read(source) if isinstance(source, str) else copy.deepcopy(source)
    changed = _pairs(changes)
    for name, value in changed:
        for entry in _meant(data, name):
            _put(data, entry, value)
    if "batch_size" in (given := dict(changed)) and "micro_batch_size" not in given:
        size, part = given["batch_size"], data.get("micro_batch_size")
        if isinstance(size, int) and isinstance(part, int) and size > 0 and part > 0:
            data["micro_batch_size"] = math.gcd(size, part)
    return data


def without_other_kinds(data: dict[str, Any], changes: Sequence[str], kind: type[Any]) -> dict[str, Any]:
    """The entries but for those that a changed kind does not have: they were of the kind before it."""
    given = dict(_pairs(changes))
    homes = {f.name: f.metadata["variants"] for f in fields(kind) if "variants" in f.metadata}
    for part, home in homes.items():
        if f"{part}.kind" in given and isinstance(data.get(part), dict):
            chosen = variant(home, given[f"{part}.kind"], f"config.{part}")
            known = {"kind", *(f.name for f in fields(chosen))}
            own = {name.split(".")[1] for name in given if name.startswith(f"{part}.")}
            data[part] = {name: value for name, value in data[part].items() if name in known | own}
    return data


def _read(source: str) -> dict[str, Any]:
    """A YAML file's or a preset's entries."""
    if not is_there(source):
        if (PRESETS / "finetune" / f"{source}.yaml").is_file():
            text = (
                f"is a method of `cutaway finetune`: `cutaway finetune {source} DATA` trains a model further"
            )
            raise UserError(f"{source}: {text}")
        near = difflib.get_close_matches(source, presets(), n=1)
        instead = f"did you mean {near[0]}?" if near else f"presets are {', '.join(presets())}"
        raise UserError(f"{source}: is neither a file nor a preset: {instead}")
    path = PRESETS / f"{source}.yaml" if source in presets() else Path(source)
    path = path / RUN if (path / RUN).is_file() else path
    return yaml_files.parsed(path)


def is_there(source: str) -> bool:
    """Whether SOURCE is a preset, a YAML file or a run's folder."""
    return source in presets() or (Path(source) / RUN).is_file() or Path(source).is_file()


def names(changes: Sequence[str]) -> set[str]:
    """The entries that a command line changes, those without a value among them."""
    return {name.replace("-", "_") for name, _ in _options(changes)}


def _meant(data: dict[str, Any], name: str) -> list[str]:
    """The entries that an option sets: those of its name, and for the learning rate each optimizer's."""
    if name not in RATES:
        return [name]
    optimizer = data.setdefault("optimizer", {"kind": "adamw"})
    inner = ["optimizer.adamw.learning_rate"] if isinstance(optimizer, dict) and "adamw" in optimizer else []
    return ["optimizer.learning_rate", *inner]


def run_config_text(run: TrainingConfig) -> str:
    """The run as YAML, which reads back equal."""
    return yaml.dump(to_dict(run), Dumper=yaml_files.Dumper, sort_keys=False, allow_unicode=True)


def parted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options with their values, and the words before and between them: what is trained, and on what.

    UserError for more than two of them, or if the second is missing.
    """
    options, places = [], []
    left = list(words)
    while left:
        word = left.pop(0)
        (options if word.startswith("--") else places).append(word)
        if word.startswith("--") and "=" not in word and left and not left[0].startswith("--"):
            options.append(left.pop(0))
    absent = [
        place for place in places[1:] if not (place.startswith(HUB) or Path(place).expanduser().exists())
    ]
    if absent or len(places) > 2:
        wrong = absent[0] if absent else places[2]
        what = "there is no such file or folder of data" if absent else "is one file or folder too many"
        raise UserError(f"{wrong}: {what}; changes of the config are written --name.of.entry VALUE")
    return options, places


def _pairs(changes: Sequence[str]) -> list[tuple[str, Any]]:
    """``--name value`` and ``--name=value`` as names and what YAML makes of the values."""
    pairs = []
    for name, value in _options(changes):
        if value is None:
            raise UserError(f"--{name}: has no value: write --{name} VALUE")
        if "_" in name:
            raise UserError(f"--{name}: options are spelt with dashes: write --{name.replace('_', '-')}")
        pairs.append((name.replace("-", "_"), _value(value, name)))
    return pairs


def _options(changes: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Options as they are typed, each with its text; None where it has none."""
    words = list(changes)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise UserError(f"{quoted(word)}: write changes as --name.of.entry VALUE")
        name, given, value = word[2:].partition("=")
        if given:
            yield name, value
        else:
            yield name, words.pop(0) if words and not words[0].startswith("--") else None


def _value(text: str, name: str) -> Any:
    return yaml_files.value(text, f"--{name}")


def _put(data: Any, name: str, value: Any) -> None:
    """Sets an entry by its dotted name; entries that are not there yet are made."""
    *parents, last = name.split(".")
    for part in parents:
        data = _entry(data, part, name)
    if isinstance(data, list):
        data[_index(data, last, name)] = value
    else:
        data[last] = value


def _entry(data: Any, part: str, name: str) -> Any:
    found = data[_index(data, part, name)] if isinstance(data, list) else data.setdefault(part, {})
    if not isinstance(found, dict | list):
        raise UserError(f"--{name}: {part} is {quoted(found)}, which has no entries")
    return found


def _index(data: list[Any], part: str, name: str) -> int:
    if not part.isdecimal() or int(part) >= len(data):
        raise UserError(
            f"--{name}: index {part} is out of range: the list has {len(data)} items (0 to {len(data) - 1})"
        )
    return int(part)


# ---- options that there are not ----------------------------------------------------------------------------


def check_names(changes: Sequence[str], data: dict[str, Any], kind: type[TrainingConfig]) -> None:
    """UserError that names the nearest option for one that is no entry of ``kind``; ``data``: a file's."""
    for name in sorted(names(changes)):
        if name in RATES or _known(name.split("."), data, kind):
            continue
        option = f"--{name.replace('_', '-')}"
        near = _nearest(name, sorted({*_entries(kind), *_written(data)}))
        page = "docs/finetuning.md" if kind.verb == "finetune" else "docs/pretraining.md"
        mend = f"did you mean --{near.replace('_', '-')}?" if near else f"{page} lists them"
        raise UserError(
            f"There is no option {option} in `cutaway {kind.verb}`: {ELSEWHERE.get((kind.verb, name), mend)}"
        )


def may_be_unknown(changes: Sequence[str], data: dict[str, Any]) -> bool:
    """Whether an option is neither an entry that every run has nor one of these: its class must say."""
    known = {*RATES, *data, *(f.name for f in fields(TrainingConfig)), *_written(data)}
    return not names(changes) <= known


def _known(parts: Sequence[str], data: Any, cls: type) -> bool:
    """Whether a dotted name is an entry of this class; of a variant's entries its own class decides later."""
    first, *rest = parts
    found = {f.name: f for f in fields(cls)}.get(first)  # type: ignore[arg-type]
    if found is None:
        return False
    inner = _dataclasses(typing.get_type_hints(cls)[first])
    if not rest or "variants" in found.metadata or len(inner) != 1 or first == "model":
        return True
    return _known(rest, data, inner[0])


def _dataclasses(hint: Any) -> list[type]:
    """The dataclasses that a field may hold; none for a tuple, whose entries are numbered."""
    if typing.get_origin(hint) is tuple:
        return []
    return [each for each in (hint, *typing.get_args(hint)) if isinstance(each, type) and is_dataclass(each)]


def _entries(cls: type, before: str = "") -> Iterator[str]:
    """The dotted names of a class's entries."""
    hints = typing.get_type_hints(cls)
    for f in fields(cls):  # type: ignore[arg-type]
        inner = [] if f.name == "model" else _dataclasses(hints[f.name])
        if not inner:
            yield f"{before}{f.name}"
        for each in inner:
            yield from _entries(each, f"{before}{f.name}.")


def _written(data: dict[str, Any], before: str = "") -> Iterator[str]:
    """The dotted names of a file's entries."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _written(value, f"{before}{name}.")
        elif name != "kind":
            yield f"{before}{name}"


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """The entry with this last name or alias, or the one spelt most like it."""
    last = name.rpartition(".")[2]
    for meant in (last, SYNONYMS.get(last)):
        same = [each for each in known if each.rpartition(".")[2] == meant]
        if same:
            return min(same, key=len)
    near = difflib.get_close_matches(name, [*known, *RATES], n=1, cutoff=0.7)
    if near:
        return near[0]
    ends = {each.rpartition(".")[2]: each for each in reversed(known)}
    close = difflib.get_close_matches(last, ends, n=1, cutoff=0.7)
    return ends[close[0]] if close else None
