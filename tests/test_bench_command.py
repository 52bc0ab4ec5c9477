"""`cutaway bench`: what it says of a machine, and what it cannot measure."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import cutaway
from cutaway import cli, native
from cutaway.commands import bench
from tests.test_native import python

FOUND = {
    "decode": 400.0,
    "decode at 2000": 200.0,
    "8 texts": 960.0,
    "read 512": 2048.0,
    "bytes a token": 100e6,
    "bytes a second": 50e9,
    "fraction of reading": 0.8,
}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A model of 100 MB a token, whose keys and values take 25,000 bytes a position."""
    engine = SimpleNamespace(plan=SimpleNamespace(nbytes=150e6), page_bytes=128 * 25_000, page=128)
    monkeypatch.setattr(bench, "model_path", Path)
    monkeypatch.setattr(bench, "figures", lambda _: FOUND)
    monkeypatch.setattr(native, "why_not", lambda: None)
    monkeypatch.setattr(native, "isa", lambda: "avx2")
    monkeypatch.setitem(vars(cutaway), "load", lambda *_, **__: SimpleNamespace(engine=engine))
    return engine


def test_each_speed_is_printed_with_its_limit(measured: SimpleNamespace, capsys: pytest.CaptureFixture):
    assert cli.main(["bench", "some.gguf", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # 200/s of 100 MB and 2,000 positions; 960 in passes of eight, and 2,048 of 512, that read all 150 MB.
    expected = {"decode": 0.8, "decode at 2000": 0.6, "8 texts": 0.36, "read 512": 0.012}
    assert found["fraction_of_bandwidth"] == pytest.approx(expected)
    memory = ["memory", "memory", "arithmetic", "arithmetic"]
    assert list(found["limit"].values()) == memory and found["tokens_per_second"]["8 texts"] == 960
    assert cli.main(["bench", "some.gguf"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "400.0 tokens/s,  80% of reading: limited by memory" in lines[1]
    assert "2048.0 tokens/s,   1% of reading: limited by arithmetic" in lines[4]
    assert "100 MB of weights" in lines[5] and "50.0 GB/s" in lines[5]


def test_without_the_core_there_is_nothing_to_measure():
    run = python("import sys; from cutaway.cli import main; sys.exit(main(['bench']))", CUTAWAY_PURE="1")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == (
        "cutaway: Only the native runtime is measured: the native core is off, because CUTAWAY_PURE is set.\n"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["absent.gguf"], "absent.gguf: there is no such file or folder"),
        (["one", "two"], "It takes no more words: 'two'"),
        (["--threads", "3"], "Unknown option: --threads"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["bench", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and sentence in captured.err and captured.err.count("\n") == 1
