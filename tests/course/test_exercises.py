"""Every exercise is solved by an answer that is written here alone, and wrong answers get the right hint."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway import cli
from cutaway.course import attempt, chapters, folder
from cutaway.course.exercise import Verdict, check
from cutaway.errors import UserError

EXERCISES = {one.number: one for chapter in chapters.chapters() for one in chapter.exercises}
ANSWERS = {number: import_module(f"tests.course.answers_{number.partition('.')[0]}") for number in EXERCISES}
FEWEST_WRONG = 4
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", EXERCISES)
def test_the_solution_passes_on_any_seed(number: str) -> None:
    for seed in (attempt.SEED, 1):
        verdict = check(EXERCISES[number], ANSWERS[number].SOLUTIONS[number], seed)
        assert verdict.passed, verdict.hint
        assert verdict.cases >= 1


@pytest.mark.parametrize("number", EXERCISES)
def test_wrong_answers_get_the_hint_that_names_their_fault(number: str) -> None:
    wrong: list[tuple[Callable[..., Any], str]] = ANSWERS[number].WRONG[number]
    assert len(wrong) >= FEWEST_WRONG
    for answer, words in wrong:
        verdict = check(EXERCISES[number], answer, attempt.SEED)
        assert not verdict.passed and words in verdict.hint, (words, verdict)


@pytest.mark.parametrize("number", EXERCISES)
def test_each_mistake_is_found_by_its_own_hint(number: str) -> None:
    for mistake in EXERCISES[number].mistakes:
        assert check(EXERCISES[number], mistake.wrong, attempt.SEED).hint == mistake.hint


@pytest.mark.parametrize("number", EXERCISES)
def test_a_stub_is_python_and_says_that_nothing_is_written(number: str) -> None:
    space: dict[str, Any] = {}
    exec(compile(EXERCISES[number].stub, number, "exec"), space)
    verdict = check(EXERCISES[number], space[EXERCISES[number].name], attempt.SEED)
    assert "nothing is written yet" in verdict.hint
    assert max(map(len, EXERCISES[number].stub.splitlines())) <= 114


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("def merge(symbols, pair):\n    while True: pass", "did not end within 2 seconds"),
        ("def merge(symbols, pair):\n    1 / 0", "ZeroDivisionError in line 2"),
        ("def merge(symbols, pair)\n    return 3", "line 1 is not Python"),
        ("\n1 / 0", "running the file raised ZeroDivisionError in line 2: division by zero"),
        ("x = '\0'", "the file is not Python: source code string cannot contain null bytes"),
        ("exit()", "running the file ends the program"),
        ("def merge(symbols, pair):\n    exit(3)", "it ends the program: exit(3)"),
        (
            "def merge(symbols, pair):\n    x = 1\n    return y",
            "NameError in line 3: name 'y' is not defined",
        ),
        ("def other(): pass", "has no function merge(symbols, pair)"),
        ("def merge(symbols, pair):\n    return ['x'] * (1 << 40)", "MemoryError"),
        ("import os\ndef merge(symbols, pair):\n    return symbols", "an occurrence of the pair is left"),
    ],
)
def test_a_file_is_run_in_a_process_of_its_own(
    source: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    (tmp_path / "own.py").write_text(source)
    verdict = attempt.judged(
        replace(EXERCISES["4.2"], seconds=2.0 if "while" in source else 60.0), tmp_path / "own.py"
    )
    assert not verdict.passed and hint in verdict.hint


def test_what_a_file_prints_is_shown_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("def merge(symbols, pair):\n    print('pair', pair)\n    return symbols\n")
    assert cli.main(["course", "check", "4.2", "--file", "own.py"]) == 1, "no folder is there yet"
    assert "Your file printed:\npair (" in capsys.readouterr().err
    assert folder.progress(Path("course"))["4.2"].tries == 1
    Path("own.py").write_text("print('x' * 10 ** 6)\ndef merge(symbols, pair):\n    return symbols\n")
    assert len(attempt.judged(EXERCISES["4.2"], Path("own.py")).printed) == attempt.PRINTED
    for file in ("nowhere.py", "."):
        assert cli.main(["course", "check", "4.2", "--file", file]) == 2
        assert f"{file} is no file: --file names the one that has your merge()" in capsys.readouterr().err
    assert cli.main(["course", "check"]) == 2 and "such as 6.1)" in capsys.readouterr().err


def test_the_list_fits_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder.record(Path("course"), EXERCISES["4.1"], Verdict(True))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["course", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 80 and "     4.1   passed   Count the pairs of neighbours" in lines


@pytest.mark.parametrize(
    ("number", "answer", "hint"),
    [
        ("7.2", lambda n: np.tril(np.ones((n, n))), "should be booleans, True or False, and are float64"),
        ("2.5", lambda r, p: tuple(1.0 * one for one in ANSWERS["2.5"].pad(r, p)), "should be whole numbers"),
        (
            "2.5",
            lambda r, p: tuple(one[:1] for one in ANSWERS["2.5"].pad(r, p)),
            "part 1 of the result has shape",
        ),
        ("2.2", lambda text: text.encode(), "should be of type list, and is bytes"),
        ("3.1", lambda words, size: set(words), "should be of type list, and is set"),
    ],
)
def test_the_kind_of_a_result_is_named(number: str, answer: Callable[..., Any], hint: str) -> None:
    assert hint in check(EXERCISES[number], answer, attempt.SEED).hint


def test_trying_all_cuts_is_named_as_slow(tmp_path: Path) -> None:
    from dataclasses import replace

    (tmp_path / "own.py").write_text("def best_cut(word, scores):\n    while True: pass\n")
    verdict = attempt.judged(replace(EXERCISES["3.5"], seconds=0.5), tmp_path / "own.py")
    assert "are all cuts tried, one by one?" in verdict.hint


@pytest.mark.skipif(not attempt.OUT_OF_TIME, reason="this system has no timer of processor time")
@pytest.mark.parametrize("source", ["while True: pass", "def merge(symbols, pair):\n    while True: pass"])
def test_a_loop_is_ended_by_its_processor_time(source: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(source)
    program = (
        "from cutaway.course import attempt\nattempt.PROCESSOR = 0.2\nattempt.main('4.2', 'own.py', '1')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == -attempt.OUT_OF_TIME


@pytest.mark.skipif(not attempt.OUT_OF_TIME, reason="this system has no timer of processor time")
def test_what_took_too_much_processor_time_says_so(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGPROF)\n")
    verdict = attempt.judged(EXERCISES["4.2"], tmp_path / "own.py")
    assert verdict.hint == "it did not end within 10 seconds of processor time: does a loop run for ever?"


def test_a_check_inside_of_the_folder_is_kept_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["course", "start", "6"]) == 0
    monkeypatch.chdir(tmp_path / "course/06")
    Path("exercise_6_1.py").write_text("def project(x, weight):\n    return x @ weight.T\n")
    capsys.readouterr()
    for check_own in (["6.1"], ["6.1", "--file", "exercise_6_1.py"]):
        assert cli.main(["course", "check", *check_own]) == 0
        assert f"Next: 6.2 Scores, {Path('../06/exercise_6_2.py')}" in capsys.readouterr().err
    assert not Path("course").exists()
    kept = tmp_path / "course/progress.json"
    assert kept.read_text().endswith("}\n") and folder.progress(kept.parent)["6.1"].tries == 2
    for exercise in chapters.chapter(6).exercises[1:]:
        folder.record(kept.parent, exercise, Verdict(True))
    assert cli.main(["course", "check", "6.1"]) == 0
    assert "Chapter 6 is done. Next: `cutaway course start 7`" in capsys.readouterr().err


def test_a_fault_of_the_first_cases_is_not_named_by_the_last() -> None:
    verdict = check(EXERCISES["1.3"], lambda chances: np.exp(-np.log(chances).sum()), attempt.SEED)
    assert verdict.hint == "the sum is taken where the mean is asked for", "both overflow on a long text"


def test_a_reader_starts_is_hinted_and_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        cli.main(["course", "check", "4.2"]) == 2
        and "`cutaway course start 4` writes it" in capsys.readouterr().err
    )
    assert cli.main(["course", "start", "4"]) == 0
    own = folder.path_of(Path("course"), EXERCISES["4.2"])
    assert str(own) in capsys.readouterr().out and Path("course/AGENTS.md").is_file()
    assert cli.main(["course", "check", "4.2"]) == 1 and "nothing is written yet" in capsys.readouterr().err
    own.write_text(
        "def merge(symbols, pair):\n"
        "    made = []\n"
        "    for symbol in symbols:\n"
        "        made.append(symbol)\n"
        "        if tuple(made[-2:]) == pair:\n"
        "            made[-2:] = [pair[0] + pair[1]]\n"
        "    return made\n"
    )
    assert cli.main(["course", "check", "4.2"]) == 0 and "passed" in capsys.readouterr().out
    assert cli.main(["course", "start", "4"]) == 0 and "made" in own.read_text(), "a file that is there stays"
    capsys.readouterr()
    assert cli.main(["course", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["chapters"]
    found = {each["number"]: each for row in rows for each in row["exercises"]}
    assert found["4.2"]["passed"] and found["4.2"]["tries"] == 2 and not found["4.1"]["passed"]


def test_progress_that_is_damaged_and_numbers_that_are_not_there(tmp_path: Path) -> None:
    for damaged in ("{", "[]", '{"7.2": 3}', ""):
        (tmp_path / folder.PROGRESS).write_text(damaged)
        with pytest.raises(UserError, match=r"mend it, it is JSON such as .* or delete it to begin anew"):
            folder.progress(tmp_path)
    (tmp_path / folder.PROGRESS).unlink()
    folder.record(tmp_path, EXERCISES["4.1"], Verdict(True))
    assert folder.record(tmp_path, EXERCISES["4.1"], Verdict(False)).passed, "what was passed stays passed"
    for number, words in (
        ("4.99", r"there is no exercise 4.99: chapter 4 has 4.1 to 4.6$"),
        ("4", "4 is a chapter"),
        ("40.1", "no chapter 40"),
        ("x", "no exercise's number"),
    ):
        with pytest.raises(UserError, match=words):
            chapters.exercise(number)


def test_every_chapter_has_a_text_that_names_its_exercises() -> None:
    texts = {int(path.name.partition("-")[0]): path for path in (ROOT / "docs/course").glob("[0-9]*.md")}
    assert texts.keys() == {chapter.number for chapter in chapters.chapters()}
    for chapter in chapters.chapters():
        text = texts[chapter.number].read_text("utf-8")
        assert text.startswith(f"# {chapter.number}. {chapter.title}\n") and chapter.question in text
        assert f"cutaway course start {chapter.number}" in text
        for exercise in chapter.exercises:
            assert f"| {exercise.number} | `{exercise.name}(" in text, exercise.number


def test_a_check_that_cannot_be_kept_still_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_bytes(b"def project(x, weight):\r\n    return x @ weight.T\r\n")
    Path("file").write_text("")
    assert cli.main(["course", "start", "6", "--folder", "file"]) == 2
    assert "file is a file: give a folder's name" in capsys.readouterr().err
    check_own = ["course", "check", "6.1", "--file", "own.py"]
    assert cli.main([*check_own, "--folder", "file"]) == 0, "lines end as on Windows"
    found = capsys.readouterr()
    assert "6.1 Project: passed" in found.out and "not kept: file" in found.err and "--folder" in found.err
    Path("course").mkdir()
    Path("course/progress.json").write_text("{")
    assert cli.main(check_own) == 0 and "progress.json is damaged" in capsys.readouterr().err
    Path("course/progress.json").write_bytes(b'\xef\xbb\xbf{"6.2": {"passed": true, "tries": 1}}\r\n')
    assert folder.progress(Path("course"))["6.2"].passed
    assert cli.main(["course", "check", "6.2"]) == 2
    assert "writes it, and --file names another one" in capsys.readouterr().err
