"""`cutaway explain`: its numbers check, its lines fit, and nothing in a text or a token is obeyed by the
terminal.
"""

import io
import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

import cutaway
from cutaway.cli import main
from cutaway.commands import cells, explanation_text
from cutaway.commands import explain_asked as asked
from cutaway.commands.cells import bar, drawn, percent, spark
from cutaway.errors import UserError
from cutaway.inspect import explanation, page_data, steering
from cutaway.inspect.edits import Add
from cutaway.inspect.subject import Subject
from cutaway.inspect.trace import Trace
from tests import inputs
from tests.small import SHAPES, WIDTH, Bytes, decoder

TEXT = "the same the same"
STEPS = (
    "1  Tokens", "2  Embeddings", "3  Attention: one score, step by step", "4  Direct logit attribution",
    "5  Logit lens", "6  Residual stream", "7  Next token",
)  # fmt: skip


class Small(SimpleNamespace):
    """A loaded model, small and random."""

    def __init__(self, shape: str = "llama") -> None:
        super().__init__(model=decoder(shape), tokenizer=Bytes())
        self.config = self.model.config

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    @property
    def subject(self) -> Subject:
        return Subject.of(self.model, self.tokenizer)

    def trace(self, ids: list[int], edit: Any = None, names: Any = None) -> Trace:
        return Trace.of(self.model, self.tokenizer, ids, names, edit)

    def chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        return [0, *self.ids(messages[0]["content"]), 0]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Small:
    model = Small()
    monkeypatch.setattr(asked, "model_path", lambda source: source)
    monkeypatch.setattr(cutaway, "load", lambda path: model, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    return model


def explained(shape: str = "llama", text: str = TEXT) -> explanation.Explanation:
    model = decoder(shape)
    return explanation.explain(
        Trace.of(model, Bytes(), Bytes().encode(text), explanation.names(model.config))
    )


def printed(of: explanation.Explanation, width: int = 80) -> str:
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as captured:
        explanation_text.show(of, "small", console)
    return captured.get()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["explain", *arguments])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_score_worked_out_by_hand_is_the_models(shape: str) -> None:
    one = explained(shape)
    a, shown = one.attention, one.attention.score
    trace = Trace.of(decoder(shape), Bytes(), Bytes().encode(TEXT))
    name = f"blocks.{a.layer}.attention"
    assert a.kv_head == a.head // (a.shapes["q"][0] // a.shapes["k"][0])
    assert shown.dot == pytest.approx(sum(q * k for q, k in zip(shown.query, shown.key, strict=True)))
    score = shown.dot * shown.scale
    score = score if shown.softcap is None else shown.softcap * math.tanh(score / shown.softcap)
    assert shown.score == pytest.approx(score)
    at = (a.head, shown.query_position)
    assert shown.score == pytest.approx(float(trace[f"{name}.scores"][*at, shown.key_position]), abs=1e-4)
    visible = [one for one in shown.weights if one.visible]
    highest, total = max(one.score for one in visible), sum(one.exp for one in visible)
    for one in shown.weights:
        assert one.exp == pytest.approx(math.exp(one.score - highest) if one.visible else 0)
        assert one.weight == pytest.approx(one.exp / total)
        assert one.weight == pytest.approx(float(trace.attention(a.layer)[*at, one.position]), abs=1e-5)


@pytest.mark.parametrize("shape", ["llama", "gemma", "sandwich"])
def test_the_pair_that_is_shown_is_rotated_by_its_angle(shape: str) -> None:
    one = explained(shape)
    a, pair = one.attention, one.attention.rope
    assert pair is not None
    trace = Trace.of(
        decoder(shape),
        Bytes(),
        Bytes().encode(TEXT),
        ["*.query_norm", "*.q"] if shape == "gemma" else ["*.attention.query", "*.q"],
    )
    for turn in (pair.query,):
        rotated = complex(*turn.before) * complex(math.cos(turn.angle), math.sin(turn.angle))
        assert (rotated.real, rotated.imag) == pytest.approx(turn.after, abs=1e-6)
        assert turn.angle == pytest.approx(turn.position * pair.radians_per_token)
    q = trace[f"blocks.{a.layer}.attention.q"][a.head, -1]
    assert pair.query.after == pytest.approx([float(q[i]) for i in pair.dimensions])
    if shape == "gemma":
        before = trace[f"blocks.{a.layer}.attention.query_norm"][a.head, -1]
    else:
        before = trace[f"blocks.{a.layer}.attention.query"][-1].reshape(4, -1)[a.head]
    assert pair.query.before == pytest.approx([float(before[i]) for i in pair.dimensions], abs=1e-5)
    assert explained("gpt2").attention.rope is None


