"""`cutaway bench`: what it says of a machine, and what it cannot measure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import cutaway
from cutaway import cli, native
from cutaway.commands import bench
from cutaway.runtime import measure
from tests.small import model_file
from tests.test_native import python


@pytest.mark.skipif(not native.available(), reason="the native core is not built")
def test_what_a_token_reads_and_multiplies(tmp_path: Path) -> None:
    lm: Any = cutaway.load(model_file(tmp_path / "model.gguf", tied=False), engine="runtime")
    engine, token = lm.engine, lm.engine.packed.token_nbytes
    page = engine.page_bytes / engine.page
    for test, count in {(512, 0, 0, 1): 512, (0, 32, 0, 8): 8, (0, 32, 0, 1): 1}.items():
        assert measure.bytes_a_token(engine, measure.Test(*test)) == token / count
    assert measure.bytes_a_token(engine, measure.Test(tokens=32, depth=200)) == token + 200 * page
    assert measure.bytes_a_token(engine, measure.Test(prompt=10, depth=200)) == token / 10 + 20 * page
    blocks = sum(math.prod(s) for n, s in lm.config.weights().items() if n[:6] == "blocks" and len(s) == 2)
    head = lm.config.vocab * lm.config.width
    assert measure.products_a_token(engine, measure.Test(tokens=4)) == blocks + head
    assert measure.products_a_token(engine, measure.Test(prompt=100)) == blocks + head / 100


def test_tests_have_llama_benchs_names() -> None:
    tests = bench._tests([512, 0], [128], [0, 4096], [1, 8])
    deep = ["pp512 @ d4096", "tg128 @ d4096", "tg128 @ d4096 x 8"]
    assert [test.name for test in tests] == ["pp512", "tg128", "tg128 x 8", *deep]


@pytest.mark.skipif(not native.available(), reason="the native core is not built")
def test_each_speed_has_its_row_and_a_peer_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, peer, rows = model_file(tmp_path / "model.gguf"), tmp_path / "llama-bench", tmp_path / "rows.jsonl"
    peer.write_text('#!/bin/sh\necho "$@" >> $(dirname $0)/asked; echo \'[{"avg_ts": 2.0}]\'\n')
    peer.chmod(0o755)
    words = ["bench", str(model), *["-p", "16", "-n", "4", "-d", "0,8", "--texts", "1,2", "-r", "1"]]
    assert cli.main([*words, "--peer", str(peer), "--output", str(rows), "--json", "-t", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["test"] for row in found["rows"]] == [
        *("pp16", "tg4", "tg4 x 2", "pp16 @ d8", "tg4 @ d8", "tg4 @ d8 x 2"),
    ]
    for row in found["rows"]:
        assert row["tokens_per_second"] == max(row["rounds"]) > 0 < row["of_reading"] and row["threads"] == 1
        assert row["peer"] == (None if row["test"].endswith("x 2") else 2.0)
        assert row["ratio"] in (None, row["tokens_per_second"] / 2)
    kept = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["test"] for row in kept] == [row["test"] for row in found["rows"]]
    assert {"processor", "system", "load", "version"} < set(kept[0])
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 4 and asked[2].endswith("-t 1 -r 1 -o json -p 16 -n 0 -d 8")
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "threads" in lines[0] and lines[1].split() == [
        "test",
        "tokens/s",
        "of",
        "reading",
        "of",
        "products",
    ]
    assert [line.split()[0] for line in lines[2:5]] == ["pp16", "tg4", "tg4"]


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
        (["--threads", "0"], "--threads is '0': give numbers from 1 up, between commas"),
        (["--depth", "deep"], "--depth is 'deep': give numbers from 0 up, between commas"),
        (["-p", "0", "-n", "0"], "--prompt and --tokens are both 0: nothing is left to measure"),
        (["--rounds", "0"], "--rounds is 0: give a number from 1 up"),
        (["--peer", "absent"], "--peer absent: there is no such program"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["bench", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and sentence in captured.err and captured.err.count("\n") == 1
