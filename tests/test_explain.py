"""`cutaway explain`: its numbers check, its lines fit, and nothing in a text or a token is obeyed by the
terminal.
"""

import json
import math
import re
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

import cutaway
from cutaway.cli import main
from cutaway.commands import explain as verb
from cutaway.commands import explanation_text
from cutaway.commands.explanation_text import bar, drawn, percent, spark
from cutaway.inspect import explanation, steer
from cutaway.inspect.trace import Trace
from tests import inputs
from tests.small import SHAPES, WIDTH, Bytes, decoder

TEXT = "the same the same"
STEPS = (
    "1  Tokens", "2  Embeddings", "3  Attention: one score by hand", "4  Strongest heads", "5  The lens",
    "6  The residual stream", "7  The next token",
)  # fmt: skip


class Small(SimpleNamespace):
    """A loaded model, small and random."""

    def __init__(self, shape: str = "llama") -> None:
        super().__init__(model=decoder(shape), tokenizer=Bytes())

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        return [0, *self.ids(messages[0]["content"]), 0]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Small:
    model = Small()
    monkeypatch.setattr(verb, "model_path", lambda source: source)
    monkeypatch.setattr(cutaway, "load", lambda path, engine: model, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    return model


def told(shape: str = "llama", text: str = TEXT) -> explanation.Story:
    model = decoder(shape)
    return explanation.tell(Trace.of(model, Bytes(), Bytes().encode(text), explanation.names(model)))


def printed(of: explanation.Story, width: int = 80) -> str:
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as captured:
        explanation_text.show(of, "small", console)
    return captured.get()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["explain", *arguments])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_score_worked_out_by_hand_is_the_models(shape: str) -> None:
    one = told(shape)
    a, worked = one.attention, one.attention.worked
    trace = Trace.of(decoder(shape), Bytes(), Bytes().encode(TEXT))
    name = f"blocks.{a.layer}.attention"
    assert a.kv_head == a.head // (a.shapes["q"][0] // a.shapes["k"][0])
    assert worked.dot == pytest.approx(sum(q * k for q, k in zip(worked.query, worked.key, strict=True)))
    score = worked.dot * worked.scale
    score = score if worked.softcap is None else worked.softcap * math.tanh(score / worked.softcap)
    assert worked.score == pytest.approx(score)
    at = (a.head, worked.query_position)
    assert worked.score == pytest.approx(float(trace[f"{name}.scores"][*at, worked.key_position]), abs=1e-4)
    seen = [share for share in worked.shares if share.seen]
    highest, total = max(share.score for share in seen), sum(share.weight for share in seen)
    for share in worked.shares:
        assert share.weight == pytest.approx(math.exp(share.score - highest) if share.seen else 0)
        assert share.share == pytest.approx(share.weight / total)
        assert share.share == pytest.approx(float(trace.attention(a.layer)[*at, share.position]), abs=1e-5)


@pytest.mark.parametrize("shape", ["llama", "gemma", "sandwich"])
def test_the_pair_that_is_shown_is_turned_as_it_says(shape: str) -> None:
    one = told(shape)
    a, pair = one.attention, one.attention.rope
    assert pair is not None
    trace = Trace.of(
        decoder(shape),
        Bytes(),
        Bytes().encode(TEXT),
        ["*.query_norm", "*.q"] if shape == "gemma" else ["*.attention.query", "*.q"],
    )
    for turn in (pair.query,):
        turned = complex(*turn.before) * complex(math.cos(turn.angle), math.sin(turn.angle))
        assert (turned.real, turned.imag) == pytest.approx(turn.after, abs=1e-6)
        assert turn.angle == pytest.approx(turn.position * pair.radians_per_token)
    q = trace[f"blocks.{a.layer}.attention.q"][a.head, -1]
    assert pair.query.after == pytest.approx([float(q[i]) for i in pair.dimensions])
    if shape == "gemma":
        before = trace[f"blocks.{a.layer}.attention.query_norm"][a.head, -1]
    else:
        before = trace[f"blocks.{a.layer}.attention.query"][-1].view(4, -1)[a.head]
    assert pair.query.before == pytest.approx([float(before[i]) for i in pair.dimensions], abs=1e-5)
    assert told("gpt2").attention.rope is None


