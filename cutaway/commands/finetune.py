"""`cutaway finetune`: from a base model and examples to an adapter, or a whole model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cutaway.commands import console
from cutaway.commands.pretrain import watched
from cutaway.data.conversations import Item, Labelled, Pair
from cutaway.errors import UserError
from cutaway.weights.load import RUN

if TYPE_CHECKING:
    from cutaway.train.finetune import FinetuningConfig

SHOWN = 3  # examples that --check prints


def finetune(
    source: str,
    /,
    *changes: Annotated[str, Parameter(allow_leading_hyphen=True)],
    data: Annotated[Path | None, Parameter(help="Examples: a .jsonl or .parquet file, or a folder.")] = None,
    model: Annotated[str | None, Parameter(help="The base model; without it the config's.")] = None,
    output: Annotated[Path | None, Parameter(help="The run's folder; without it runs/NAME.")] = None,
    check: Annotated[
        bool, Parameter(help="Only say what the examples are, and show what is trained.", negative=())
    ] = False,
    resume: Annotated[bool, Parameter(help="Continue the run that the folder holds.", negative=())] = False,
    json: Annotated[bool, Parameter(name="--json", help="With --check: print JSON.", negative=())] = False,
) -> None:
    """Train a model further: SOURCE is a method (sft), a YAML file, or a run's folder.

    A line of the data is {"messages": [...]}, or prompt and completion, or text; the assistant's turns are
    trained. The run's folder holds the adapter as PEFT reads it, and opens in every other verb:
    `cutaway chat runs/talk`. Ctrl-C saves first; --resume continues.

    Examples:

    cutaway finetune sft --data talk.jsonl --check

    cutaway finetune sft --data talk.jsonl --output runs/talk

    cutaway finetune sft --data talk.jsonl --model runs/book --adapter.rank 64 --steps 500

    cutaway finetune sft --data talk.jsonl --base-type packed

    cutaway finetune runs/talk --resume --steps 400

    Parameters
    ----------
    source
        A method (sft), a YAML file, or with --resume a run's folder.
    changes
        Changes to the config, written --name.of.entry VALUE; docs/finetuning.md lists the entries.
    """
    from cutaway.train import finetune as recipe

    given = [
        (name, str(value)) for name, value in (("base", model), ("data.path", data)) if value is not None
    ]
    run = recipe.read(source, [*(word for name, value in given for word in (f"--{name}", value)), *changes])
    if check:
        _check(run, json)
        return
    if json:
        raise UserError("--json goes with --check")
    folder = output or (Path(source) if (Path(source) / RUN).is_file() else Path("runs") / Path(source).stem)
    from cutaway.train import distributed
    from cutaway.train.run import train

    with distributed.joined(run) as parallel, watched(parallel.rank == 0, folder) as callback:
        train(run, folder, callback, recipe=recipe, resume=resume, parallel=parallel)


def _check(run: FinetuningConfig, as_json: bool) -> None:
    """What the examples are, and some of them with what is trained in colour."""
    from cutaway.train import finetune as recipe

    at_rest = recipe.base(run)
    items, report = recipe.prepare(run, at_rest, console.note)
    if as_json:
        console.print_json(asdict(report))
        return
    from rich.console import Console
    from rich.text import Text

    out = Console(highlight=False)
    share = report.trained_tokens / report.tokens
    out.print(
        f"{report.examples:,} examples, {report.tokens:,} tokens; {report.trained_tokens:,} are trained "
        f"({share:.0%}), shown in green:"
    )
    for item in items[:SHOWN]:
        for name, example in zip(_names(item), item.documents, strict=True):
            text = Text(name, "bold")
            for id, trained in zip(example.ids.tolist(), example.trained.tolist(), strict=True):
                text.append(at_rest.tokenizer.decode([id]), "bold green" if trained else "dim")
            out.print(text)
    for warning in report.warnings():
        out.print(f"Note: {warning}.", style="yellow", markup=False)


def _names(item: Item) -> tuple[str, ...]:
    """What is printed before each of an item's documents."""
    if isinstance(item, Pair):
        return "chosen: ", "rejected: "
    return ("liked: " if item.label else "disliked: ",) if isinstance(item, Labelled) else ("",)
