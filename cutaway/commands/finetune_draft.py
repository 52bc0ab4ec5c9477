"""`cutaway finetune distill --draft`: a head that drafts for a model, trained on the model's own answers.

The run's folder has in ``data/`` what it began with: the prompts' file and model by name, the answers, and
the untrained head. ``draft_head/`` is the trained one, an EAGLE-3 head in its published format, with which
`--draft FOLDER` drafts, and ``acceptance.json`` says how it did on prompts that were held out.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cutaway
from cutaway import store
from cutaway.commands import console
from cutaway.errors import UserError, plural
from cutaway.evaluate import drafts
from cutaway.evaluate.statistics import Estimate
from cutaway.store.files import atomic_file, digest
from cutaway.store.reading import parsed
from cutaway.train import folder as run_folder
from cutaway.weights import adapters
from cutaway.weights.load import read_checkpoint
from cutaway.weights.run_checkpoint import BASE, DRAFTS_FOR

ANSWERS, START, ACCEPTANCE = "data/answers.jsonl", "data/start", "acceptance.json"
TOKENS = 128  # of an answer
HELD_OUT, MOST_HELD_OUT = 16, 32  # each of so many prompts is held out, and so many of them are judged
FEWEST = 32  # prompts
METHOD = "eagle3"  # that trains a head


def teacher(model: str | None) -> str:
    """The model that answers, by a name that another folder knows too."""
    name = model or BASE
    return str(Path(name).absolute()) if Path(name).exists() else name


def changes(teacher: str, folder: Path) -> list[str]:
    """The changes of the config of ``METHOD`` that train a model's head in a run's folder."""
    own = {"base": teacher, "objective.head": (folder / START).absolute(), "data.path": folder / ANSWERS}
    return [f"--{name}={value}" for name, value in own.items()]


def prepare(data: Path | None, teacher: str, folder: Path, seed: int) -> None:
    """Write a model's answers and its untrained head into the run's folder, as far as they are not there."""
    from cutaway.train import draft_head
    from cutaway.train.run import locked

    if data is None:
        raise UserError(
            "a draft learns from answers to prompts: name their file, as in cutaway "
            "finetune distill prompts.jsonl --draft"
        )
    lm = cutaway.load(console.model_path(teacher))
    draft_head.checked(lm.checkpoint)
    lm.engines.check_heads_draft()
    asked, _ = _asked(lm, data)
    with locked(folder):
        _begin(folder, {"prompts": str(data.absolute()), "model": teacher, "files": _files(lm.checkpoint)})
        try:
            with console.watched() as bar:
                drafts.answer(lm, asked, folder / ANSWERS, TOKENS, lambda n, total: bar("answer", n, total))
        except KeyboardInterrupt:
            console.note("Stopped among the answers: the same command with --resume keeps those it has.")
            raise
        if run_folder.unbegun(folder) or not (folder / START / "config.json").is_file():
            counts = drafts.written(lm, asked, folder / ANSWERS)
            draft_head.write(lm.checkpoint, counts, folder / START, seed)


def _begin(folder: Path, what: dict[str, str]) -> None:
    """Say in the folder what is answered by which model; UserError where it answers something else."""
    path = folder / DRAFTS_FOR
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as out:
            out.write(json.dumps(what).encode())
        return
    known = begun(folder)
    if any(known[name] != what[name] for name in ("prompts", "model")):
        raise UserError(
            f"{folder}: has answers of another model, or to other prompts: choose another folder "
            "with --output"
        )
    _check_files(folder, known, what["files"])


def check_model(folder: Path) -> None:
    """UserError where the model of a run that goes on is not the one that answered."""
    known = begun(folder)
    checkpoint = read_checkpoint(store.resolve(known["model"], pull=True))
    _check_files(folder, known, _files(checkpoint))


def _check_files(folder: Path, known: dict[str, str], files: str) -> None:
    if known.get("files", files) != files:
        raise UserError(
            f"{folder}: has answers of {known['model']} as it was before its files changed: choose another "
            "folder with --output"
        )


def _files(checkpoint: Any) -> str:
    """A digest of the files that decide what a model answers, an adapter's among them."""
    files = "".join(map(digest, checkpoint.files))
    return hashlib.sha256((adapters.digest(checkpoint) + files).encode()).hexdigest()


def begun(folder: Path) -> dict[str, str]:
    """What a run's folder says that it began with: ``prompts``, a file, and ``model``, by name."""
    found = parsed(folder / DRAFTS_FOR)
    if not all(isinstance(found.get(name), str) for name in ("prompts", "model")):
        raise UserError(f"{folder / DRAFTS_FOR}: does not name prompts and a model: begin another run")
    return found


def _asked(lm: Any, data: Path) -> tuple[list[drafts.Prompt], list[drafts.Prompt]]:
    """The prompts to train on, and those that are held out."""
    found, too_long = drafts.prompts(lm, data)
    if too_long:
        console.note(f"{plural(too_long, 'prompt leaves', 'prompts leave')} no room for an answer: left out.")
    if len(found) < FEWEST:
        raise UserError(
            f"{data}: has {plural(len(found), 'different prompt')}, and a draft needs {FEWEST} at least to "
            "learn from"
        )
    return [one for n, one in enumerate(found) if n % HELD_OUT], found[::HELD_OUT][:MOST_HELD_OUT]


def judge(folder: Path) -> None:
    """Say how a trained head does on prompts that were held out."""
    known = begun(folder)
    (folder / ACCEPTANCE).unlink(missing_ok=True)  # what an earlier head did
    lm = cutaway.load(console.model_path(known["model"]))
    asked, held = _asked(lm, Path(known["prompts"]))
    drafts.answers(asked, folder / ANSWERS)  # else prompts that were trained on may be held out
    try:
        with console.watched() as bar:
            found = drafts.judged(lm, folder, held, TOKENS, lambda n, total: bar("judge", n, total))
    except KeyboardInterrupt:
        console.note(
            f"The draft is trained, and not yet tried: `cutaway finetune {folder} --resume` does that."
        )
        raise
    with atomic_file(folder / ACCEPTANCE) as out:
        out.write(json.dumps(found.entries(), indent=1).encode())
    console.note(
        f"On {plural(found.prompts, 'held-out prompt')}: {found.acceptance.value:.0%} of the drafted tokens "
        f"are accepted ({found.acceptance.between('.0%')}), {found.per_step.value:.2f} tokens a step where "
        f"{drafts.COUNT} are drafted.\nWhere as many are drafted as pay, the model decodes "
        f"{found.speed.value:.2f} times as fast as without ({found.speed.between('.2f')}), here and now.\n"
        f"{advice(found.speed, known['model'], folder)}"
    )


def advice(speed: Estimate, model: str, folder: Path) -> str:
    """Whether the draft is worth using, as far as the interval of what it gains lets one know."""
    use = f"`cutaway chat {model} --draft {folder}` drafts with it"
    if speed.low > 1:
        return f"{use}."
    if speed.high < 1:
        return f"It does not pay here: a draft of a larger model costs less beside it. ({use}.)"
    return f"Whether it pays here, so few prompts do not show. {use}, as long as drafts pay."