@pytest.mark.parametrize("shape", SHAPES)
def test_the_storys_parts_add_up_and_agree(shape: str) -> None:
    one = told(shape)
    moved = one.moved
    total = (
        moved.embed + moved.biases + moved.rest + sum(layer.attention + layer.mlp for layer in moved.layers)
    )
    assert total == pytest.approx(moved.logit, abs=1e-6)
    assert moved.id == one.next[0].id == one.lens[-1].id
    assert moved.logit == pytest.approx(one.next[0].logit, abs=1e-5)
    assert one.lens[-1].probability == pytest.approx(one.next[0].probability, abs=1e-5)
    assert [len(lengths) for lengths in one.norms] == [len(one.stages)] * len(TEXT)
    assert len(one.stages) == 1 + 2 * one.layers and len(one.lens) == 1 + one.layers
    assert [abs(head.contribution) for head in moved.heads] == sorted(
        abs(h.contribution) for h in moved.heads
    )[::-1]


def test_the_chosen_head_reads_a_token_between_the_first_and_the_last() -> None:
    trace = Trace.of(decoder(), Bytes(), Bytes().encode(TEXT))
    found = trace.attribution()
    layer, head, source = explanation.chosen(found)
    assert 0 < source < len(TEXT) - 1
    best = max(float(sources[:, 1:-1].max()) for sources in found.sources)
    assert float(found.sources[layer][head, source]) == best
    for sources in found.sources:
        sources[:, [0, -1]] = 100.0
    assert explanation.chosen(found) == (layer, head, source)


def test_neighbours_are_rows_of_the_table() -> None:
    one = told()
    table = decoder().embedding.weight.detach()
    for token, embedding in zip(one.tokens, one.embeddings.tokens, strict=True):
        assert embedding.norm == pytest.approx(float(table[token.id].norm()), rel=1e-5)
        cosines = torch.cosine_similarity(table, table[token.id][None])
        cosines[token.id] = -1
        assert embedding.neighbours[0].id == int(cosines.argmax())
        assert embedding.neighbours[0].cosine == pytest.approx(float(cosines.max()), abs=1e-5)


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_step_is_printed_and_fits(shape: str, width: int) -> None:
    text = printed(told(shape), width)
    lines = text.splitlines()
    assert [line.rstrip() for line in lines if line[:1].isdigit()] == list(STEPS)
    assert max(map(cell_len, lines)) <= min(width, explanation_text.WIDTH)
    assert "\x1b" not in text


def test_hostile_text_is_drawn_and_not_obeyed() -> None:
    text = "\x1b[31m\x07\u202e[bold]x\r\n\t [/] 北京🙂e\u0301"
    shown = printed(told(text=text))
    assert not set(shown) & {"\x1b", "\x07", "\u202e", "\r", "\t"}
    assert "\\x1b" in shown and "\\u202e" in shown and "[bold]" in shown


def test_columns_line_up_whatever_the_script() -> None:
    class Words(Bytes):
        def token_bytes(self, id: int) -> bytes:
            return ["北京", "🙂", "e\u0301", "plain", " a long token that is cut at its end"][id % 5].encode()

    one = explanation.tell(Trace.of(decoder(), Words(), [5, 6, 7, 8, 9], explanation.names(decoder())))
    rows = printed(one).split("7  The next token")[1].splitlines()
    rows = [row for row in rows if "%" in row and "hold" not in row]
    assert len(rows) == 10 and len({cell_len(row[: row.index("%")]) for row in rows}) == 1


def test_one_token_is_a_story_too() -> None:
    one = told(text="a")
    assert one.attention.worked.shares[0].share == 1
    text = printed(one)
    assert "1 piece that" in text and "looks at itself" in text and "between the first" not in text


def test_many_tokens_are_listed_in_part_and_it_is_said() -> None:
    text = printed(told(text="x" * 60))
    assert text.count("… 36 more") == 3 and "52 others" in text


def test_the_title_of_a_long_text_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(told()).startswith(f"{TEXT} → ")
    monkeypatch.setattr(story_text, "TITLE", 8)
    assert printed(told()).startswith("…the same → ")


def test_drawing() -> None:
    assert drawn(" a\n\x7f\u200b\u0301") == "␣a\\n\\x7f\\u200b\u0301" and drawn("\u0301") == "◌\u0301"
    assert bar(0.5, 4) == "██" and bar(2, 3) == "███" and bar(-1, 3) == "" and bar(0.5625, 2) == "█▏"
    assert spark([0, 0.5, 1, -1], 1) == "·▅█·"
    assert percent(0.0001).plain == "<0.1%" and percent(0).plain == "0.0%" and percent(0.123).plain == "12.3%"


def test_piped_output_has_no_colours_and_no_loose_ends(small: Small, capsys) -> None:
    code, out, err = run(capsys, TEXT)
    assert code == 0 and err == ""
    assert out.splitlines()[0].startswith("the same the same → ")
    assert "\x1b" not in out and not any(line.endswith(" ") for line in out.splitlines())


