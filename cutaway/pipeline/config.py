"""A pipeline as data: stages in order, each a verb with that verb's own config. Read from YAML."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import yaml

from cutaway.bounds import Bound, Bounded, bounds_of, check
from cutaway.errors import UserError, quoted
from cutaway.model.config_dict import from_dict
from cutaway.pipeline.verbs import VERBS
from cutaway.store import yaml_files

PRESETS = Path(__file__).parent / "presets"
PIPELINE = "pipeline.yaml"
NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
TAKEN = ("configs", "logs", "probes")  # folders of the run that are no stage's
UNITS = {"s": 1, "m": 60, "h": 3600}
LONGEST, MOST = 1e7, 4096  # seconds, and threads or processes
# The user's own paths in a text: alone, or between commas, where a task's kind may stand before one.
OWN = re.compile(r"(?:^|(?<=,))(\s*(?:\w+:)?)((?:\.\.?|~)/[^,]*)")
WHOLE = re.compile(r"(?:^|(?<=,))\s*(?:\w+:)?(/[^,]*)")
UNWRITABLE = re.compile("[\0\ud800-\udfff]")  # in no file's name and no command: NUL, half a character
Seconds = Annotated[float, Bound(0, LONGEST)]
Figure = Annotated[float, Bound(0, 1e9)]


@dataclass(frozen=True)
class Stage(Bounded):
    """A verb and its config. ``share`` of the training time, or ``seconds`` that it takes, for the plan."""

    verb: str
    config: dict
    share: Annotated[float, Bound(0, 1000)] = 0.0
    seconds: Seconds = 0.0


@dataclass(frozen=True)
class Costs(Bounded):
    """Figures by which the card counts money and carbon; each is the preset's own and is printed with it."""

    price_per_hour: Figure = 0.10
    currency: str = "USD"
    watts: Figure = 40.0
    grams_per_kwh: Figure = 445.0


@dataclass(frozen=True)
class Pipeline(Bounded):
    """``sized`` is the pretraining stage whose model the scaling law chooses; ``processes`` train together.

    ``prompts`` are asked of the model after each training stage. ``not_run`` says why a preset has never been
    run; ``licences`` name what goes in, ``limits`` what the model may not be used for.
    """

    about: str
    stages: tuple[tuple[str, Stage], ...]
    budget: Seconds = 0.0
    sized: str = ""
    threads: Annotated[int, Bound(0, MOST)] = 0
    processes: Annotated[int, Bound(1, MOST)] = 1
    prompts: tuple[str, ...] = ()
    costs: Costs = field(default_factory=Costs)
    licences: tuple[str, ...] = ()
    limits: str = ""
    not_run: str = ""

    def __getitem__(self, name: str) -> Stage:
        return dict(self.stages)[name]

    @property
    def names(self) -> list[str]:
        """The stages in order."""
        return [name for name, _ in self.stages]

    def upstream(self, name: str) -> list[str]:
        """The stages before this one whose folders its config names."""
        found = {part for text in _texts(self[name].config) for part in _folders(text)}
        return [other for other in self.names[: self.names.index(name)] if other in found]


def presets() -> list[str]:
    """The pipelines that come with Cutaway."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_pipeline(source: str | Path) -> Pipeline:
    """The pipeline of a preset, a YAML file or a run's folder. UserError for another."""
    if str(source) in presets():
        path = PRESETS / f"{source}.yaml"
    else:
        path = Path(source).expanduser()
        path = path / PIPELINE if path.is_dir() else path
    if not path.is_file():
        near = difflib.get_close_matches(str(source), presets(), n=1)
        instead = f"did you mean {near[0]}?" if near else f"presets are {', '.join(presets())}"
        raise UserError(f"{source}: is no preset, YAML file or run's folder: {instead}")
    here = Path.cwd() if path.parent == PRESETS else path.absolute().parent
    return parsed(yaml_files.parsed(path), str(source), here)


def parsed(entries: Mapping[str, Any], where: str, folder: Path) -> Pipeline:
    """The pipeline of a file's entries; ./PATH is below ``folder``."""
    entries = dict(entries)
    for text in _texts(entries):
        if UNWRITABLE.search(text):
            raise UserError(f"{where}: {quoted(text)} has a character that no file and no command may have")
    stages = entries.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise UserError(f"{where}: stages: should be stages by name, each with a verb and its config")
    known = {f.name for f in fields(Pipeline)}
    for name in entries:
        if name not in known:
            raise UserError(f"{where}: {name}: there is no such entry; known: {', '.join(sorted(known))}")
    made = tuple((str(name), _stage(str(name), stage, where, folder)) for name, stage in stages.items())
    rest = {name: value for name, value in entries.items() if name != "stages"}
    if isinstance(rest.get("budget"), str):
        rest["budget"] = seconds(rest["budget"], f"{where}: budget")
    # Stages are checked above: the others are plain entries, which from_dict checks with their bounds.
    pipeline = replace(from_dict(rest | {"stages": []}, Pipeline, where), stages=made)
    sized = pipeline.sized
    if sized and (sized not in pipeline.names or pipeline[sized].verb != "pretrain"):
        raise UserError(f"{where}: sized: {quoted(sized)} is no stage that pretrains")
    return pipeline


