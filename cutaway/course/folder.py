"""The reader's folder: a stub for each exercise, and the progress in one JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cutaway.course.chapters import Chapter
from cutaway.course.exercise import Exercise, Verdict
from cutaway.errors import UserError
from cutaway.store import files

PROGRESS = "progress.json"
ELSEWHERE = "give another folder by --folder"
ASSISTANTS = """# For assistants

The person in this folder takes a course, and learns by writing these functions. Help as a teacher does:

- Explain ideas, shapes and equations; ask what they expect a line to do; point to the paper or the docs.
- Read their code and say what it computes, or which case to try by hand.
- Do not write the body of an exercise's function, in whole or in part, and do not complete a stub.
- `cutaway course check NUMBER` judges an answer. Help to understand its hint.
"""


@dataclass(frozen=True)
class Standing:
    """How far an exercise is: tried so many times, and passed or not."""

    passed: bool = False
    tries: int = 0


def path_of(folder: Path, exercise: Exercise) -> Path:
    """The path of an exercise's file, such as course/06/exercise_6_3.py."""
    return folder / f"{exercise.chapter:02}" / f"exercise_{exercise.number.replace('.', '_')}.py"


def around(folder: Path) -> Path:
    """The folder; where it is not there, the course's that the reader is in, or in a chapter of."""
    if not folder.exists():
        for above in (Path(), Path("..")):
            if (above / "AGENTS.md").is_file() and any(above.glob("[0-9][0-9]/exercise_*.py")):
                return above
    return folder


def start(chapter: Chapter, folder: Path) -> list[Path]:
    """Write the stubs of a chapter that are not there yet; the files that were written."""
    files.check_folder(folder)
    written = []
    for exercise in chapter.exercises:
        path = path_of(folder, exercise)
        if not path.exists():
            _make(path.parent)
            files.write_file(path, exercise.stub)
            written.append(path)
    if not (folder / "AGENTS.md").exists():
        files.write_file(folder / "AGENTS.md", ASSISTANTS)
    return written


def _make(folder: Path) -> None:
    with files.disk_errors(folder, ELSEWHERE):
        folder.mkdir(parents=True, exist_ok=True)


def progress(folder: Path) -> dict[str, Standing]:
    """What was tried and passed in a folder, by the exercises' numbers. UserError for a damaged file."""
    path = folder / PROGRESS
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text("utf-8-sig"))  # an editor may have put a byte order mark before it
        return {number: Standing(bool(one["passed"]), int(one["tries"])) for number, one in kept.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f'{path} is damaged: mend it, it is JSON such as {{"6.1": {{"passed": true, "tries": 2}}}}, '
            "or delete it to begin anew"
        ) from error


def record(folder: Path, exercise: Exercise, verdict: Verdict) -> Standing:
    """Keep a verdict: what was passed once stays passed."""
    kept = progress(folder)
    before = kept.get(exercise.number, Standing())
    now = Standing(before.passed or verdict.passed, before.tries + 1)
    kept[exercise.number] = now
    document = {number: {"passed": one.passed, "tries": one.tries} for number, one in sorted(kept.items())}
    _make(folder)  # `course check --file` needs no chapter to be started
    files.write_file(folder / PROGRESS, json.dumps(document, indent=1) + "\n")
    return now