def test_json_is_the_whole_story(small: Small, capsys) -> None:
    code, out, _ = run(capsys, TEXT, "--json", "--top", "3", "--model", "small")
    document = json.loads(out)
    assert code == 0
    assert set(document) == {
        "model", "layers", "width", "heads", "vocabulary", "text", "tokens", "merges", "embeddings",
        "memories", "attention", "moved", "lens", "stages", "norms", "next", "change", "patch",
    }  # fmt: skip
    assert document == json.loads(
        json.dumps({"model": "small", **asdict(told())} | {"next": document["next"]})
    )
    assert len(document["next"]) == 3 and document["text"] == TEXT and document["change"] is None


def test_chat_goes_through_the_template(small: Small, capsys) -> None:
    _, out, _ = run(capsys, "hi", "--chat", "--json")
    tokens = json.loads(out)["tokens"]
    assert [token["special"] for token in tokens] == [True, False, False, True]


def test_a_part_is_taken_out_and_the_change_shown(small: Small, capsys) -> None:
    _, out, _ = run(capsys, TEXT, "--json", "--ablate", "1.2", "--ablate", "0")
    document = json.loads(out)
    change = document["change"]
    assert change["what"] == ["head 1.2 taken out", "layer 0 skipped"]
    before = {one["id"]: one["probability"] for one in document["next"]}
    for one in change["next"]:
        assert one["before"] == pytest.approx(before.get(one["id"], one["before"]), abs=1e-6)
    assert any(abs(one["before"] - one["after"]) > 1e-3 for one in change["next"])
    _, out, _ = run(capsys, TEXT, "--ablate", "1.2")
    assert "8  Changed" in out and "head 1.2 taken out" in out


def test_a_steering_file_is_added(small: Small, capsys, tmp_path) -> None:
    path = tmp_path / "up.safetensors"
    torch.manual_seed(1)
    steer.save(path, {"blocks.1.out": torch.randn(WIDTH) * 10})
    for strength, moves in (("0", False), ("0.8", True), ("-2", True)):
        _, out, _ = run(capsys, TEXT, "--json", "--steer", f"{path}:{strength}")
        rows = json.loads(out)["change"]["next"]
        assert any(abs(one["before"] - one["after"]) > 1e-3 for one in rows) == moves


def test_a_patch_tells_where_the_answers_part(small: Small, capsys) -> None:
    other = "the tame the same"
    _, out, _ = run(capsys, TEXT, "--json", "--patch", other)
    patch = json.loads(out)["patch"]
    assert patch["other"] == other
    assert [token["position"] for token in patch["tokens"]] == [4, 16]
    assert [len(token["moved"]) for token in patch["tokens"]] == [3, 3]
    assert patch["tokens"][-1]["moved"][-1] == pytest.approx(1, abs=1e-4)
    _, out, _ = run(capsys, TEXT, "--patch", other)
    assert "8  Patched" in out and other in out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([""], "empty"),
        (["x" * 65], "65 tokens.*at most 64"),
        ([TEXT, "--top", "0"], "--top is 0"),
        ([TEXT, "--ablate", "9.1"], "no layer 9"),
        ([TEXT, "--ablate", "heads"], "no part"),
        ([TEXT, "--steer", "up"], "FILE:STRENGTH"),
        ([TEXT, "--steer", "up:much"], "FILE:STRENGTH"),
        ([TEXT, "--steer", "absent:1"], "no file absent"),
        ([TEXT, "--patch", "short"], "17, the other 5"),
        ([TEXT, "--patch", TEXT], "the same"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(
    small: Small, capsys, arguments: list[str], why: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and err.startswith("cutaway: ") and err.count("\n") == 1
    assert re.search(why, err)


def test_smollm2_explains_itself(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    source = str(inputs.path("smollm2"))
    code, out, _ = run(capsys, "The capital of France is", "--model", source)
    assert code == 0 and all(step in out for step in STEPS)
    assert max(map(cell_len, out.splitlines())) <= 80
    assert out.startswith("The capital of France is → Paris")
    assert "Head 23.4" in out and "␣Paris leads from block 29 on" in " ".join(out.split())
    _, out, _ = run(capsys, "so <|im_end|> is text", "--model", source, "--json")
    document: dict[str, Any] = json.loads(out)
    assert not any(token["special"] for token in document["tokens"])
    assert document["merges"] and document["text"] == "so <|im_end|> is text"