@pytest.mark.parametrize("shape", SHAPES)
def test_the_storys_parts_add_up_and_agree(shape: str) -> None:
    one = explained(shape)
    attribution = one.attribution
    total = attribution.embed + attribution.biases + attribution.rest
    total += sum(layer.attention + layer.mlp for layer in attribution.layers)
    assert total == pytest.approx(attribution.logit, abs=1e-6)
    assert attribution.id == one.next[0].id == one.lens[-1].id
    assert attribution.logit == pytest.approx(one.next[0].logit, abs=1e-5)
    assert one.lens[-1].probability == pytest.approx(one.next[0].probability, abs=1e-5)
    assert [len(lengths) for lengths in one.norms] == [len(one.stages)] * len(TEXT)
    assert len(one.stages) == 1 + 2 * one.layers and len(one.lens) == 1 + one.layers
    assert [abs(head.contribution) for head in attribution.heads] == sorted(
        abs(h.contribution) for h in attribution.heads
    )[::-1]


def test_the_chosen_head_reads_a_token_between_the_first_and_the_last() -> None:
    trace = Trace.of(decoder(), Bytes(), Bytes().encode(TEXT))
    found = trace.attribution()
    layer, head, source = explanation.chosen_reading(found)
    assert 0 < source < len(TEXT) - 1
    best = max(float(sources[:, 1:-1].max()) for sources in found.sources)
    assert float(found.sources[layer][head, source]) == best
    for sources in found.sources:
        sources[:, [0, -1]] = 100.0
    assert explanation.chosen_reading(found) == (layer, head, source)


def test_neighbours_are_rows_of_the_table() -> None:
    one = explained()
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
    text = printed(explained(shape), width)
    lines = text.splitlines()
    assert [line.rstrip() for line in lines if line[:1].isdigit()] == list(STEPS)
    assert max(map(cell_len, lines)) <= min(width, cells.WIDTH)
    assert "\x1b" not in text


def test_no_number_is_cut_in_a_narrow_terminal() -> None:
    """At 40 columns bars go and tokens shrink; every number of the wide view is there."""
    one = explained(text="the same")
    numbers = [set(re.findall(r"[−\d.,]*\d%?", printed(one, width))) for width in (40, 200)]
    assert numbers[0] >= {n for n in numbers[1] if "." in n}
    assert max(map(cell_len, printed(one, 40).splitlines())) <= 40
    assert "…" not in printed(one, 40), "what is too long for a column is folded"


class Padded(Bytes):
    """The tokenizer of a model whose table has more rows than there are tokens."""

    def __len__(self) -> int:
        return 200

    def token_bytes(self, id: int) -> bytes:
        if id >= 200:
            raise UserError(f"{id} is no id of this vocabulary")
        return super().token_bytes(id)


@pytest.mark.parametrize("shape", SHAPES)
def test_padded_ids_are_never_shown_or_ranked(shape: str) -> None:
    model = decoder(shape)
    with torch.no_grad():  # the padded rows would win everywhere
        (model.embedding if model.head is None else model.head).weight[200:] *= 10
    trace = Trace.of(model, Padded(), Padded().encode(TEXT), page_data.names(model.config))
    one = explanation.explain(trace, 300)
    assert len(trace.top(300)) == len(one.next) == one.vocabulary == one.embeddings.table[0] == 200
    assert sum(guess.probability for guess in trace.top(300)) == pytest.approx(1)
    ids = [row.id for row in one.lens] + [n.id for e in one.embeddings.tokens for n in e.neighbours]
    assert max(ids) < 200 and int(trace.lens().ids.max()) < 200
    built = page_data.build(trace, "padded")
    assert max(map(int, built.facts["token_texts"])) < 200
    with pytest.raises(UserError, match="token 200 is not in this model's vocabulary of 200"):
        Trace.of(model, Padded(), [200])


