"""`cutaway attention`: what it lists is what the folder holds and what the mechanisms really cost; what it
draws is its real mask.
"""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway.attention import mha
from cutaway.attention.common import usual
from cutaway.attention.common.cost import at
from cutaway.attention.common.mask_plot import draw
from cutaway.attention.common.registry import Sizes, kind, kinds
from cutaway.attention.common.visibility import Positions, mask
from cutaway.attention.modules.dsa import best
from cutaway.cli import main
from cutaway.commands import attention as verb
from cutaway.errors import UserError
from cutaway.inspect import distance
from cutaway.inspect.how import alignment
from cutaway.position import alibi, rope, scaling
from tests.laws.mechanisms import ALL, KINDS, SOFTMAX, attention
from tests.small import decoder, model_file

SIZES = Sizes(width=32, heads=4, groups=2, key_size=8, value_size=8)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "model_path", lambda source: source)
    monkeypatch.setattr(cutaway, "load", lambda path: decoder(), raising=False)
    monkeypatch.setenv("COLUMNS", "100")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["attention", *arguments])
    return code, *capsys.readouterr()


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, err = run(capsys, "show", *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def drawn(out: str) -> list[list[bool]]:
    """The matrix of a drawing."""
    lines = [line[4:] for line in out.splitlines() if set(line[4:]) & {verb.SEEN, verb.HIDDEN}]
    return [[c == verb.SEEN for c in line.replace(" ", "")] for line in lines]


def test_every_mechanism_of_the_folder_is_listed(capsys, small) -> None:
    code, out, err = run(capsys, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert [row["kind"] for row in document["mechanisms"]] == ALL
    assert document["sizes"] == {"d": 32, "h": 4, "g": 2, "k": 8, "v": 8}
    code, out, err = run(capsys)
    assert code == 0 and max(map(len, out.splitlines())) <= 100
    for name in ALL:
        assert f"\n{name}  {kind(name).summary[:30]}" in f"\n{out}"


def test_a_file_without_its_cost_is_noticed() -> None:
    for one in kinds():
        assert one.cost.prefill and one.summary.endswith("."), one.name
        one.like(SIZES, {})


@torch.no_grad()
def test_what_it_says_a_token_costs_is_what_the_state_takes(capsys, small) -> None:
    document = json.loads(run(capsys, "--json", "--tokens", "40")[1])["mechanisms"]
    rows = {row["kind"]: row for row in document}
    for name in KINDS:
        config, row = kind(name).like(SIZES, {}), rows[name]
        module, state = config.build(32).eval(), config.state()
        module(torch.randn(1, 40, 32), Positions(torch.arange(40)[None]), None, True, state)
        held = min(40, row["max_tokens"] or 40)
        assert state.nbytes == row["bytes_per_token"] * held + row.get("state_bytes", 0), name
        assert row["at"]["state"] * 4 == state.nbytes, f"the formula of {name} says the same"


@pytest.mark.parametrize("name", [name for name in KINDS if name in SOFTMAX])
def test_ring_and_growing_memories_follow_the_formula(name: str) -> None:
    config = attention(name)
    module, state = config.build(32).eval(), config.state()
    x, pos = torch.randn(1, 30, 32), torch.arange(30)[None]
    with torch.no_grad():
        for t in range(0, 30, 6):
            module(x[:, t : t + 6], Positions(pos[:, t : t + 6]), None, t == 0, state)
    assert at(kind(name).cost.state, config, n=30) * 4 == state.nbytes


@pytest.mark.parametrize("name", [name for name in SOFTMAX if name not in ("mla", "dsa", "disentangled")])
@pytest.mark.parametrize("tokens", [512, 2048])
def test_the_cost_is_that_of_the_pairs_that_are_seen(name: str, tokens: int) -> None:
    sizes = {"window": 64, "first": 4, "globals": 8, "chunk": 64, "summary": 4, "stride": 32, "block": 16}
    own = {n: sizes[n] for n in kind(name).usual if n in sizes}
    config = kind(name).like(SIZES, own | ({"reach": 32, "globals": 4} if name == "bidirectional" else {}))
    here = Positions(torch.arange(tokens)[None])
    pairs = int(mask(config.visibility, here, here).sum())
    values = config.values * (2 if name == "differential" else 1)
    counted = pairs * config.heads * (config.key_size + values)
    document = at(kind(name).cost.prefill, config, n=tokens, s=tokens)
    assert 0.9 * counted < document < 1.25 * counted
    if kind(name).cost.decode is not None:
        last = int(mask(config.visibility, Positions(here.pos[:, -1:]), here).sum())
        document = at(kind(name).cost.decode or "", config, n=tokens, s=tokens)
        assert 0.9 < document / (last * config.heads * (config.key_size + values)) < 1.6


def test_more_bits_take_more(capsys, small) -> None:
    found = {}
    for bits in (32, 16, 8, 4):
        rows = json.loads(run(capsys, "--json", "--bits", str(bits))[1])["mechanisms"]
        found[bits] = {row["kind"]: row.get("bytes_per_token") for row in rows}
    assert found[32]["gqa"] == 2 * found[16]["gqa"] == 2 * 2 * 8 * 4
    assert found[4]["gqa"] < found[8]["gqa"]
    assert found[32]["linear"] == 0


def test_what_does_not_fit_a_model_says_so(capsys, small, monkeypatch) -> None:
    monkeypatch.setattr(usual, "sizes_of", lambda width, attention: Sizes(576, 9, 3, 64, 64))
    rows = json.loads(run(capsys, "--json")[1])["mechanisms"]
    assert {row["kind"]: row["refused"] for row in rows if "refused" in row} == {
        "differential": "differential heads come in pairs: 9 over 3 do not"
    }
    assert "does not fit this model: differential heads come in pairs" in run(capsys)[1]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["local", "--window", "4"], {"window": 4}),
        (["streaming", "--window", "3", "--first", "2"], {"window": 3, "first": 2}),
        (["bigbird", "--window", "2", "--globals", "1", "--block", "2", "--random", "1", "--seed", "5"],
         {"window": 2, "globals": 1, "block": 2, "random": 1, "seed": 5}),
        (["bidirectional", "--reach", "2", "--globals", "1"], {"reach": 2, "globals": 1}),
        (["fixed", "--chunk", "4", "--summary", "2"], {"chunk": 4, "summary": 2}),
        (["mha"], {}),
    ],
)  # fmt: skip
def test_the_drawing_is_the_mechanisms_own_visibility(capsys, arguments, options) -> None:
    config = kind(arguments[0]).like(SIZES, options)
    here = Positions(torch.arange(11)[None])
    expected = mask(config.visibility, here, here)[0]
    document = shown(capsys, *arguments, "--length", "11")
    assert torch.equal(torch.tensor(document["mask"]).bool(), expected)
    assert {name: document["options"][name] for name in options} == options
    code, out, _ = run(capsys, "show", *arguments, "--length", "11")
    assert code == 0 and torch.equal(torch.tensor(drawn(out)), expected)
    assert f"{int(expected.sum())} of 11² pairs are seen" in out


