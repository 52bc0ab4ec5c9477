"""What `cutaway course list`, `start` and `check` print."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cutaway.commands.console import note, print_json, say
from cutaway.commands.options import Json
from cutaway.course import attempt, chapters, folder
from cutaway.course.exercise import Exercise
from cutaway.errors import OperationalError, UserError

Folder = Annotated[Path, Parameter(name="--folder", help="Your folder of answers.")]
HERE = Path("course")


def list_(*, folder_: Folder = HERE, as_json: Json = False) -> None:
    """List the chapters and exercises, and which of them you have passed.

    **Examples:**

    cutaway course list

    cutaway course list --folder course --json
    """
    folder_ = folder.around(folder_)
    kept = folder.progress(folder_)
    rows = [
        {
            "chapter": one.number,
            "title": one.title,
            "question": one.question,
            "exercises": [
                {"number": each.number, "title": each.title, **vars(kept.get(each.number, folder.Standing()))}
                for each in one.exercises
            ],
        }
        for one in chapters.chapters()
    ]
    if as_json:
        print_json({"folder": str(folder_), "chapters": rows})
        return
    for row in rows:
        passed = sum(each["passed"] for each in row["exercises"])
        say(f"{row['chapter']}  {row['title']}: {passed} of {len(row['exercises'])} passed", 3)
        say(f"   {row['question']}", 3)
        for each in row["exercises"]:
            mark = "passed" if each["passed"] else f"tried {each['tries']}" if each["tries"] else ""
            say(f"     {each['number']:<6}{mark:<9}{each['title']}", 20)
    say("\n`cutaway course start 1` writes the files of chapter 1; the chapters are in docs/course.")


def start(chapter: int, /, *, folder_: Folder = HERE) -> None:
    """Write a file for each exercise of a chapter; files that are there stay as they are.

    **Examples:**

    cutaway course start 6

    :param chapter: The chapter's number.
    """
    found, folder_ = chapters.chapter(chapter), folder.around(folder_)
    written = folder.start(found, folder_)
    for path in written:
        print(path)
    if not written:
        note(f"The files of chapter {chapter} are in {folder_} already.")
    first = found.exercises[0].number
    note(f"Read chapter {found.number} in docs/course, complete a file, then `cutaway course check {first}`.")


def check(number: str, /, *, file: Path | None = None, folder_: Folder = HERE, as_json: Json = False) -> None:
    """Run your function on hidden inputs, compare it with the library's, and say what is wrong.

    The exit code is 1 until it passes.

    **Examples:**

    cutaway course check 6.1

    cutaway course check 6.1 --file attention.py

    :param number: The exercise, such as 6.1.
    :param file: Another file than the one of your folder.
    """
    exercise, folder_ = chapters.exercise(number), folder.around(folder_)
    if file is not None and not file.is_file():
        raise UserError(f"{file} is no file: --file names the one that has your {exercise.name}()")
    verdict = attempt.judged(exercise, file or folder.path_of(folder_, exercise))
    try:
        standing = folder.record(folder_, exercise, verdict)
    except (UserError, OperationalError) as problem:  # the verdict stays good
        note(f"This check is not kept: {problem}.")
        standing = folder.Standing(verdict.passed, 1)
    if verdict.printed and not as_json:
        cut = "..." if len(verdict.printed) == attempt.PRINTED else ""
        note(f"Your file printed:\n{verdict.printed.rstrip()}{cut}\n")
    if as_json:
        print_json({"number": number, **vars(verdict), "tries": standing.tries})
    elif verdict.passed:
        say(f"{number} {exercise.title}: passed, {verdict.cases} hidden case{'s' * (verdict.cases > 1)}")
        note(_next(exercise, folder_))
    if not verdict.passed:
        raise OperationalError(f"{number} {exercise.title}: {verdict.hint}")


def _next(passed: Exercise, folder_: Path) -> str:
    """What to do after an exercise that is passed: the chapter's next, or the next chapter."""
    try:
        kept = folder.progress(folder_)
    except UserError:  # it is damaged, which was printed
        kept = {}
    own = chapters.chapter(passed.chapter).exercises
    at = next(n for n, one in enumerate(own) if one.number == passed.number)
    for one in (*own[at + 1 :], *own[:at]):
        if not kept.get(one.number, folder.Standing()).passed:
            return f"Next: {one.number} {one.title}, {folder.path_of(folder_, one)}"
    if passed.chapter < chapters.chapters()[-1].number:
        return f"Chapter {passed.chapter} is done. Next: `cutaway course start {passed.chapter + 1}`"
    return f"Chapter {passed.chapter}, the last one, is done: `cutaway course list` shows what is open."
