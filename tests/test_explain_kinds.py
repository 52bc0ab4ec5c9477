"""Explanation and attribution of models that are not Llama: biases, sinks, recurrent layers, latents."""

from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from cutaway.attention.common.registry import Sizes, kind
from cutaway.commands import explanation_compare, explanation_text
from cutaway.errors import UserError
from cutaway.inspect import edits, explanation, head_scores, page_data, patching, pytorch_edits
from cutaway.inspect.arrays import softmax
from cutaway.inspect.inputs import output_heads
from cutaway.inspect.page import page
from cutaway.inspect.subject import Subject
from cutaway.inspect.trace import Trace
from cutaway.layers.config import MLP, Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder as Config
from cutaway.model.decoder import Decoder
from cutaway.position import alibi, rope, t5
from tests.small import Bytes

TEXT = list(b"the same the same")
SIZES = Sizes(width=32, heads=4, groups=2, key_size=8, value_size=8)
SMALL = {"latent": 12, "rope_dim": 4, "top_k": 3, "window": 5, "first": 1, "chunk": 6, "globals": 1,
         "block": 2, "random": 1, "stride": 3, "summary": 1, "index_heads": 2, "index_size": 8,
         "channels": 20}  # fmt: skip
PATTERNS: dict[str, tuple[str, dict[str, Any]]] = {
    "alibi": ("gqa", {"relative": alibi.Config()}),
    "t5": ("mha", {"relative": t5.Config(8, 16), "scale": 1.0}),
    "sinks": ("local", {"sinks": True, "position": rope.Config(8)}),
    "all": ("gqa", {"relative": alibi.Config(), "sinks": True, "softcap": 3.0, "qk_norm": Norm()}),
    "nope": ("gqa", {}),
    "interleaved": ("gqa", {"position": rope.Config(4, interleaved=True)}),
    "gated": ("gated", {"bias": True, "position": rope.Config(8)}),
    "differential": ("differential", {"position": rope.Config(8), "sinks": True}),
    "diffllama": ("differential", {"position": rope.Config(8), "norm_weight": False}),
    "mla": ("mla", {"position": rope.Config(4, interleaved=True)}),
    "dsa": ("dsa", {"position": rope.Config(4)}),
    "streaming": ("streaming", {}),
    "bigbird": ("bigbird", {}),
    "chunked": ("chunked", {}),
}
MEMORIES = ("linear", "retention", "gla", "delta", "gated_delta", "mamba2", "short_conv")


def _mixer(name: str, options: dict[str, Any]) -> Any:
    found = kind(name)
    return found.like(SIZES, {n: SMALL[n] for n in found.usual} | options)


def model(*mixers: Any) -> Decoder:
    torch.manual_seed(3)
    blocks = tuple(Block(one, MLP(24), post_norm=i % 2 == 1) for i, one in enumerate(mixers))
    made = Decoder(Config(vocab=256, width=32, context=64, blocks=blocks)).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return made


@cache
def shape(name: str) -> Decoder:
    """Made once, and read alone."""
    if name in PATTERNS:
        mixer = _mixer(*PATTERNS[name])
        return model(mixer, mixer)
    if name == "hybrid":
        return model(_mixer("gated_delta", {}), _mixer(*PATTERNS["all"]), _mixer("mamba2", {"groups": 2}))
    return model(_mixer(name, {}), _mixer(name, {}))


EVERY = (*PATTERNS, *MEMORIES, "hybrid")


@cache
def whole(made: Decoder) -> Trace:
    return Trace.of(made, Bytes(), TEXT)


@cache
def explained(made: Decoder) -> explanation.Explanation:
    return explanation.explain(Trace.of(made, Bytes(), TEXT, explanation.names(made.config)))


def printed(one: explanation.Explanation) -> str:
    console = Console(width=90, no_color=True, highlight=False)
    with console.capture() as captured:
        explanation_text.show(one, "small", console)
    return captured.get()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("position", [0, 6, -1])
def test_parts_add_up_and_split_over_the_tokens_read(name: str, position: int) -> None:
    made = shape(name)
    found = whole(made).attribution(9, position)
    assert abs(found.rest) < 1e-4 * max(1, abs(found.logit))
    for i, (parts, sources) in enumerate(zip(found.heads, found.sources, strict=True)):
        config = made.config.blocks[i].attention
        assert len(parts) == output_heads(config)
        assert (sources is None) == (not hasattr(config, "visibility"))
        if sources is not None:
            np.testing.assert_allclose(sources.sum(-1), parts, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*PATTERNS, "hybrid"])