def _stage(name: str, given: Any, where: str, folder: Path) -> Stage:
    if not NAME.fullmatch(name) or name in TAKEN:
        raise UserError(
            f"{where}: stages: {quoted(name)} cannot name a stage, whose folder it is: use small letters, "
            f"digits and dashes, and none of {', '.join(TAKEN)}"
        )
    place = f"{where}: stages.{name}"
    if not isinstance(given, dict):
        raise UserError(f"{place}: should have a verb and its config")
    verb, config = given.get("verb"), given.get("config", {})
    if not isinstance(verb, str) or verb not in VERBS:
        raise UserError(f"{place}.verb: is {quoted(verb)}; known: {', '.join(VERBS)}")
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise UserError(f"{place}.config: should be the entries of `cutaway {verb}` by name")
    for key in given:
        if key not in ("verb", "config", "share", "seconds"):
            raise UserError(f"{place}.{key}: there is no such entry; known: verb, config, share, seconds")
    rest = {key: given[key] for key in ("share", "seconds") if key in given}
    for key, value in rest.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{place}.{key}: is {quoted(value)}; it must be a number")
        check(value, bounds_of(Stage)[key], f"{place}.{key}")
    config = _whole(config, folder)
    if verb == "finetune":
        from cutaway.train import methods

        config = methods.with_rate(config)
    return Stage(verb, config, **rest)


def _whole(value: Any, folder: Path) -> Any:
    """A config with the paths that are the user's own, ./FILE, ../FILE or ~/FILE, made whole: values, names
    of entries, and what is behind a task's kind and between commas, as in text:./FILE,hellaswag.
    """
    if isinstance(value, dict):
        return {_whole(name, folder): _whole(each, folder) for name, each in value.items()}
    if isinstance(value, list):
        return [_whole(each, folder) for each in value]
    if isinstance(value, str):
        return OWN.sub(lambda found: found[1] + os.path.abspath(folder / Path(found[2]).expanduser()), value)
    return value


def own_paths(value: Any) -> set[Path]:
    """The user's own files and folders that a config names by whole paths, alone or in a list with commas."""
    texts = set(_texts(value))
    found = {Path(text) for text in texts if os.path.isabs(text)}
    found |= {Path(path.strip()) for text in texts for path in WHOLE.findall(text)}
    found |= {Path(str(path).rpartition(":")[0]) for path in found if ":" in path.name}  # FILE.py:FUNCTION
    return {path for path in found if path != path.parent}  # no whole disk: "/" is no input, but a character


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value


def _folders(text: str) -> set[str]:
    """The first folder of each path in a text: of "text:data/a.txt,sft" data and sft."""
    parts = [part.rpartition(":")[2] for part in text.split(",")]
    return {part.strip().removeprefix("./").partition("/")[0] for part in parts}


def seconds(text: str, where: str = "a budget") -> float:
    """A time such as 90m, 2h or 600s. UserError for another."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip().lower())
    value = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not 0 < value <= LONGEST:
        most = f"{LONGEST // UNITS['h']:,.0f}h"
        raise UserError(f"{where} of {quoted(text)}: write a time as 90m, 2h or 600s, {most} at most")
    return value


def seeded(pipeline: Pipeline, seed: int) -> Pipeline:
    """The pipeline with this seed in what draws: its data and each stage that trains."""
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed is {seed}: give a number from 0 to {2**32 - 1}")
    drawn = {name for name, stage in pipeline.stages if stage.verb == "data" or VERBS[stage.verb].trains}
    return replace(
        pipeline,
        stages=tuple(
            (name, replace(stage, config=stage.config | {"seed": seed}) if name in drawn else stage)
            for name, stage in pipeline.stages
        ),
    )


def written(pipeline: Pipeline) -> str:
    """The pipeline as YAML, which reads back equal."""
    plain = asdict(pipeline)
    plain["stages"] = {name: asdict(stage) for name, stage in pipeline.stages}
    for name in ("prompts", "licences"):
        plain[name] = list(plain[name])
    return yaml.dump(plain, Dumper=yaml_files.Dumper, sort_keys=False, allow_unicode=True)
