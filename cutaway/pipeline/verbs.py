"""The verbs that a stage may be: how its config becomes a command line, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cutaway.errors import UserError, quoted
from cutaway.weights.load import ADAPTER

RESULTS, ITEMS = "results.json", "items.jsonl"


@dataclass(frozen=True)
class Verb:
    """``words`` give config entries as words of the command line, in order; ``output`` names what is written.

    ``entries``: the config is the verb's YAML file, and it is trained, so that it can be resumed. ``target``:
    the output is a word and no option. ``printed``: standard output is kept as results.json. ``left``: the
    patterns of files that a later stage may depend on.
    """

    words: tuple[str, ...] = ()
    output: str = ""
    target: bool = False
    entries: bool = False
    printed: bool = False
    left: tuple[str, ...] = ("**/*",)

    @property
    def trains(self) -> bool:
        """Whether its length is a number of steps."""
        return self.entries


TRAINED = ("model/**/*", ADAPTER, "*.safetensors")
VERBS = {
    "data": Verb(),
    "tokenizer train": Verb(("files",), "tokenizer.json"),
    "pretrain": Verb(entries=True, left=TRAINED),
    "finetune": Verb(entries=True, left=TRAINED),
    "eval": Verb(("model",), ITEMS, printed=True, left=(RESULTS,)),
    "quantize": Verb(("source",), "model.gguf", printed=True, left=("*.gguf",)),
    "merge": Verb(("paths",), "model.gguf", target=True, printed=True, left=("*.gguf",)),
    "convert": Verb(("source",), "model.gguf", target=True, printed=True, left=("*.gguf",)),
    "attack": Verb(("model",), ".", left=(RESULTS,)),
    "audit": Verb(("model",), "", printed=True, left=(RESULTS,)),
}


def command(name: str, verb: str, config: Mapping[str, Any], yaml: str, resume: bool) -> list[str]:
    """The words after ``cutaway`` of a stage whose folder is ``name``, in the run's folder."""
    made, own = verb.split(), VERBS[verb]
    if verb == "data":
        return [*made, yaml, name]
    if own.entries:
        return [*made, yaml, "--output", name, *(["--resume"] if resume else [])]
    given = dict(config)
    for word in own.words:
        if word not in given:
            raise UserError(f"stages.{name}.config.{word}: is missing: `cutaway {verb}` needs it")
        value = given.pop(word)
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) and text for text in texts):
            where = f"stages.{name}.config.{word}"
            raise UserError(f"{where}: is {quoted(value)}; it must be a text, or a list of texts")
        made += texts
    if own.target:
        made.append(f"{name}/{own.output}")
    elif own.output:
        made += ["--output", f"{name}/{own.output}" if own.output != "." else name]
    for key, value in given.items():
        each = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str | bool | int | float | None) for one in each):
            where = f"stages.{name}.config.{key}"
            raise UserError(f"{where}: is {quoted(value)}; it must be a text, number, true, false, or a list")
        made += [word for one in each for word in option(key, one)]
    return [*made, *(["--json"] if own.printed else [])]


def option(key: str, value: Any) -> list[str]:
    """An entry as a command line has it: true and false are flags, and what looks like an option is none."""
    name = f"--{key.replace('_', '-')}"
    if isinstance(value, bool):
        return [name if value else f"--no-{name[2:]}"]
    if str(value).startswith("-"):
        return [f"{name}={value}"]
    return [] if value is None else [name, str(value)]
