"""The methods of fine-tuning by name, and a run's entries as they are typed. Imports no torch.

What can be wrong with a command line and its data is found here, before torch is.
"""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from cutaway import store
from cutaway.bounds import Bounded
from cutaway.data import layouts
from cutaway.data import rows as tables
from cutaway.errors import UserError
from cutaway.model.config import Decoder
from cutaway.model.config_dict import from_dict
from cutaway.model.context import ContextExtension
from cutaway.store.reading import parsed
from cutaway.train import config, objectives
from cutaway.train.examples import Examples, reader
from cutaway.train.folder import newest
from cutaway.train.objectives import next_token
from cutaway.train.objectives.common.objective import Objective
from cutaway.weights import load
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.load import RUN
from cutaway.weights.run_checkpoint import BASE, DRAFTS_FOR

PRESETS = config.PRESETS / "finetune"
TOKENISED = 100  # rows
ADAPTERS = {"lora": "", "qlora": " --base-type packed", "dora": " --adapter.kind dora"}  # that sft trains


@dataclass(frozen=True)
class _Learned(Bounded):
    """The entry of a run that says what is minimised."""

    objective: Objective = field(
        default=next_token.Config(), metadata={"variants": "cutaway.train.objectives"}
    )


class Found(NamedTuple):
    """What a run's entries say of its examples, and the base model's checkpoint."""

    data: Examples
    objective: Objective
    base: str
    checkpoint: Checkpoint

    def check(self) -> None:
        """UserError for data that cannot be read: the layout of every row, and the first ones as ids."""
        read, kind, number = reader(self.checkpoint), self.objective.rows, 0
        for number, (where, row) in enumerate(tables.rows(self.data.path), 1):
            plain, _ = layouts.standard(kind, row, where)
            if number <= TOKENISED:
                read.items(kind, plain, where)
        if not number:
            raise UserError(f"{self.data.path}: holds no example")
        if self.data.check:
            tables.files(self.data.check)


def presets() -> list[str]:
    """The names of the methods that have settings of their own."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


@cache
def learned() -> dict[str, type[Objective]]:
    """The objectives of a user's data by name: the files of train/objectives/."""
    files = [one.name for one in pkgutil.iter_modules(objectives.__path__) if not one.ispkg]
    found = {name: getattr(import_module(f"{objectives.__name__}.{name}"), "Config", None) for name in files}
    if without := [name for name, own in found.items() if own is None]:
        raise UserError(f"{without[0]}.py has no Config: docs/adding-an-objective.md shows what one has")
    return {name: own for name, own in found.items() if own and own.source != "program"}


def names() -> list[str]:
    """Every method: an objective's name, or that of a file of settings."""
    return sorted({*presets(), *learned()})


def learns_task(source: str, changes: Sequence[str]) -> bool:
    """Whether SOURCE, a method, a YAML file or a run's folder, samples answers to a task."""
    own = learned().get(_kind(entries(source, changes)))
    return own is not None and own.source == "task"


def _settings(method: str) -> str:
    """The preset whose settings a method has: its own, that of its objective, of the nearest that the
    objective inherits, or of all that learn from such data.
    """
    known = presets()
    if method in known:
        return method
    own = learned()[method]
    if own.source == "task":
        return "grpo"
    same = [name for name in known if _kind(config.entries(str(PRESETS / f"{name}.yaml"), ())) == method]
    parents = [parent.__module__.rpartition(".")[2] for parent in own.__mro__]
    return next(iter([*same, *(name for name in parents if name in known)]), layouts.METHODS[own.rows])


def entries(source: str, changes: Sequence[str]) -> dict[str, Any]:
    """The entries of a method, a YAML file or a run's folder, changed.

    A YAML file that names no learning rate has that of the method whose objective it trains.
    ``--epochs`` takes the place of the steps that they name, as ``--steps`` does that of epochs.
    """
    check_source(source)
    if source in names():
        usual = _preset(_settings(source))
        if source in learned() and source != _kind(usual):
            usual["objective"] = {"kind": source}
    else:
        usual = with_rate(config.entries(source, ()), changes)
    found = config.entries(usual, changes)
    given = config.names(changes)
    if {"epochs", "steps"} <= given:
        raise UserError("--epochs and --steps each say how long to train: give one of them")
    if "epochs" in given:
        found["steps"] = 0
    return found


def _preset(name: str) -> dict[str, Any]:
    return config.entries(str(PRESETS / f"{name}.yaml"), ())