@pytest.mark.parametrize("weight", ["blocks.1.mlp.down.weight", "embedding.weight"])
@pytest.mark.parametrize("arguments", [[], ["--json"], ["--html", "page.html"]])
def test_weights_with_nan_are_one_sentence(
    small: Small, capsys, weight: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.no_grad():
        small.model.get_parameter(weight)[0, 0] = float("nan")
    code, out, err = run(capsys, TEXT, *arguments)
    assert code == 1 and out == "" and err.count("\n") == 1 and "NaN or infinity" in err
    assert not list(tmp_path.iterdir())


def test_the_text_may_come_from_a_file_or_standard_input(
    small: Small, capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUTAWAY_THREADS", "1")  # so that what --threads sets is taken back
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = tmp_path / "text.txt"
    file.write_text(f"{TEXT}\n")
    assert json.loads(run(capsys, "--file", str(file), "--json", "--threads", "1")[1])["text"] == TEXT
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert json.loads(run(capsys, "-", "--json")[1])["text"] == TEXT
    assert run(capsys, TEXT, "--threads", "0")[0] == 2


def test_a_terminal_shows_the_tokens_before_the_weights_are_there(
    small: Small, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Small):
        @property
        def config(self) -> Any:
            return small.config

        @property
        def model(self) -> Any:
            print("LOADED")
            return small.model

    slow = Slow.__new__(Slow)
    slow.tokenizer = small.tokenizer
    monkeypatch.setattr(cutaway, "load", lambda path: slow, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    code, out, _ = run(capsys, TEXT)
    out = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert code == 0
    assert out.index("1  Tokens") < out.index("LOADED") < out.index("2  Embeddings")
    assert out.count("1  Tokens") == 1


def test_hostile_text_is_drawn_and_not_obeyed() -> None:
    text = "\x1b[31m\x07\u202e[bold]x\r\n\t [/] 北京🙂e\u0301"
    shown = printed(explained(text=text))
    assert not set(shown) & {"\x1b", "\x07", "\u202e", "\r", "\t"}
    assert "\\x1b" in shown and "\\u202e" in shown and "[bold]" in shown


def test_columns_line_up_whatever_the_script() -> None:
    class Words(Bytes):
        def token_bytes(self, id: int) -> bytes:
            return ["北京", "🙂", "e\u0301", "plain", " a long token that is cut at its end"][id % 5].encode()

    one = explanation.explain(
        Trace.of(decoder(), Words(), [5, 6, 7, 8, 9], explanation.names(decoder().config))
    )
    rows = printed(one).split("7  Next token")[1].splitlines()
    rows = [row for row in rows if "%" in row and "sum to" not in row]
    assert len(rows) == 10 and len({cell_len(row[: row.index("%")]) for row in rows}) == 1


def test_one_token_is_a_story_too() -> None:
    one = explained(text="a")
    assert one.attention.score.weights[0].weight == 1
    text = printed(one)
    assert "1 piece of" in text and "attends to itself" in text and "between the first" not in text


def test_what_rounding_leaves_over_is_called_so() -> None:
    made = explained()
    made = replace(made, attribution=replace(made.attribution, rest=0.011))
    text = " ".join(printed(made).split())
    assert "rounding +0.01" in text and "edits" not in text, "nothing was edited"


def test_many_tokens_are_listed_in_part_and_counted() -> None:
    text = printed(explained(text="x" * 60))
    assert text.count("… 36 more") == 3 and "52 others" in text


def test_the_title_of_a_long_text_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(explained()).startswith(f"{TEXT} → ")
    monkeypatch.setattr(explanation_text, "TITLE", 8)
    assert printed(explained()).startswith("…the same → ")


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
        "recurrent_layers", "attention", "attribution", "lens", "stages", "norms", "next", "engine",
        "engine_reason", "change", "patch", "lenses",
    }  # fmt: skip
    assert document == json.loads(
        json.dumps({"model": "small", **asdict(explained())} | {"next": document["next"]})
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
    assert change["what"] == ["head 1.2 ablated", "layer 0 ablated"]
    before = {one["id"]: one["probability"] for one in document["next"]}
    for one in change["next"]:
        assert one["before"] == pytest.approx(before.get(one["id"], one["before"]), abs=1e-6)
    assert any(abs(one["before"] - one["after"]) > 1e-3 for one in change["next"])
    _, out, _ = run(capsys, TEXT, "--ablate", "1.2")
    assert "8  Edited" in out and "head 1.2 ablated" in out


def test_a_steering_file_is_added(small: Small, capsys, tmp_path) -> None:
    path = tmp_path / "up.safetensors"
    torch.manual_seed(1)
    steering.save(path, [Add(1, (torch.randn(WIDTH) * 10).tolist())])
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
    assert [len(token["recovered"]) for token in patch["tokens"]] == [3, 3]
    assert patch["tokens"][-1]["recovered"][-1] == pytest.approx(1, abs=1e-4)
    _, out, _ = run(capsys, TEXT, "--patch", other)
    assert "8  Activation patching" in out and other in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([""], "empty"),
        (["x" * 65], "65 tokens.*context holds 64"),
        ([TEXT, "--top", "0"], "--top is 0"),
        ([TEXT, "--ablate", "9.1"], "no layer 9"),
        ([TEXT, "--ablate", "heads"], "no part of a model"),
        ([TEXT, "--steer", "up"], "FILE:STRENGTH"),
        ([TEXT, "--steer", "up:much"], "FILE:STRENGTH"),
        ([TEXT, "--steer", "absent:1"], "no file absent"),
        ([TEXT, "--patch", "short"], "17 tokens, the other 5"),
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
