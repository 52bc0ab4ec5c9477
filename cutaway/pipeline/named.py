"""What a stage's config names is there, or an earlier stage makes it: found before the first stage starts."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cutaway.data import rows, run_tokenizer, tasks
from cutaway.data.programs import registry
from cutaway.data.sources import HUB
from cutaway.errors import UserError, quoted
from cutaway.evaluate import task_registry
from cutaway.pipeline.config import Pipeline
from cutaway.pipeline.data import NOVELS
from cutaway.pipeline.verbs import VERBS
from cutaway.security import probe_runner
from cutaway.store import models

MODELS = ("model", "against", "source", "base", "paths")  # entries that name a model
FILES = ("files", "chat_template", "text")  # entries that name files
WRITTEN = (  # by a stage of data
    *("text", "tokenizer.txt", "chat_template.jinja", "mix.jsonl", "sft.jsonl", "pairs.jsonl"),
    *("held-out", "sheet.json"),
)
TRIED = 8  # questions of a task that is learned
PATHS = ("text", "file", "labels")  # kinds of tasks whose name is a path
MODELLESS = ("data", "tokenizer train", "eval", "attack", "audit")  # verbs that leave no model


def check(pipeline: Pipeline) -> None:
    """UserError for a path, model, task or program that is not there when its stage begins."""
    for name in pipeline.names:
        try:
            _Stage(pipeline, name).check()
        except UserError as error:
            raise UserError(f"stages.{name}: {error}") from None


class _Stage:
    """One stage, and those before it."""

    def __init__(self, pipeline: Pipeline, name: str) -> None:
        self.verb, self.config = pipeline[name].verb, pipeline[name].config
        self.before = pipeline.names[: pipeline.names.index(name)]
        self.pipeline = pipeline

    def check(self) -> None:
        if self.verb == "data":
            self._data()
            return
        data = self.config.get("data")
        if isinstance(data, dict):
            for place in [data, *data.get("sources", ())]:
                if isinstance(place, dict) and isinstance(place.get("path"), str):
                    self._path("config.data: path", place["path"])
            self._learned(data)
            tokenizer = data.get("tokenizer")
            if isinstance(tokenizer, str) and tokenizer.startswith("bpe:"):
                if run_tokenizer.size_of(tokenizer) is None:
                    raise UserError(f"config.data.tokenizer: {tokenizer}: write its size, as bpe:4096")
            elif isinstance(tokenizer, str) and tokenizer != "bytes":
                self._model("config.data.tokenizer", tokenizer, "tokenizer")
        if VERBS[self.verb].trains:
            if isinstance(base := self.config.get("base"), str):
                self._model("config.base", base)
            return
        for key in MODELS:
            for each in texts(self.config.get(key)):
                self._model(f"config.{key}", each)
        for key in FILES:
            for each in texts(self.config.get(key)):
                self._path(f"config.{key}", each)
        asked = list(names(self.config.get("tasks")))
        if self.verb == "eval" and self.config.get("harness"):
            raise UserError("config.harness: a run's evaluations are tasks of Cutaway: name them in tasks")
        if self.verb == "eval" and not asked:
            raise UserError(f"config.tasks: is missing: name tasks, as {task_registry.known()}")
        for task in asked:
            self._task(task)
        if self.verb == "attack":
            probe_runner.check_probes(list(names(self.config.get("probe"))))

    def _learned(self, data: dict[str, Any]) -> None:
        """What a stage that learns from rewards is asked: a task, or what judges the answers to a file's."""
        task = data.get("task")
        if not isinstance(task, str):
            return
        kind, _, own = task.rpartition(":")
        if kind.endswith(".py"):
            self._path("config.data.task", kind)
        elif kind == "reward_model":
            self._model("config.data.task", own)
        else:
            tasks.load(task, TRIED, TRIED, options=data.get("options"), path=data.get("path"))

    def _data(self) -> None:
        for text in self.config.get("texts", ()):
            if text != NOVELS:
                self._path("config.texts", text)
        for program in self.config.get("programs", ()):
            _programs("config.programs", f"programs:{program}")
        for task in self.config.get("evaluations", ()):
            self._task(task)

    def _task(self, task: str) -> None:
        kind, colon, rest = task.partition(":")
        _programs("config.tasks", task)
        if colon and kind in PATHS:
            self._path("config.tasks", rest)
        elif Path(task.removesuffix(".gz")).suffix in rows.TABLES:
            self._path("config.tasks", task)
        elif task not in task_registry.names() and not (colon and kind in task_registry.named()):
            raise UserError(f"config.tasks: there is no task {quoted(task)}: use {task_registry.known()}")

    def _path(self, key: str, path: str) -> None:
        """A file or folder: an earlier stage's, or one that there is."""
        stage, _, rest = path.removesuffix("/").partition("/")
        if path.startswith(HUB) and path != HUB:
            return
        if Path(path).is_absolute():
            if not Path(path).exists():
                raise UserError(f"{key}: {path}: there is no such file or folder")
        elif stage not in self.before:
            near = difflib.get_close_matches(stage, self.before, n=1)
            raise UserError(
                f"{key}: {path}: no earlier stage is called {quoted(stage)}"
                + (f": did you mean {near[0]}?" if near else ": a path of your own begins with ./, ../ or ~/")
            )
        elif self.pipeline[stage].verb == "data" and rest and not self._is_written(stage, rest):
            raise UserError(
                f"{key}: {path}: the stage {stage} writes no {rest}; it writes {', '.join(WRITTEN)}"
            )

    def _is_written(self, stage: str, rest: str) -> bool:
        """Whether a stage of data writes this file or folder."""
        first, _, inner = rest.partition("/")
        if first != "held-out" or not inner:
            return first in WRITTEN and (not inner or first == "text")
        programs = [f"{one}.jsonl" for one in self.pipeline[stage].config.get("programs", ())]
        return inner in programs or inner.partition("/")[0] == "text"

    def _model(self, key: str, model: str, what: str = "model") -> None:
        """A model, or its tokenizer: an earlier stage's, a file or folder that there is, or a name."""
        stage = model.partition("/")[0]
        if stage in self.before:
            verb = self.pipeline[stage].verb
            if verb in MODELLESS and (what == "model" or verb != "tokenizer train"):
                raise UserError(f"{key}: {model}: the stage {stage} makes no {what}")
            return
        if Path(model).is_absolute():
            if not Path(model).exists():
                raise UserError(f"{key}: {model}: there is no such file or folder")
            return
        if "://" in model or models.is_name(model):
            return
        near = difflib.get_close_matches(stage, self.before, n=1)
        raise UserError(
            f"{key}: {model}: is no earlier stage and no name of a model"
            + (f": did you mean {near[0]}?" if near else "; `cutaway models` lists those that have a name")
        )


def _programs(key: str, task: Any) -> None:
    """UserError for ``programs:a+b`` of which one is no program."""
    if not isinstance(task, str) or not task.startswith("programs:"):
        return
    for program in task.removeprefix("programs:").split("+"):
        if program not in registry.names():
            raise UserError(
                f"{key}: there is no program {quoted(program)}: use {', '.join(registry.names())}"
            )


def names(value: Any) -> Iterator[str]:
    """The names of an entry, which may have commas between them."""
    for each in texts(value):
        yield from filter(None, map(str.strip, each.split(",")))


def texts(value: Any) -> Iterator[str]:
    """The texts of an entry that is one or a list."""
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str):
            yield each