def with_rate(found: dict[str, Any], changes: Sequence[str] = ()) -> dict[str, Any]:
    """Entries that name no learning rate, with that of the method whose objective they train once changed;
    those without an optimizer have the method's.
    """
    own, changed = found.get("optimizer", {}), config.entries(found, changes)
    objective, kind = changed.get("objective", {}), _kind(changed)
    if not (isinstance(own, dict) and isinstance(objective, dict) and kind in learned()):
        return found  # which a run's config refuses
    if "learning_rate" in own:
        return found
    usual = _preset(_settings(kind))["optimizer"]
    return found | {"optimizer": {"learning_rate": usual["learning_rate"]} | own if own else usual}


def examples(found: Mapping[str, Any]) -> Found:
    """What the entries say of examples. UserError where they name none, or a base that is no decoder."""
    data = found.get("data")
    if not isinstance(data, dict) or not data.get("path"):
        raise UserError(
            "there is nothing to train on: name the examples with --data (a .jsonl, .csv or .parquet file, "
            "or a folder)"
        )
    learned = from_dict({name: found[name] for name in ("objective",) if name in found}, _Learned)
    read = from_dict(data, Examples, "config.data")
    return Found(read, learned.objective, str(found.get("base", BASE)), base(found))


def check_task(found: Mapping[str, Any]) -> None:
    """UserError where the entries of a method that samples answers name no task."""
    data = found.get("data")
    if not isinstance(data, dict) or not data.get("task"):
        raise UserError(
            "there is no task to learn: name one, as in --task reasoning_gym:chain_sum, or give questions of "
            "your own and what scores their answers: --data questions.jsonl --task file.py:function"
        )


def last(method: str) -> Path:
    """The run of a method to continue: runs/METHOD, or else the last one. UserError where there is none."""
    kind = _kind(entries(method, ()))

    def fits(folder: Path) -> bool:
        return _kind(entries(str(folder), ())) == kind

    own = Path("runs") / method
    return own if (own / RUN).is_file() and fits(own) else newest("finetune", kind=f" of {method}", fits=fits)


def _kind(found: Mapping[str, Any]) -> str:
    """The objective that the entries of a run name."""
    objective = found.get("objective")
    return str(objective.get("kind")) if isinstance(objective, dict) else "next_token"


def base(found: Mapping[str, Any]) -> Checkpoint:
    """The base model's checkpoint, with the positions the entries give it. UserError unless a decoder."""
    name = str(found.get("base", BASE))
    checkpoint = load.read_checkpoint(store.resolve(name, pull=True))
    if not isinstance(checkpoint.config, Decoder):
        raise UserError(f"config.base: {name} is not a decoder, and only decoders are finetuned")
    if found.get("context_extension") is None:
        return checkpoint
    extension = from_dict(found["context_extension"], ContextExtension, "config.context_extension")
    return replace(checkpoint, config=extension.extended(checkpoint.config))


def check_source(source: str, data: str = "DATA") -> None:
    """UserError for a word that is no method, YAML file or run's folder: what to type, with the data."""
    if source in names() or (Path(source) / RUN).is_file():
        return
    if (Path(source) / DRAFTS_FOR).is_file():
        known = parsed(Path(source) / DRAFTS_FOR)
        raise UserError(
            f"{source}: the model was stopped while it answered: `cutaway finetune distill "
            f"{known.get('prompts')} --draft --model {known.get('model')} --output {source}` goes on"
        )
    if source in ADAPTERS:
        raise UserError(
            f"{source}: is an adapter, no method: `cutaway finetune sft {data}{ADAPTERS[source]}` trains it"
        )
    if _is_model(source):
        raise UserError(
            f"{source}: is a model: name a method, and the model behind it: `cutaway finetune sft {data} "
            f"--model {source}`"
        )
    if tables.is_data(source):
        raise UserError(
            f"{source}: is data: name the method before it, as in `cutaway finetune sft {source}`"
        )
    if source in config.presets():
        raise UserError(
            f"{source}: is a preset of `cutaway pretrain`, which trains a new model; to train one further, "
            f"name a method: `cutaway finetune sft {data}`"
        )
    if Path(source).is_file():
        return
    near = difflib.get_close_matches(source, names(), n=1, cutoff=0.5)
    mend = f"did you mean {near[0]}?" if near else f"methods are {', '.join(names())}"
    raise UserError(f"{source}: there is no such method, YAML file or run's folder: {mend}")


def _is_model(source: str) -> bool:
    """Whether a word is a model's name, a .gguf file or a model's folder."""
    path = Path(source)
    if path.exists():
        return path.suffix == ".gguf" or (path / "config.json").is_file()
    return source in store.NAMES or store.find(source) is not None
