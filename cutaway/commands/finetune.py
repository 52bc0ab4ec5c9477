"""`cutaway finetune`: from a base model and examples or comparisons to an adapter, or a whole model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cutaway.commands import console
from cutaway.commands.pretrain import continued, watched
from cutaway.data.conversations import Item, Labelled, Pair
from cutaway.errors import UserError, plural
from cutaway.extras import need
from cutaway.store.files import check_folder
from cutaway.train import config, methods
from cutaway.train import folder as run_folder
from cutaway.weights.load import RUN
from cutaway.weights.run_checkpoint import DRAFTS_FOR

if TYPE_CHECKING:
    from cutaway.train.recipes.finetune import FinetuningConfig
    from cutaway.train.rewards_config import RewardsConfig

SHOWN = 3  # examples that --check prints


Words = Annotated[str, Parameter(name="SOURCE", allow_leading_hyphen=True)]
Data = Annotated[Path | None, Parameter(help="Examples: JSON lines, JSON, CSV, parquet, text, or a folder.")]
Task = Annotated[
    str | None,
    Parameter(help="Of rewards: reasoning_gym:NAME; with --data file.py:function or reward_model:FOLDER."),
]
Model = Annotated[str | None, Parameter(help="The base model; without it the config's.")]
Output = Annotated[Path | None, Parameter(help="The run's folder; without it runs/NAME.")]
Epochs = Annotated[float | None, Parameter(help="How often each example is read; without it 3 times.")]
Steps = Annotated[int | None, Parameter(help="How many steps, in place of --epochs.")]
Rate = Annotated[
    float | None,
    Parameter(name=("--lr", "--learning-rate"), help="The learning rate; without it the method's."),
]
BatchSize = Annotated[
    int | None, Parameter(help="Rows a step, in which short examples lie side by side; without it 4.")
]
Seed = Annotated[
    int | None, Parameter(help="Decides the order, what is held out, and new weights; without it 0.")
]
Check = Annotated[
    bool, Parameter(help="Only say what the examples are, and show what is trained.", negative=())
]
Resume = Annotated[
    bool, Parameter(help="Continue a run: SOURCE, --output, or the last one in runs/.", negative=())
]
Draft = Annotated[
    bool,
    Parameter(
        help="With distill: train a head that drafts for --model on its own answers to the prompts.",
        negative=(),
    ),
]
CheckJson = Annotated[bool, Parameter(name="--json", help="With --check: print JSON.", negative=())]


def finetune(
    *words: Words,
    data: Data = None,
    task: Task = None,
    model: Model = None,
    output: Output = None,
    epochs: Epochs = None,
    steps: Steps = None,
    lr: Rate = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    check: Check = False,
    resume: Resume = False,
    draft: Draft = False,
    json: CheckJson = False,
) -> None:
    """Train a model further: SOURCE is a method (sft, dpo, grpo, ...), a YAML file, or a run's folder.

    The data follow the method: conversations (messages, ShareGPT), instructions (Alpaca), questions and
    answers, prompt and completion, or text. Methods that compare read chosen and rejected answers; kto reads
    completions with a label. A run reads each example --epochs times (3) and stops before that when the
    loss on the held-out 5% rises. Its folder holds the adapter as PEFT reads it, and opens in every other
    verb: `cutaway chat runs/sft`. Ctrl-C saves first; --resume continues.

    A task has questions and a program that scores answers: imitation trains on its own answers, grpo,
    dr_grpo, dapo, bnpo, rloo and reinforce on rewards, expert_iteration on answers that were right,
    on_policy_distill on a teacher's distribution over what was sampled.

    **Examples:**

    cutaway finetune sft talk.jsonl --check

    cutaway finetune sft talk.jsonl --output runs/talk

    cutaway finetune sft alpaca.csv --epochs 2 --lr 1e-4

    cutaway finetune dpo pairs.jsonl --model runs/talk --output runs/preferred

    cutaway finetune sft notes/ --model runs/book --adapter.rank 64 --steps 500

    cutaway finetune sft talk.jsonl --base-type packed

    cutaway finetune runs/talk --resume --steps 400

    cutaway finetune grpo --task reasoning_gym:chain_sum --model runs/talk --check

    cutaway finetune distill prompts.jsonl --draft --model smollm2 --output runs/draft

    :param words: A method, a YAML file, or with --resume a run's folder; then the data, and other changes to
        the config, written --name.of.entry VALUE, which docs/finetuning.md lists.
    """
    need("finetuning", "torch")
    if json and not check:
        raise UserError("--json goes with --check")
    changes, places = config.parted(words)
    source = places.pop(0) if places else None
    data = _examples(source, places, data, resume)
    if resume and (source is None or (source in methods.names() and data is None and task is None)):
        source = str(output or (run_folder.newest("finetune") if source is None else methods.last(source)))
        console.note(f"Continuing {source}.")
    assert source is not None
    _check_draft(draft, source, task, check)
    options = {"base": model, "data.path": data, "data.task": task, "epochs": epochs, "steps": steps}
    options |= {"learning-rate": lr, "batch-size": batch_size, "seed": seed}
    own = [f"--{name}={value}" for name, value in options.items() if value is not None]
    own += ["--data.options={}"] if task is not None else []
    changes = [*own, *changes]
    begun = (Path(source) / RUN).is_file()
    folder = output or (Path(source) if begun else Path("runs") / ("draft" if draft else Path(source).stem))
    if config.may_be_unknown(changes[len(own) :], methods.entries(source, ())):
        _check_names(source, changes, methods.learns_task(source, ()))
    sampled = methods.learns_task(source, changes)
    continues = resume and (folder / RUN).is_file()
    if not check:
        if begun or continues or draft:
            run_folder.check(folder, resume, "finetune")
        check_folder(folder)
    if draft:
        source, changes = _of_draft(changes, data, model, folder)
    if sampled:
        methods.check_task(methods.entries(source, changes))
    elif check or not continues:
        methods.examples(methods.entries(source, changes)).check()
    from cutaway.train.recipes import finetune as examples
    from cutaway.train.recipes import rewards

    recipe, read = (
        (rewards, rewards.read_rewards_config) if sampled else (examples, examples.read_finetuning_config)
    )
    run = read(source, changes)
    if check:
        _check_task(run, json) if isinstance(run, rewards.RewardsConfig) else _check(run, json)
        return
    run_folder.check(folder, resume, "finetune")
    _train(run, folder, recipe, resume)


def _check_draft(draft: bool, source: str, task: str | None, check: bool) -> None:
    """UserError where a draft is asked for that cannot be trained so."""
    if not draft:
        return
    if source != "distill":
        methods.check_source(source)
        if (Path(source) / DRAFTS_FOR).is_file():
            raise UserError(f"{source}: is a draft: `cutaway finetune {source} --resume` goes on")
        raise UserError(f"--draft goes with the method distill, not with {source}")
    if "RANK" in os.environ:
        raise UserError("--draft answers the prompts by one process: start it without torchrun")
    if task is not None:
        raise UserError("--draft reads prompts from a file: leave out --task")
    if check:
        raise UserError("--draft trains on answers that the model has yet to write: leave out --check")


def _of_draft(
    changes: Sequence[str], data: Path | None, model: str | None, folder: Path
) -> tuple[str, list[str]]:
    """The method that trains a head, and the changes with the untrained one, and answers for the prompts."""
    from cutaway.commands import finetune_draft
    from cutaway.train.recipes.finetune import read_finetuning_config

    teacher = finetune_draft.teacher(model)
    others = [each for each in changes if not each.startswith(("--base=", "--data.path="))]
    changes = [*finetune_draft.changes(teacher, folder), *others]
    seed = read_finetuning_config(finetune_draft.METHOD, changes).seed  # what is wrong is refused first
    finetune_draft.prepare(data, teacher, folder, seed)
    return finetune_draft.METHOD, changes


def _train(run: Any, folder: Path, recipe: Any, resume: bool) -> None:
    """The run to its end, by its processes; a draft is judged then."""
    from cutaway.commands import finetune_draft
    from cutaway.train import distributed
    from cutaway.train.run import train

    drafts = (folder / DRAFTS_FOR).is_file()
    if drafts:
        finetune_draft.check_model(folder)

    def after() -> str:
        return _after(run, folder)

    with distributed.joined(run) as parallel, watched(parallel.rank == 0, folder, after) as callback:
        train(run, folder, callback, recipe=recipe, resume=resume, parallel=parallel)
    if parallel.rank == 0 and drafts:
        finetune_draft.judge(folder)


def _examples(source: str | None, places: list[str], data: Path | None, resume: bool) -> Path | None:
    """The file or folder of examples; UserError for no method, one that there is not, or several files."""
    if source is not None:
        methods.check_source(source, places[0] if places else str(data or "DATA"))
    elif not resume:
        known = ", ".join(methods.names())
        raise UserError(f"name a method and its data: cutaway finetune sft talk.jsonl (methods: {known})")
    paths = [*map(Path, places), *([] if data is None else [data])]
    if len(paths) > 1:
        raise UserError(f"give one file or folder of examples, not {' and '.join(map(str, paths))}")
    return paths[0] if paths else None


def _check_names(source: str, changes: Sequence[str], sampled: bool) -> None:
    """UserError for an option that there is not."""
    from cutaway.train.recipes.finetune import FinetuningConfig
    from cutaway.train.rewards_config import RewardsConfig

    config.check_names(changes, methods.entries(source, ()), RewardsConfig if sampled else FinetuningConfig)


def _check(run: FinetuningConfig, as_json: bool) -> None:
    """What the examples are, and some of them with what is trained in colour."""
    from cutaway.train import examples
    from cutaway.train.recipes import finetune as recipe

    checkpoint = recipe.base(run)
    items, report = examples.prepare(run.data, run.objective, checkpoint, console.note)
    if as_json:
        console.print_json(asdict(report))
        return
    from rich.text import Text

    out = console.screen()
    fraction = report.trained_tokens / report.tokens
    out.print(
        f"{plural(report.examples, 'example')}, {plural(report.tokens, 'token')}; {report.trained_tokens:,} "
        f"are trained ({fraction:.0%}), shown in green:"
        if out.color_system
        else f"{plural(report.examples, 'example')}, {plural(report.tokens, 'token')}; "
        f"{report.trained_tokens:,} are trained ({fraction:.0%}), shown between [[ and ]]:"
    )
    for item in items[:SHOWN]:
        for name, example in zip(_names(item), item.documents, strict=True):
            text = Text(name, "bold")
            tokens = zip(example.ids.tolist(), example.trained.tolist(), strict=True)
            for trained, run_of in groupby(tokens, key=lambda token: token[1]):
                part = checkpoint.tokenizer.decode([id for id, _ in run_of])
                marked = f"[[{part}]]" if trained and not out.color_system else part
                text.append(marked, "bold green" if trained else "dim")
            out.print(text)
    for warning in report.warnings():
        out.print(f"Note: {warning}.", style="yellow", markup=False)


def _check_task(run: RewardsConfig, as_json: bool) -> None:
    """What a task asks, and what the model answers before training."""
    from cutaway.data.tasks import RIGHT
    from cutaway.train.recipes import rewards

    task, groups = rewards.check(run, console.note)
    rewards = [float(reward) for group in groups for reward in group.rewards]
    found = {
        "questions": len(task.train),
        "held_out": len(task.test),
        "left_out_shared": task.shared,
        "commonest_answer": task.floor(),
        "sampled": len(rewards),
        "reward": sum(rewards) / len(rewards),
        "accuracy": sum(reward >= RIGHT for reward in rewards) / len(rewards),
        "zero_variance": sum(group.even for group in groups) / len(groups),
    }
    if as_json:
        console.print_json(found)
        return
    out = console.screen(markup=False)
    out.print(
        f"{task.name}: {plural(len(task.train), 'question')} to train on, {found['held_out']:,} held out "
        f"({task.shared:,} left out, which training has); always giving the commonest answer is right for "
        f"{found['commonest_answer']:.1%}."
    )
    out.print(
        f"{plural(len(rewards), 'sampled answer')}: reward {found['reward']:.3f}, right "
        f"{found['accuracy']:.1%}; {found['zero_variance']:.0%} of the groups have equal rewards, "
        "which teach nothing."
    )
    for group in groups[:SHOWN]:
        out.print(f"\n{group.problem.question}", style="bold")
        for each, reward in zip(group.completions[:SHOWN], group.rewards, strict=False):
            out.print(f"  {reward:.2f}  {each.text!r}", style="green" if reward >= RIGHT else "dim")


def _after(run: FinetuningConfig, folder: Path) -> str:
    """What to type when a run has ended."""
    from cutaway.train import examples
    from cutaway.train.objectives import eagle3, reward_model
    from cutaway.train.recipes import finetune as recipe
    from cutaway.train.rewards_config import RewardsConfig

    if (folder / DRAFTS_FOR).is_file():
        return "It is tried on prompts that were held out."
    if isinstance(run.objective, eagle3.Config):
        return f"`cutaway chat {run.base} --draft {folder}` drafts with it."
    if isinstance(run.objective, reward_model.Config):
        return "It scores answers: docs/finetuning.md, A reward model, says how."
    if isinstance(run, RewardsConfig):
        talks = recipe.base(run).chat_template is not None
    else:
        talks = bool(examples.report(folder).get("conversations"))
    return f"`cutaway chat {folder}` talks with it." if talks else continued(folder)


def _names(item: Item) -> tuple[str, ...]:
    """What is printed before each of an item's documents."""
    if isinstance(item, Pair):
        return "chosen: ", "rejected: "
    return ("liked: " if item.label else "disliked: ",) if isinstance(item, Labelled) else ("",)
