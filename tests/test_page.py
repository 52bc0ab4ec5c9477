"""The page as a file: it holds what the trace holds, needs nothing else, obeys nothing, and stays small."""

import base64
import hashlib
import html
import json
import re
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway.attention import gqa
from cutaway.cli import main
from cutaway.commands import explain_asked as asked
from cutaway.errors import UserError
from cutaway.inspect import explanation, page_data
from cutaway.inspect.attribution import head_outputs
from cutaway.inspect.page import VIEWS, page
from cutaway.inspect.sae import SAE, Card
from cutaway.inspect.show import Pattern, View
from cutaway.inspect.trace import Trace
from cutaway.layers.config import MLP
from cutaway.layers.norm import LayerNorm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder as Config
from cutaway.model.decoder import Decoder
from cutaway.position import rope
from tests.small import SHAPES, Bytes, decoder
from tests.test_explain import Small

TEXT = "the same the same"
MOST = 6_000_000


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Small:
    """What explain loads, whatever it is asked for."""
    model = Small()
    monkeypatch.setattr(asked, "model_path", lambda source: source)
    monkeypatch.setattr(cutaway, "load", lambda path: model, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    return model


def traced(shape: str = "llama", text: str = TEXT) -> Trace:
    model = decoder(shape)
    return Trace.of(model, Bytes(), Bytes().encode(text), page_data.names(model.config))


def unpacked(document: str) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    """What a browser reads: the facts, and each explanation's arrays."""
    data = re.search(r'<script type="application/octet-stream" id="data">([^<]*)</script>', document)
    assert data is not None
    blob = zlib.decompress(base64.b64decode(data[1]))
    size = int.from_bytes(blob[:4], "little")
    content = json.loads(blob[4 : 4 + size])
    arrays = [
        {
            name: np.frombuffer(blob, "<" + kind, int(np.prod(shape)), 4 + size + offset).reshape(shape)
            for name, (kind, shape, offset) in explanation["arrays"].items()
        }
        for explanation in content["explanations"]
    ]
    return content, arrays


@pytest.mark.parametrize("shape", SHAPES)
def test_it_holds_what_the_trace_holds(shape: str) -> None:
    trace = traced(shape)
    content, [arrays] = unpacked(page([page_data.build(trace, shape)]))
    [explanation] = content["explanations"]
    rows, columns = np.tril_indices(len(trace.ids))
    for layer, config in enumerate(trace.config.blocks):
        exact = trace.attention(layer)[:, rows, columns]
        kept = (arrays[f"pattern.{layer}"] / 255.0) ** 2
        assert np.abs(kept - exact).max() < 0.004
        group = config.attention.heads // config.attention.groups
        for head in range(config.attention.heads):
            assert [layer, head] in explanation["detailed"]
            assert np.array_equal(arrays[f"q.{layer}.{head}"], trace[f"blocks.{layer}.attention.q"][head])
            assert np.array_equal(
                arrays[f"k.{layer}.{head // group}"], trace[f"blocks.{layer}.attention.k"][head // group]
            )
        wrote = np.linalg.norm(trace[f"blocks.{layer}.out"] - trace[f"blocks.{layer}.middle"], axis=-1)
        assert np.allclose(arrays[f"mlp_norm.{layer}"], wrote, atol=1e-5)
    parts = sum(
        float(arrays[f"contribution.{layer}"].sum()) for layer in range(explanation["layers"])
    ) + float(arrays["contribution.mlp"].sum())
    attribution = explanation["attribution"]
    assert attribution["embed"] + parts + attribution["biases"] + attribution["rest"] == pytest.approx(
        float(trace.logits[-1].max()), abs=1e-3
    )
    assert np.array_equal(arrays["lens.ids"][-1], trace.logits.argmax(-1))
    assert np.allclose(arrays["logits"], np.sort(trace.logits[-1])[::-1][:256], atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_projections_are_the_models_own_queries_keys_and_values(shape: str) -> None:
    trace = traced(shape)
    content, [arrays] = unpacked(page([page_data.build(trace, shape)]))
    kept = content["explanations"][0]["projections"]
    assert kept["heads"] and kept["first"] == 0
    for layer, head in kept["heads"]:
        config = trace.config.blocks[layer].attention
        group = head // (config.heads // config.groups)
        assert np.allclose(
            arrays[f"sums.v.{layer}.{group}"], trace[f"blocks.{layer}.attention.v"][group], atol=1e-5
        )
        sums = arrays[f"sums.q.{layer}.{head}"]
        if config.qk_norm is None and config.position is None:
            assert np.allclose(sums, trace[f"blocks.{layer}.attention.q"][head], atol=1e-5)
        x, ids = arrays[f"input.{layer}"], arrays[f"product.ids.q.{layer}.{head}"]
        size = config.key_size
        weight = trace.instrumented.weight(f"blocks.{layer}.attention.query.weight")[head * size :][:size]
        products = np.abs(x[:, None] * weight[None])
        assert np.array_equal(ids.reshape(*sums.shape, -1)[..., 0], products.argmax(-1))
        drawn = arrays[f"drawn.q.{layer}.{head}"] * kept["scales"][f"q.{layer}.{head}"] / 127
        assert np.abs(drawn - weight[:, :160]).max() <= kept["scales"][f"q.{layer}.{head}"] / 250


def test_the_contact_sheet_has_every_verb_that_writes_html() -> None:
    from scripts.check import contact_sheet

    reference = (Path(__file__).parents[1] / "docs/reference/cli.md").read_text("utf-8")
    sections = [part.split("\n## ")[0] for part in reference.split("\n### ")[1:]]
    found = {part.partition("\n")[0] for part in sections if "\n- `--html" in part}
    assert len(found) > 8 and found <= contact_sheet.PAGES.keys()
    without_the_option = {"attack", "compare", "embed project", "pipeline", "pretrain", "scale"}
    assert without_the_option <= contact_sheet.PAGES.keys()


def test_of_a_long_text_projections_of_the_last_tokens_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutaway.inspect.projections.BUDGET", 6_000)
    content, [arrays] = unpacked(page([page_data.build(traced(), "llama")]))
    kept = content["explanations"][0]["projections"]
    assert len(kept["heads"]) == 1 and 0 < kept["first"] < len(TEXT)
    [name] = [name for name in arrays if name.startswith("sums.q.")]
    assert len(arrays[name]) == len(TEXT) - kept["first"]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_heads_outputs_add_up(shape: str) -> None:
    made = traced(shape)
    trace = {name: torch.from_numpy(value) for name, value in made.items()}
    for i, block in enumerate(made.instrumented.model.blocks):
        out = trace[f"blocks.{i}.attention.out"]
        heads = torch.from_numpy(head_outputs(made.instrumented, made, i))
        norm = block.attention_post_norm
        bias = torch.zeros(()) if block.attention.out.bias is None else block.attention.out.bias
        if not isinstance(norm, torch.nn.Identity):
            if isinstance(norm, LayerNorm):
                out, bias = out - out.mean(-1, keepdim=True), bias - bias.mean()
            bias = bias * norm.weight / (out.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        before = trace["embed"] if i == 0 else trace[f"blocks.{i - 1}.out"]
        after = trace[f"blocks.{i}.middle"] - before
        shift = getattr(block.attention_post_norm, "bias", torch.zeros(()))
        assert torch.allclose(heads.sum(0) + bias + shift, after, atol=1e-4)


def test_neurons_and_what_they_promote() -> None:
    trace = traced()
    facts = page_data.build(trace, "llama")
    layer, token = 1, len(trace.ids) - 1
    hidden, model = torch.from_numpy(trace[f"blocks.{layer}.mlp.hidden"])[token], trace.instrumented.model
    down = model.blocks[layer].mlp.down.weight.detach()
    wrote = hidden.abs() * down.norm(dim=0)
    neuron = int(wrote.argmax())
    assert facts.arrays[f"neuron.{layer}"][token, 0] == neuron
    assert facts.arrays[f"neuron.norm.{layer}"][token, 0] == pytest.approx(float(wrote.max()), rel=1e-5)
    scores = model.embedding.weight.detach() @ (model.norm.weight.detach() * down[:, neuron])
    up, low = facts.facts["neurons"][f"{layer}.{neuron}"]
    assert up == scores.topk(5).indices.tolist() and low == (-scores).topk(5).indices.tolist()


def test_tokens_are_linked_in_order() -> None:
    one, other = (page_data.build(traced(text=text), "llama") for text in ("the same", "not the same"))
    assert page_data.links(one, other) == [(i, i + 4) for i in range(8)]


class Hostile(Bytes):
    def token_bytes(self, id: int) -> bytes:
        return (
            b"</script><img src=x onerror=alert(1)>{{script}}" if id == ord("t") else super().token_bytes(id)
        )


def test_a_token_that_spells_markup_stays_text() -> None:
    trace = Trace.of(decoder(), Hostile(), Bytes().encode(TEXT), page_data.names(decoder().config))
    document = page([page_data.build(trace, "<b>model</b>")])
    assert document.lower().count("</script>") == document.lower().count("<script") == 2
    assert "<img" not in document and "<b>" not in document
    assert html.unescape(re.search(r"<title>(.*?)</title>", document, re.S)[1]).startswith("</script>")


def test_it_needs_nothing_else_and_allows_only_its_own_script() -> None:
    document = page([page_data.build(traced(), "llama")])
    assert not re.search(
        r'(src|href)=["\'](?!#)|@import|url\(|innerHTML|insertAdjacentHTML|eval\(|fetch\(', document
    )
    assert set(re.findall(r"https?://[^\"' ]+", document)) == {"http://www.w3.org/2000/svg"}
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', document)[1]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    for tag in ("style", "script"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", document, re.S)[1]
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy


def test_two_hundred_tokens_of_a_deep_model_stay_under_six_megabytes() -> None:
    heads = gqa.Config(heads=9, kv_heads=3, key_size=64, position=rope.Config(64))
    torch.manual_seed(0)
    model = Decoder(Config(2048, 64, 256, (Block(heads, MLP(48)),) * 30)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    ids = torch.randint(0, 255, (200,)).tolist()
    document = page([page_data.build(Trace.of(model, Wide(), ids, page_data.names(model.config)), "deep")])
    assert len(document) < MOST
    content, [arrays] = unpacked(document)
    assert 3 <= len(content["explanations"][0]["detailed"]) < 270
    assert len([name for name in arrays if name.startswith("pattern.")]) == 30


class Wide(Bytes):
    def token_bytes(self, id: int) -> bytes:
        return f"<{id}>".encode()


@pytest.mark.parametrize("length", [5, 6])
def test_half_bytes_read_back(length: int) -> None:
    cells = np.random.default_rng(0).integers(0, 16, (3, length), dtype=np.uint8)
    halves = page_data._halves(cells)
    again = np.stack([halves >> 4, halves & 15], axis=-1).reshape(3, -1)[:, :length]
    assert np.array_equal(again, cells)


def test_a_pattern_is_an_array_that_shows_itself() -> None:
    trace = traced()
    pattern = trace.attention(1)
    assert isinstance(pattern, Pattern) and np.array_equal(pattern, trace["blocks.1.attention.pattern"])
    assert type(pattern + 0) is type(pattern[0]) is type(pattern.max(-1)) is np.ndarray
    shown = pattern.show(head=2)
    content, _ = unpacked(shown.html)
    assert content["views"] == ["attention", "score"] and content["start"] == {"layer": 1, "head": 2}
    with pytest.raises(UserError, match="no head 4"):
        pattern.show(head=4)


def test_a_notebook_gets_a_frame_that_touches_nothing(tmp_path: Path) -> None:
    view = traced().show("lens")
    drawn = view._repr_html_()
    assert drawn.startswith('<iframe sandbox="allow-scripts"') and drawn.count("<") == 2
    assert html.unescape(re.search(r'srcdoc="([^"]*)"', drawn)[1]) == view.html
    assert view.save(tmp_path / "lens.html").read_text(encoding="utf-8") == view.html
    assert isinstance(view, View) and repr(view) == "View(lens of 17 tokens)"
    with pytest.raises(UserError, match="no view 'lense'"):
        traced().show("lense").html


def test_explain_writes_the_page(loaded: Small, tmp_path: Path, capsys) -> None:
    file = tmp_path / "page.html"
    assert main(["explain", TEXT, "--html", str(file)]) == 0
    content, _ = unpacked(file.read_text(encoding="utf-8"))
    assert content["views"] == list(VIEWS) and [one["model"] for one in content["explanations"]] == [
        "smollm2"
    ]
    assert "Wrote" in capsys.readouterr().err
    assert main(["explain", TEXT, "--html", str(file), "--ablate", "1.2", "--force"]) == 0
    content, _ = unpacked(file.read_text(encoding="utf-8"))
    assert [one["model"] for one in content["explanations"]] == ["smollm2", "smollm2, head 1.2 ablated"]
    assert main(["explain", TEXT, "--html", str(file), "--compare", "the other"]) == 2
    assert "give --force to replace it" in capsys.readouterr().err
    assert main(["explain", TEXT, "--html", str(file), "--compare", "the other", "--force"]) == 0
    content, _ = unpacked(file.read_text(encoding="utf-8"))
    assert [one["text"] for one in content["explanations"]] == [TEXT, "the other"] and content["links"]
    assert main(["explain", TEXT, "--html", str(tmp_path / "none" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def autoencoder() -> SAE:
    """A random one of the second block's output."""
    drawn = np.random.default_rng(1).normal(size=(2, 20, 32)).astype(np.float32)
    tensors = {"W_enc": drawn[0], "b_enc": np.zeros(20, np.float32), "W_dec": drawn[1]}
    names = ("blocks.1.out",)
    card = Card("sae", "topk", names, names, (32, 32), "small", 20, 3, norm_limit=1e9)
    return SAE(card, tensors | {"b_dec": np.zeros(32, np.float32)})


def test_explain_adds_a_view_of_what_was_asked_for(loaded: Small, tmp_path: Path) -> None:
    file, saved = tmp_path / "page.html", tmp_path / "sae"
    autoencoder().save(saved)
    other = "tho same the same"
    assert main(["explain", TEXT, "--patch", other, "--html", str(file)]) == 0
    content, _ = unpacked(file.read_text(encoding="utf-8"))
    assert content["views"] == ["patch", *VIEWS]
    found = asdict(explanation.patch(traced(), Bytes().encode(other)))
    shown = content["explanations"][0]["patch"]
    assert [one["position"] for one in shown["tokens"]] == [2, len(TEXT) - 1]
    assert np.allclose(
        [one["recovered"] for one in shown["tokens"]], [one["recovered"] for one in found["tokens"]]
    )
    assert main(["explain", TEXT, "--sae", str(saved), "--html", str(file), "--force"]) == 0
    content, _ = unpacked(file.read_text(encoding="utf-8"))
    assert content["views"] == ["features", *VIEWS]
    shown = content["explanations"][0]["features"]
    active = autoencoder().encode(traced()["blocks.1.out"])
    assert shown["sinks"] == [0] and len(shown["tokens"]) == len(TEXT)
    most = active[1:].max(0)
    assert shown["mapped"] == [int(id) for id in np.argsort(-most, kind="stable") if most[id] > 0]
    assert np.allclose(np.array(shown["active"]).T, active[:, shown["mapped"]])
    assert [one for one, _ in shown["tokens"][5]] == np.argsort(-active[5], kind="stable")[:3].tolist()


def test_explain_opens_the_page(loaded: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    assert main(["explain", TEXT, "--open"]) == 0
    assert Path(opened[0].removeprefix("file://")).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_explain_compares_in_the_terminal(loaded: Small, capsys) -> None:
    assert main(["explain", TEXT, "--compare", "not the same"]) == 0
    shown = capsys.readouterr().out
    assert "10 of 17 and 12 tokens are the same, in order." in shown
    assert all(step in shown for step in ("1  Tokens", "2  Next token", "3  Logit lens", "4  Direct"))
    assert max(map(len, shown.splitlines())) <= 80
    assert main(["explain", TEXT, "--compare-model", "another", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["compare"]["model"] == "another" and content["compare"]["text"] == content["text"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--compare", ""], "the other text is empty"),
        (["--compare", "x", "--ablate", "0"], "leave out --ablate"),
    ],
)
def test_explain_refuses_what_does_not_go_together(
    loaded: Small, capsys, arguments: list[str], says: str
) -> None:
    assert main(["explain", TEXT, *arguments]) == 2
    assert says in capsys.readouterr().err
