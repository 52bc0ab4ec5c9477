"""docs/architecture.md names the files that a prompt and a chat request run through; each one is there."""

import re
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import cutaway
from tests import serving

ROOT = Path(__file__).parent.parent
ROOMS = ("serve/", "generate/", "runtime/", "tokenizer/chat/")


def steps(title: str) -> list[list[str]]:
    """The steps that a section lists, in order: the files of each."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split(f"## {title}")[1]
    found = re.findall(r"^\d+\. ((?:`cutaway/\S+`(?:, )?)+): \S", text.split("\n## ")[0], re.M)
    return [re.findall(r"`cutaway/(\S+)`", names) for names in found]


def section(title: str) -> list[str]:
    """The files that a section lists, in order."""
    return [name for names in steps(title) for name in names]


def traced(files: set[str]) -> Any:
    """A trace function that adds each file of the package whose functions are called."""
    package = str(Path(cutaway.__file__).parent) + "/"

    def trace(frame: FrameType, _event: str, _value: Any) -> None:
        name = frame.f_code.co_filename
        if name.startswith(package) and frame.f_code.co_name != "<module>":
            files.add(name.removeprefix(package))

    return trace


def listed(files: set[str], names: list[str]) -> set[str]:
    """Which of the files a list names, itself or by their folder."""
    return {file for file in files if any(file == n or (n[-1] == "/" and file.startswith(n)) for n in names)}


def test_every_named_file_exists() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    names = re.findall(r"`(cutaway/\S+)`", text)
    assert len(names) > 25
    for name in names:
        path = ROOT / name
        assert path.is_dir() if name.endswith("/") else path.is_file(), name


def test_each_question_names_a_file() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("## Where is ...?")[1]
    rows = re.findall(r"^\| ([^|]+\?) \| (.+) \|$", text.split("\n## ")[0], re.M)
    assert len(rows) >= 20
    for question, answer in rows:
        assert re.findall(r"`(?:cutaway|native)/\S+`", answer), question
    native = re.findall(r"`(native/\S+)`", text)
    assert native and all((ROOT / name).is_file() for name in native)


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_request_runs_through_the_listed_files(stream: bool) -> None:
    names, files = section("A request's way"), set[str]()
    assert len(steps("A request's way")) <= 15
    lm = serving.model()
    threading.settrace(traced(files))
    try:
        with serving.running(lm) as server:
            body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "stream": stream}
            assert server.post("/v1/chat/completions", body).status_code == 200  # loads what is loaded once
            files.clear()
            assert server.post("/v1/chat/completions", body).status_code == 200
            used = {file for file in files if file.startswith(ROOMS)}
    finally:
        threading.settrace(None)  # pyright: ignore[reportArgumentType]
    assert used == listed(used, names)
    whole = {"serve/json_body.py"} if stream else set()  # a streamed answer is written piece by piece
    unused = [name for name in names if name[-1] != "/" and name not in used | whole]
    if lm.engine_choice[0] == "runtime":
        assert not unused


def test_a_prompt_runs_through_the_listed_files() -> None:
    import sys

    names, files, lm = section("A prompt's way"), set[str](), serving.model()
    lm.generate("Hello", max_tokens=1)
    before = sys.gettrace()
    sys.settrace(traced(files))
    try:
        lm.generate("Hello", max_tokens=3, temperature=1, seed=1)
    finally:
        sys.settrace(before)
    used = {
        file
        for file in files
        if file.startswith(("generate/", "runtime/", "lm.py", "continuation.py", "engines.py"))
    }
    assert used == listed(used, names)
    if lm.engine_choice[0] == "runtime":  # speculative.py runs where it is asked for, request.py holds data
        assert set(names) - used <= {
            "generate/speculative.py",
            "generate/batch/request.py",
            "tokenizer/tokenizer.py",
        }