@pytest.mark.parametrize("name", ALL)
def test_every_mechanism_is_drawn_or_says_why_not(capsys, name: str) -> None:
    document = shown(capsys, name)
    assert document["caption"] and kind(name).summary == document["summary"]
    assert (document["mask"] is None) == (
        name not in (*SOFTMAX, "short_conv") and kind(name).reads != "memory"
    )
    if document["mask"] is None:
        assert "only through a recurrent state" in document["caption"]
    elif kind(name).usual and name not in ("mla", "bahdanau"):
        assert sum(map(sum, document["mask"])) < 78, "options are drawn to scale: something is hidden"


def test_an_indexers_choice_is_an_example_and_says_so(capsys) -> None:
    document = shown(capsys, "dsa", "--top-k", "3", "--seed", "1")
    rows = torch.tensor(document["mask"])
    assert rows.sum(1).tolist() == [min(i + 1, 3) for i in range(12)]
    assert (rows.triu(1) == 0).all() and document["caption"].startswith("An example")
    assert shown(capsys, "dsa", "--top-k", "3", "--seed", "2")["mask"] != document["mask"]
    scores = torch.from_numpy(np.random.default_rng(1).random((1, 12, 12)))
    causal = torch.ones(12, 12).tril().bool()
    assert torch.equal(rows.bool(), best(scores.masked_fill(~causal, -torch.inf), 3)[0] & causal)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["locl"], "did you mean local"),
        (["local", "--chunk", "3"], "local has no option --chunk; it has --window"),
        (["local", "--window", "x"], "local: --window is 'x'; it must be int"),
        (["local", "--window", "0"], "window is 0; it must be 1 or more"),
        (["fixed", "--summary", "9", "--chunk", "3"], "it must be at most chunk"),
        (["local", "--length", "0"], "a drawing holds 1 to 128"),
        (["local", "--length", "x"], "--length"),
        ([], "KIND"),
    ],
)
def test_mistakes_are_one_sentence(capsys, arguments, message) -> None:
    code, out, err = run(capsys, "show", *arguments)
    assert code == 2 and out == "" and message in err and len(err.splitlines()) == 1


