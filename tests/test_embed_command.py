"""`cutaway embed`: trained, asked and evaluated from the command line; Ctrl-C keeps what was learned."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cutaway.cli import main
from cutaway.weights import vectors
from tests import inputs
from tests.test_word2vec import text


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embed") / "corpus.txt"
    path.write_text(text(6000), encoding="utf-8")
    return path


def output(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> str:
    assert main(["embed", *map(str, arguments)]) == code
    shown = capsys.readouterr()
    return shown.out if code == 0 else shown.err


@pytest.mark.parametrize("kind", ["skipgram", "cbow", "fasttext", "glove"])
def test_every_kind_is_trained_and_asked(
    kind: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "words.safetensors"
    printed = json.loads(
        output(
            capsys,
            "train",
            file,
            "-o",
            out,
            "--kind",
            kind,
            "--dim",
            "8",
            "--epochs",
            "2",
            "--watch",
            "w1",
            "--json",
        )
    )
    assert printed["finished"] and printed["done"] == printed["total"] and len(printed["watched"]["w1"]) >= 2
    near = json.loads(output(capsys, "neighbors", out, "w1", "--count", "3", "--json"))["w1"]
    assert len(near) == 3 and near == printed["watched"]["w1"][-1]["near"][:3]
    assert len(output(capsys, "analogy", out, "w1", "w2", "w3").splitlines()) == 5


def test_hierarchical_softmax_and_every_format(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tables = []
    for name in ("a.vec", "a.bin", "a.txt"):
        output(capsys, "train", file, "-o", tmp_path / name, "--hierarchical", "--dim", "8", "--threads", "1")
        tables.append(vectors.read_vectors(tmp_path / name).table)
    assert (tables[0] == tables[1]).all() and (tables[0] == tables[2]).all()


def test_mistakes_are_sentences(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "words.vec"
    for arguments, sentence in [
        (("--hierarchical", "--negative", "5"), "give one of them"),
        (("--negative", "0"), "or --hierarchical"),
        (("--kind", "glove", "--sample", "0.1"), "glove fits counts"),
        (("--x-max", "5"), "is glove's"),
        (("--watch", "nothere"), "cannot be watched"),
        (("--dim", "0"), "dim is 0"),
        (("--min-count", "1000000"), "lower --min-count"),
    ]:
        assert sentence in output(capsys, "train", file, "-o", out, *arguments, code=2)
    assert not out.exists()
    out.write_text("mine")
    assert "--force" in output(capsys, "train", file, "-o", out, code=2)
    assert "its folder does not exist" in output(capsys, "train", file, "-o", tmp_path / "no/a.vec", code=2)
    output(capsys, "train", file, "-o", out, "--force", "--dim", "4", "--epochs", "1")
    assert "did you mean 'w1" in output(capsys, "neighbors", out, "w1x", code=2)


def test_a_folder_is_its_text_files(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = file.read_text("utf-8").splitlines(keepends=True)
    folder = tmp_path / "novels"
    for name, part in {"b.txt": lines[5:], "a/z.txt": lines[:5]}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(part).removesuffix("\n"), "utf-8")
    (folder / "picture").write_bytes(b"\x89PNG\0")
    for kind in ("skipgram", "glove"):
        options = ("--kind", kind, "--dim", "4", "--epochs", "1", "--threads", "1", "--force")
        output(capsys, "train", file, "-o", tmp_path / "one.vec", *options)
        assert main(["embed", "train", str(folder), "-o", str(tmp_path / "two.vec"), *options]) == 0
        assert f"{folder}: 2 text files, 1 skipped as no text\n" in capsys.readouterr().err
        assert (tmp_path / "one.vec").read_bytes() == (tmp_path / "two.vec").read_bytes()
    (tmp_path / "empty" / ".hidden").mkdir(parents=True)
    for verb in ("embed", "tokenizer"):
        assert main([verb, "train", str(tmp_path / "empty"), "--output", str(tmp_path / "no.json")]) == 2
        assert "empty: holds no text file" in capsys.readouterr().err


def test_evaluation_by_given_files(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, pairs, four = tmp_path / "a.txt", tmp_path / "pairs", tmp_path / "four"
    output(capsys, "train", file, "-o", out, "--dim", "4", "--epochs", "1")
    pairs.write_text("w1\tw2\t3\nw1\tw3\t5\nw2\tw4\t1\nw1\tabsent\t1\n")
    four.write_text(": all\nw1 w2 w3 w4\nw1 w2 absent w4\n")
    printed = json.loads(output(capsys, "evaluate", out, "--wordsim", pairs, "--analogy", four, "--json"))
    assert printed["wordsim"]["used"] == 3 and printed["analogy"]["used"] == 1 and "simlex" not in printed


def test_a_models_own_table(capsys: pytest.CaptureFixture[str]):
    smollm2 = inputs.path("smollm2")
    near = json.loads(output(capsys, "neighbors", smollm2, " king", "--json"))[" king"]
    assert {one["word"] for one in near[:5]} >= {" King", " queen"}
    assert "there is no vector" in output(capsys, "neighbors", smollm2, "no such token", code=2)
    assert main(["embed", "neighbors", str(smollm2), "king"]) == 0  # a token of its own, seldom meant
    assert "' king', as it is inside a sentence, is another token" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_saves_what_was_learned(file: Path, tmp_path: Path):
    out = tmp_path / "words.vec"
    command = [
        sys.executable,
        "-m",
        "cutaway",
        "embed",
        "train",
        str(file),
        "-o",
        str(out),
        "--epochs",
        "10000",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=_interruptible) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "epoch " in line:
                break
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read()
        assert running.wait(60) == 130
    assert "what was learned is saved" in rest
    assert len(vectors.read_vectors(out)) > 50


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
