"""What a verb will refuse it refuses before its work: the work is replaced by a failure of the test."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cutaway import cli
from cutaway.commands import arena, bench
from cutaway.compare import sweep
from cutaway.evaluate import run as evaluation
from cutaway.tokenizer.word_counts import WordCounts
from tests.training import chatting_model

ANSWERS = arena.games, "answers"
EXPERIMENT = """
task: {kind: parity, length: 4}
model: {width: 32, context: 4, blocks: [{attention: {kind: mha, heads: 4, key_size: 8}, mlp: {hidden: 32}}]}
arms: [{name: plain}, {name: odd, changes: [mlp.activation=nonsense]}]
steps: 2
"""


def never(*_: Any, **__: Any) -> Any:
    pytest.fail("the work was begun first")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chatting_model(tmp_path_factory.mktemp("model") / "base")


@pytest.mark.parametrize(
    ("words", "work", "sentence"),
    [
        ("attack DECODER --output a-file/report", (cli, "_unused"), "give a folder's name"),
        ("arena DECODER ENCODER --prompts a-file --judge judge.py", ANSWERS, "is an encoder"),
        ("bench DECODER --output nowhere/rows.jsonl", (bench, "_rows"), "its folder does not exist"),
        ("compare experiment.yaml --output runs/c", (sweep, "run"), "activation"),
        ("compare mqar --output a-file/c", (sweep, "run"), "give a folder's name"),
        ("eval DECODER --tasks file:ask.jsonl --output nowhere/x", (evaluation, "run"), "does not exist"),
        ("eval DECODER --tasks file:ask.jsonl --against ENCODER", (evaluation, "run"), "is an encoder"),
        ("eval DECODER --tasks file:ask.jsonl --samples 2", (evaluation, "run"), "temperature above 0"),
        ("sae acts --output a-file/sae", (cli, "_unused"), "give a folder's name"),
        ("tokenizer train a-file --output words.xyz", (WordCounts, "of"), "which format to write"),
        ("tokenizer train a-file --size 256", (WordCounts, "of"), "256 bytes are tokens"),
    ],
    ids=lambda value: value.partition(" --")[0] if isinstance(value, str) else "",
)  # fmt: skip
def test_a_refusal_comes_before_the_work(
    words: str,
    work: tuple[Any, str],
    sentence: str,
    decoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a-file").write_text("What is 2 + 2?")
    (tmp_path / "experiment.yaml").write_text(EXPERIMENT)
    (tmp_path / "ask.jsonl").write_text('{"prompt": "2 + 2?", "answer": "4"}\n')
    shutil.copy(Path(__file__).parent.parent / "docs" / "examples" / "judge.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(*work, never, raising=False)
    models: dict[str, Callable[[], str]] = {
        "DECODER": lambda: str(decoder),
        "ENCODER": lambda: "minilm",
    }
    line = [models[word]() if word in models else word for word in words.split()]
    assert cli.main(line) == 2
    assert sentence in capsys.readouterr().err