def test_a_drawing_wider_than_the_terminal_is_refused(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    code, _, err = run(capsys, "show", "local", "--length", "100")
    assert code == 2 and "it has 60" in err
    code, out, _ = run(capsys, "show", "local", "--length", "50")
    assert code == 0 and max(map(len, out.splitlines())) <= 60


def test_tokens_must_be_some(capsys, small) -> None:
    assert run(capsys, "--tokens", "0")[0] == 2


def test_an_option_without_a_usual_value_is_asked_for(monkeypatch) -> None:
    local = kind("local")
    monkeypatch.delattr(local.module, "USUAL")
    with pytest.raises(UserError, match="local needs a value for window"):
        local.like(SIZES, {})


def test_a_picture_says_what_causal_attention_sees() -> None:
    message = draw(kind("local").config(heads=1, kv_heads=1, key_size=2, window=2), 6).caption
    assert message == "11 of 6² pairs are seen; plain causal attention sees 21."


@pytest.mark.parametrize(
    "rotary",
    [
        rope.Config(8),
        rope.Config(8, 1e6, interleaved=True),
        rope.Config(8, scaling=scaling.YaRN(4.0, 64)),
        rope.Config(8, scaling=scaling.DynamicNTK(4.0, 16)),
    ],
    ids=["plain", "interleaved", "yarn", "dynamic"],
)
def test_the_score_by_distance_is_that_of_two_rotated_vectors(rotary: rope.Config) -> None:
    last = 40
    rotated = rope.RotaryEmbedding(rotary).rotation(torch.arange(last + 1)[None])
    ones = rope.rotate(torch.ones(1, 1, last + 1, 8, dtype=torch.float64), rotated)[0, 0]
    scores = (ones @ ones[last]) / (8 * rotary.magnitude**2)
    far = np.arange(last, -1, -1)
    assert np.allclose(rotary.agreement(far, last + 1), scores.numpy())


def test_distance_shows_a_models_own_base_and_others(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model_file(tmp_path / "m.gguf")
    code, out, err = run(capsys, "distance", "m.gguf", "--json")
    assert (code, err) == (0, "")
    [scheme] = json.loads(out)["schemes"]
    [curve] = scheme["curves"]
    assert scheme["base"] == 10_000 and curve["distances"][0] == 1 and curve["distances"][-1] == 512
    assert curve["values"][0] == round(float(np.cos(10_000.0 ** (-np.arange(4) / 4)).mean()), 4)
    assert scheme["pairs"][0]["turn"] == pytest.approx(2 * np.pi)
    code, out, _ = run(capsys, "distance", "m.gguf", "--base", "10000,1e6", "--length", "50")
    assert code == 0 and "base 10,000  base 1,000,000" in out and "tokens of a turn" in out
    assert run(capsys, "distance", "m.gguf", "--svg", "drawn")[0] == 0
    [drawn] = (tmp_path / "drawn").glob("*.svg")
    assert "distance in tokens" in drawn.read_text()


def test_distance_of_alibi_and_of_layers_that_differ() -> None:
    first, second = (
        mha.Config(heads=4, key_size=8, **own)
        for own in ({"relative": alibi.Config()}, {"position": rope.Config(8, 1e6)})
    )
    config = SimpleNamespace(blocks=[SimpleNamespace(attention=one) for one in (first, first, second)])
    biased, rotary = distance.schemes(config)
    steep, *_, flat = biased.curves(100)
    assert steep.name == "head 0: -0.25 a token, 2 layers from 0" and steep.values[-1] == -25
    assert flat.values[-1] == -100 / 256 and rotary.curves(100)[0].name == "base 1,000,000, 1 layers from 2"
    assert len(distance.report("m", [biased, rotary], 100).charts()) == 3, "two kinds, and a table of pairs"
    with pytest.raises(UserError, match="no layer of this model has RoPE or ALiBi"):
        distance.schemes(decoder("gpt2").config)
    config.blocks.pop()
    with pytest.raises(UserError, match="leave --base out"):
        distance.with_bases(config, [1e4])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--base", "x"], "--base is 'x': give numbers"),
        (["--base", "1"], "a base is above 1"),
        (["--base", "inf"], "a base is above 1"),
        (["--length", "0"], "it must be from 1 to"),
        (["nowhere.gguf"], "there is no such file"),
    ],
)
def test_mistakes_of_distance_are_one_sentence(capsys, given, message) -> None:
    code, out, err = run(capsys, "distance", *given)
    assert code == 2 and out == "" and message in err and len(err.splitlines()) == 1


def test_align_shows_where_a_translator_looks(capsys, tmp_path, monkeypatch) -> None:
    weights = [[0.1, 0.2, 0.7], [0.1, 0.8, 0.1], [0.996, 0.004, 0.0]]
    found = {"steps": 400, "words": [{"word": "cat", "written": "tac", "weights": weights}]}
    monkeypatch.setattr(alignment, "alignments", lambda text: found)
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "align", "A cat!")
    assert code == 0 and "c    a    t" in out and "t  10%  20%  70%" in out and "c 100%    ·    ·" in out
    assert json.loads(run(capsys, "align", "cat", "--json")[1]) == found
    assert run(capsys, "align", "cat", "--svg", "drawn", "--html", "cat.html")[0] == 0
    assert "letter written" in next((tmp_path / "drawn").glob("*.svg")).read_text()
    code, _, err = run(capsys, "align", "ab 12")
    assert code == 2 and "no word of 3 to 8 Latin letters" in err