def test_the_worked_score_and_its_shares_are_the_models(name: str) -> None:
    made = shape(name)
    trace, one = whole(made), explained(made)
    assert one.attention is not None
    a, shown = one.attention, one.attention.score
    base = f"blocks.{a.layer}.attention"
    at = (a.head, shown.query_position)
    scores, pattern = trace[f"{base}.scores"][at], trace[f"{base}.pattern"][at]
    assert shown.score == pytest.approx(float(scores[shown.key_position]), abs=1e-4)
    for each in shown.weights:
        assert each.score == pytest.approx(float(scores[each.position]), abs=1e-4)
        assert each.weight == pytest.approx(float(pattern[each.position]), abs=1e-5)
        assert each.visible or each.weight == 0
    config = made.config.blocks[a.layer].attention
    assert (shown.bias is not None) == (getattr(config, "relative", None) is not None)
    assert (shown.sink is not None) == bool(getattr(config, "sinks", False))
    total = sum(each.weight for each in shown.weights) + (shown.sink.weight if shown.sink else 0)
    assert total == pytest.approx(1)
    plain = shown.dot * shown.scale
    if shown.softcap is not None:
        plain = shown.softcap * float(torch.tensor(plain / shown.softcap).tanh())
    assert shown.score == pytest.approx(plain + (shown.bias or 0), abs=1e-6)


@pytest.mark.parametrize("name", ["interleaved", "mla", "dsa", "sinks"])
def test_the_pair_that_turns_is_where_the_layer_has_it(name: str) -> None:
    """Rotated back, query and key are those of the layer without RoPE."""
    made = shape(name)
    one = explained(made)
    assert one.attention is not None and one.attention.rope is not None
    a, pair = one.attention, one.attention.rope
    with torch.no_grad():
        stream = whole(made)["embed" if a.layer == 0 else f"blocks.{a.layer - 1}.out"]
        block = made.blocks[a.layer]
        x = block.attention_norm(torch.from_numpy(stream)[None])
        config = made.config.blocks[a.layer].attention
        q = block.attention.query(x)[0, -1].view(config.heads, -1)[a.head]
    assert pair.query.before == pytest.approx([float(q[i]) for i in pair.dimensions], abs=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_every_model_has_its_story_page_and_lens(name: str) -> None:
    made = shape(name)
    one = explained(made)
    text = printed(one)
    assert max(map(len, text.splitlines())) <= 90
    assert one.recurrent_layers == tuple(
        i for i, block in enumerate(made.config.blocks) if not hasattr(block.attention, "visibility")
    )
    if name in MEMORIES:
        assert one.attention is None
        assert "All layers are recurrent" in " ".join(text.split())
        assert "recurrent" in text
    if name == "hybrid":
        assert "Layers 0, 2 are recurrent" in " ".join(text.split())
    if name == "differential":
        assert "differential head" in " ".join(text.split())
    assert ("sink, no value" in text) == (name in ("sinks", "all", "differential", "hybrid"))
    asdict(one)
    drawn = page_data.build(Trace.of(made, Bytes(), TEXT, page_data.names(made.config)), name)
    assert page([drawn]).startswith("<!doctype html>") or page([drawn]).startswith("<!DOCTYPE html>")
    console = Console(width=90, no_color=True)
    with console.capture() as captured:
        explanation_compare.show(one, one, (name, name), True, console)
    assert captured.get()


@pytest.mark.parametrize("name", ["alibi", "t5", "all", "hybrid"])
def test_the_page_holds_what_scores_are_made_of(name: str) -> None:
    """The page's own arithmetic, done here: q . k, the bias of the distance and the sink give the pattern."""
    made = shape(name)
    trace = whole(made)
    drawn = page_data.build(trace, name)
    for layer, facts in enumerate(drawn.facts["attention"]):
        near = [head for at, head in drawn.facts["detailed"] if at == layer]
        assert facts["recurrent"] != (f"pattern.{layer}" in drawn.arrays)
        assert not (facts["recurrent"] and near)
        for head in near:
            q, k = drawn.arrays[f"q.{layer}.{head}"], drawn.arrays[f"k.{layer}.{head // facts['group_size']}"]
            scores = q[-1] @ k.T * facts["scale"]
            if facts["softcap"]:
                scores = facts["softcap"] * np.tanh(scores / facts["softcap"])
            scores = scores + drawn.arrays[f"bias.{layer}"][head][::-1]
            if f"sinks.{layer}" in drawn.arrays:
                scores = np.concatenate((scores, drawn.arrays[f"sinks.{layer}"][head : head + 1]))
            expected = trace[f"blocks.{layer}.attention.pattern"][head, -1]
            assert np.allclose(softmax(scores)[: len(TEXT)], expected, rtol=1e-3, atol=1e-5)


def test_what_looks_at_nothing_says_so() -> None:
    made = shape("hybrid")
    with pytest.raises(UserError, match="layer 0 is recurrent"):
        whole(made).attention(0)
    with pytest.raises(UserError, match="layer 0 is recurrent"):
        head_scores.induction_scores(Subject.of(made, Bytes()), length=4, texts=1)
    assert whole(made).attention(1).shape == (4, len(TEXT), len(TEXT))


def test_half_of_a_differential_layers_heads_write() -> None:
    made = shape("differential")
    assert patching.head_effects(Subject.of(made, Bytes()), TEXT, 7).values.shape == (2, 2)
    assert pytorch_edits.prepare(made, edits.ablation("0.1"), 1).at()
    with pytest.raises(UserError, match="heads 0 to 1"):
        pytorch_edits.prepare(made, edits.ablation("0.2"), 1)
