"""Data as users have it: every published layout is read, or refused with what was found and what to do."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cutaway import cli
from cutaway.data import layouts, rows, run_tokenizer
from cutaway.data.conversations import Reader
from cutaway.errors import UserError
from cutaway.train import methods, own_text
from scripts.check import users_data
from tests.training import TEMPLATE, chatting_model

SETS = [each for each in users_data.sets() if each.method != "pretrain"]
KINDS: dict[str, layouts.Kind] = {"sft": "examples", "dpo": "pairs", "kto": "labelled"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chatting_model(tmp_path_factory.mktemp("model") / "base", context=512)


def spoken(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["role"], each["content"]) for each in row["messages"]]


@pytest.mark.parametrize("each", SETS, ids=lambda each: each.path)
def test_every_row_of_a_published_layout_is_an_example(each: users_data.Set, tmp_path: Path) -> None:
    path = tmp_path / each.path
    each.write(path)
    read, kind = Reader(run_tokenizer.of_bytes(), TEMPLATE), KINDS[each.method]
    found = list(rows.rows(path))
    assert len(found) == users_data.ROWS
    for where, row in found:
        plain, _ = layouts.standard(kind, row, where)
        assert layouts.standard(kind, plain, where)[0] == plain
        for item in read.items(kind, plain, where):
            for example in item.documents:
                text = read.tokenizer.decode(example.ids[example.trained].tolist())
                assert text.strip().startswith(("It is ", "t is ")), "the answer alone is trained"


def test_what_becomes_of_each_layout(tmp_path: Path) -> None:
    """The question, its input and the system message, in the order in which they are spoken."""
    made: dict[str, dict[str, Any]] = {}
    for each in SETS:
        each.write(tmp_path / each.path)
        where, row = list(rows.rows(tmp_path / each.path))[1]
        made[each.path] = layouts.standard(KINDS[each.method], row, where)[0]
    system, asked, replied = ("system", "You add."), ("user", "What is 1 + 1?"), ("assistant", "It is 2.")
    assert spoken(made["alpaca_data.json"]) == [("user", "Add the numbers.\n\n1, 1"), replied]
    for path in ("openhermes2_5.json", "1M-GPT4-Augmented.parquet"):
        assert spoken(made[path]) == [system, asked, replied]
    for path in ("no_robots", "faq.csv", "databricks-dolly-15k.jsonl"):
        assert spoken(made[path]) == [asked, replied]
    assert set(made["tldr.jsonl"]) == {"prompt", "completion"}, "text that continues text, as in trl"
    orca = made["orca_rlhf.jsonl"]
    assert spoken({"messages": orca["prompt"] + orca["chosen"]}) == [system, asked, replied]
    for path in ("train_prefs.parquet", "train.jsonl.gz"):
        assert spoken({"messages": made[path]["chosen"]}) == [asked, replied]
        assert spoken({"messages": made[path]["rejected"]}) == [asked, ("assistant", "It is 3.")]
    assert made["kto.parquet"]["label"] is False


@pytest.mark.parametrize(
    ("kind", "row", "sentence"),
    [
        ("examples", {"q": "a", "a": "b"}, r"it has: q, a\): rename its columns to messages, conversations"),
        (
            "examples",
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "`cutaway finetune dpo` trains on such",
        ),
        (
            "examples",
            {"question": "a", "answer": "b", "response": "c"},
            "several answers, response and answer",
        ),
        ("pairs", {"instruction": "a", "output": "b"}, "`cutaway finetune sft` trains on such rows"),
        ("pairs", {"prompt": "a", "completion": "b", "label": True}, "`cutaway finetune kto` trains on such"),
        ("pairs", {"chosen": "b", "rejected": "c"}, r"texts without a prompt \(it has: chosen, rejected\)"),
        ("labelled", {"prompt": "a", "completion": "b", "label": "maybe"}, "no completion with a label"),
        (
            "examples",
            {"conversations": [{"from": "alien", "value": "x"}]},
            "speaks from 'alien'; known: user",
        ),
        ("examples", {"conversations": [{"who": "x", "says": "y"}]}, "from and value; one has who, says"),
        ("examples", {"instruction": "a", "output": "b", "system": 3}, "system is 3; it must be text"),
    ],
)
def test_what_is_ambiguous_is_refused_with_what_was_found(
    kind: layouts.Kind, row: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=f"^here: .*{sentence}|^here: conversations: .*{sentence}"):
        layouts.standard(kind, row, "here")


def test_columns_that_only_some_layouts_have() -> None:
    """A published set has columns for several ways to read it; the conversation wins over the text."""
    whole = {"instruction": "q", "input": "", "output": "a", "text": "Below is an instruction"}
    found, used = layouts.standard("examples", whole, "")
    assert spoken(found) == [("user", "q"), ("assistant", "a")] and "text" not in used
    lima = {"conversations": ["q", "a", "r", "b"]}
    assert [role for role, _ in spoken(layouts.standard("examples", lima, "")[0])] == [
        "user",
        "assistant",
    ] * 2
    cell = {"messages": json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])}
    assert spoken(layouts.standard("examples", cell, "")[0])[0] == ("user", "q"), "a cell of a CSV file"
    done = {"instruction": "q", "completion": "a"}
    assert spoken(layouts.standard("examples", done, "")[0]) == [("user", "q"), ("assistant", "a")]
    for label in (True, 1, "True", "yes"):
        assert layouts.standard("labelled", {"prompt": "q", "response": "a", "label": label}, "")[0]["label"]


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.jsonl", b'{"text": "x"}\n[1]\n', "line 2: is a list"),
        ("a.jsonl", b'{"text": "x"}\n{"text"\n', "line 2: is not JSON"),
        ("a.json", b'[{"text": "x"}, 3]', "item 2: is a int"),
        ("a.json", b'[{"text": "x"}', "is not JSON"),
        ("a.jsonl", b'{"text": "\xff"}', "is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\\ud800"}', "line 2: holds half of a surrogate pair"),
        ("a.csv", b"", "is empty"),
        (
            "a.csv",
            b"question,answer\n1,2\n1,2,3\n",
            "line 3: has more cells than the header, question, answer",
        ),
        ("a.csv", b'question,answer\n1,"2\n', "is not CSV"),
        ("a.parquet", b"PAR1 nonsense", "is not a parquet file that can be read"),
        ("a.xlsx", b"PK", "is not read here: give JSON lines, JSON, CSV"),
        ("a.jsonl.gz", b"no gzip", "is damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(
    name: str, data: bytes, sentence: str, tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(data)
    code = cli.main(
        ["finetune", "sft", str(tmp_path / name), "--model", str(base), "--output", str(tmp_path / "r")]
    )
    error = capsys.readouterr().err
    assert code in (1, 2) and sentence in error and str(tmp_path / name) in error and "Traceback" not in error
    assert not (tmp_path / "r").exists()


def test_files_that_hold_the_same_rows(tmp_path: Path) -> None:
    made = [{"question": "a;b", "answer": "line\nline"}, {"question": "c", "answer": "é"}]
    users_data.lines(made)(tmp_path / "a.jsonl")
    users_data.lines(made)(tmp_path / "b.jsonl.gz")
    users_data.listed(made)(tmp_path / "c.json")
    (tmp_path / "d.json").write_text(json.dumps({"data": made}))
    users_data.sheet(made)(tmp_path / "e.csv")
    users_data.parquet(made)(tmp_path / "f.parquet")
    (tmp_path / "g.tsv").write_text('question\tanswer\na;b\t"line\nline"\nc\té\n')
    for path in sorted(tmp_path.iterdir()):
        assert [row for _, row in rows.rows(path)] == made, path.name
    (tmp_path / "dataset_info.json").write_text("{}")
    assert len(list(rows.rows(tmp_path))) == 2 * 7
    (tmp_path / "one.json").write_text(json.dumps({"messages": [{"role": "user", "content": "q"}]}, indent=1))
    assert [list(row) for _, row in rows.rows(tmp_path / "one.json")] == [["messages"]]


def test_the_part_for_training_is_read_alone_and_the_others_are_named(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = next(each for each in SETS if each.path == "no_robots")
    split.write(tmp_path / "set")
    words = ["finetune", "sft", str(tmp_path / "set"), "--model", str(base), "--check", "--json"]
    assert cli.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == users_data.ROWS and found["unread_files"] == [
        "data/test-00000-of-00001.parquet"
    ]


def test_data_faults_come_before_torch(tmp_path: Path, base: Path) -> None:
    (tmp_path / "bad.csv").write_text("name,value\na,b\n")
    (tmp_path / "good.csv").write_text("question,answer\na,b\n")
    code = (
        "import sys; from cutaway import cli; code = cli.main(sys.argv[1:]); "
        "print('torch' in sys.modules, code)"
    )
    for words, sentence in (
        (["sft"], "name the examples with --data"),
        (["sft", "bad.csv"], "it has: name, value"),
        (["sft", "--data", "nowhere.jsonl"], "there is no such file"),
        (["dpo", "good.csv"], "`cutaway finetune sft` trains on such rows"),
        (["sfft", "good.csv"], "did you mean sft?"),
        (["good.csv"], "name the method before it, as in `cutaway finetune sft good.csv`"),
        (["sft", "good.csv", "--epochs", "1", "--steps", "2"], "give one of them"),
        (["sft", "good.csv", "--output", "bad.csv/run"], "give a folder's name"),
        ([], "name a method and its data"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, "finetune", *words, *(["--model", str(base)] if words else [])],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.split() == ["False", "2"] and sentence in done.stderr, (words, done.stderr)


@pytest.mark.parametrize("path", ["faq.csv", "train_prefs.parquet", "kto.parquet", "mytext", "book.txt"])
def test_the_shortest_command_trains(
    path: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of each kind; scripts/check/users_data.py runs them all."""
    each = next(each for each in users_data.sets() if each.path == path)
    each.write(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    model = [] if each.method == "pretrain" else ["--model", str(base)]
    small = ["--model.width", "32", "--batch-size", "2"] if each.method == "pretrain" else []
    assert cli.main([*each.command[1:], *model, *small, *users_data.QUICK, "--threads", "1"]) == 0
    sentence = capsys.readouterr().err
    assert "2 steps" in sentence
    if each.method == "pretrain":
        assert "MB in" in sentence and "4 layers of width 32" in sentence


# ---- text --------------------------------------------------------------------------------------------------


def test_a_long_text_is_trained_in_pieces(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every token but the first is a target once."""
    text = "The rain in Spain. " * 100
    (tmp_path / "book.txt").write_text(text)
    found = methods.examples({"data": {"path": str(tmp_path / "book.txt"), "context": 64}, "base": str(base)})
    from cutaway.train import examples

    items, report = examples.prepare(found.data, found.objective, found.checkpoint, lambda _: None)
    assert report.texts_in_pieces == 1 and report.left_out_too_long == 0 and len(items) == -(-len(text) // 64)
    assert sum(int(item.documents[0].trained[1:].sum()) for item in items) == len(text) + 1
    assert any("trained in pieces" in warning for warning in report.warnings())


@pytest.mark.parametrize(
    ("size", "preset", "tokenizer"),
    [(50_000, 128, "bytes"), (1_000_000, 256, "bpe:1024"), (60_000_000, 320, "bpe:8192")],
)
def test_the_model_follows_the_text(size: int, preset: int, tokenizer: str) -> None:
    made = own_text.OwnText("mytext", 3, size, "text").entries()
    assert made["model"]["width"] == preset and made["data"]["tokenizer"] == tokenizer
    assert made["data"]["sources"] == [{"path": "mytext", "field": "text"}]
    assert made["steps"] >= 200


def test_text_of_ones_own_is_measured_and_its_column_found(tmp_path: Path) -> None:
    users_data.lines([{"id": "1", "content": "word " * 900, "url": "u"}])(tmp_path / "pages.jsonl")
    (tmp_path / "picture.png").write_bytes(b"\0" * 9000)
    found = own_text.OwnText.of(str(tmp_path))
    assert found.field == "content" and found.files == 1 and 4500 < found.bytes < 5000
    assert own_text.is_text(str(tmp_path)) and not own_text.is_text("nano")
    (tmp_path / "pages.jsonl").write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match="too few to learn from"):
        own_text.OwnText.of(str(tmp_path))
    talk = [{"messages": [{"role": "user", "content": "word " * 900}]}]
    users_data.lines(talk)(tmp_path / "pages.jsonl")
    with pytest.raises(UserError, match=r"it has: messages.*cutaway finetune sft"):
        own_text.OwnText.of(str(tmp_path))
