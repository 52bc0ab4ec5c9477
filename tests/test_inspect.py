"""What is found inside a model is true: parts add up, patches carry over, and a planted head is found by what
it does.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cutaway import tracing
from cutaway.attention import mha
from cutaway.embedding.neighbours import nearest
from cutaway.errors import UserError
from cutaway.hooks import Listener
from cutaway.inspect import (
    edits,
    explanation,
    head_scores,
    logit_lens,
    neurons,
    patching,
    pytorch_edits,
    steering,
)
from cutaway.inspect.arrays import softmax
from cutaway.inspect.edits import Add, Patch
from cutaway.inspect.inputs import neuron_names
from cutaway.inspect.subject import Subject
from cutaway.inspect.trace import Trace
from cutaway.layers.config import MLP
from cutaway.layers.packed import PackedEmbedding, PackedLinear
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder as Config
from cutaway.model.decoder import Decoder
from cutaway.quantization import formats
from tests import inputs
from tests.small import SHAPES, Bytes, decoder

TEXT = list(b"all of it adds up")
OTHER = list(b"all of us add up!")


def _edited(model: Decoder, edit: edits.Given) -> Mapping[str, Listener]:
    return pytorch_edits.prepare(model, edit, len(TEXT)).at()


def _without(model: Decoder, *parts: str) -> Mapping[str, Listener]:
    return _edited(model, [edits.ablation(part) for part in parts])


def _read(model: Decoder, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]), torch.arange(len(ids))[None])


@pytest.fixture(scope="module")
def smollm2():
    import cutaway

    return cutaway.load(inputs.path("smollm2"), engine="pytorch")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("position", [0, 5, -1])
def test_parts_add_up_to_the_logit(shape: str, position: int) -> None:
    trace = Trace.of(decoder(shape), Bytes(), TEXT)
    for token in (None, 7, 200):
        found = trace.attribution(token, position)
        assert found.logit == pytest.approx(float(trace.logits[position, found.token]), abs=1e-6)
        assert abs(found.rest) < 1e-4
        total = found.embed + found.biases + sum(map(np.sum, found.heads)) + found.mlps.sum() + found.rest
        assert float(total) == pytest.approx(found.logit, abs=1e-9)
        for parts, sources in zip(found.heads, found.sources, strict=True):
            np.testing.assert_allclose(sources.sum(-1), parts, rtol=1e-4, atol=1e-5)
    assert found.position == position % len(TEXT)


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_each_heads_part_is_what_it_wrote(shape: str) -> None:
    """Against the PyTorch model: the head alone through W_o, the post norm and the final norm, all sizes
    frozen.
    """
    model = decoder(shape)
    made = Trace.of(model, Bytes(), TEXT)
    trace = {name: torch.from_numpy(value) for name, value in made.items()}
    layer, position = 1, 6
    found = made.attribution(9, position)
    block = model.blocks[layer]
    row = (model.embedding if model.head is None else model.head).weight[9].double()
    for head in range(4):
        alone = torch.zeros_like(trace[f"blocks.{layer}.attention.z"])[:, position]
        alone[head] = trace[f"blocks.{layer}.attention.z"][head, position]
        wrote = block.attention.out.weight @ alone.flatten()
        wrote = _frozen(block.attention_post_norm, wrote, trace[f"blocks.{layer}.attention.out"][position])
        last = trace[f"blocks.{len(model.blocks) - 1}.out"][position]
        part = float(_frozen(model.norm, wrote, last).double() @ row)
        raw, logit = float(_frozen_whole(model, last, row)), float(trace["logits"][position, 9])
        assert float(found.heads[layer][head]) == pytest.approx(part * logit / raw, rel=1e-3, abs=1e-5)


def _frozen(norm, part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    if isinstance(norm, torch.nn.Identity):
        return part
    if hasattr(norm, "bias"):
        part, whole = part - part.mean(), whole - whole.mean()
    return part / (whole.square().mean() + norm.eps).sqrt() * norm.weight


def _frozen_whole(model: Decoder, last: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    return model.norm(last).double() @ row


def test_a_lead_adds_up_too() -> None:
    trace = Trace.of(decoder(), Bytes(), TEXT)
    found = trace.attribution(3, against=5)
    assert found.logit == pytest.approx(float(trace.logits[-1, 3] - trace.logits[-1, 5]), abs=1e-5)
    assert abs(found.rest) < 1e-4
    with pytest.raises(UserError, match="no sum"):
        Trace.of(decoder("gemma"), Bytes(), TEXT).attribution(3, against=5)
    with pytest.raises(UserError, match="not in this model's vocabulary"):
        trace.attribution(256)


def test_what_an_edit_wrote_is_apart_from_the_heads() -> None:
    model = decoder()
    cut = Trace.of(model, Bytes(), TEXT, edit={"blocks.1.attention.out": torch.zeros_like}).attribution(3)
    assert abs(cut.rest) > 1e-2, "heads mixed, and an edit took what they wrote"
    whole = Trace.of(model, Bytes(), TEXT, edit={"blocks.1.attention.z": torch.zeros_like}).attribution(3)
    assert abs(whole.rest) < 1e-4 and (whole.heads[1] == 0).all()


def test_packed_weights_are_looked_into_like_any_others() -> None:
    model = decoder()
    plain = Trace.of(model, Bytes(), TEXT)
    for path, module in list(model.named_modules()):
        parent, _, name = path.rpartition(".")
        if isinstance(module, torch.nn.Linear):
            kept = PackedLinear(
                formats.pack(module.weight.detach().numpy(), "F32"), module.bias, formats.unpack
            )
        elif isinstance(module, torch.nn.Embedding):
            kept = PackedEmbedding(formats.pack(module.weight.detach().numpy(), "F32"), formats.unpack)
        else:
            continue
        setattr(model.get_submodule(parent), name, kept)
    packed = Trace.of(model, Bytes(), TEXT)
    np.testing.assert_allclose(packed.logits, plain.logits, rtol=1e-5, atol=1e-5)
    assert abs(packed.attribution(7).rest) < 1e-4
    assert explanation.explain(packed, 3).next == explanation.explain(plain, 3).next


@pytest.mark.parametrize("shape", SHAPES)
def test_the_lens_ends_in_the_answer(shape: str) -> None:
    model = decoder(shape)
    trace = Trace.of(model, Bytes(), TEXT)
    seen = trace.lens()
    assert seen.names == ("embed", *(f"blocks.{i}.out" for i in range(len(model.blocks))))
    answer = torch.from_numpy(trace.logits).softmax(-1).max(-1)
    assert np.allclose(seen.probabilities[-1], answer.values, atol=1e-6)
    assert np.array_equal(seen.ids[-1], answer.indices)
    assert np.array_equal(seen.final[-1], seen.probabilities[-1])
    with torch.no_grad():
        middle = model.logits(torch.from_numpy(trace["blocks.0.out"])[None])[0].softmax(-1)
    assert np.allclose(seen.probabilities[1], middle.max(-1).values, atol=1e-6)
    assert np.allclose(seen.final[1], middle.gather(-1, answer.indices[:, None])[:, 0], atol=1e-6)


def test_the_lens_reads_long_texts_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Trace.of(decoder(), Bytes(), TEXT)
    whole = trace.lens()
    monkeypatch.setattr(logit_lens, "LOGITS", 5 * 256)
    parts = trace.lens()
    assert np.array_equal(parts.ids, whole.ids)
    assert np.allclose(parts.final, whole.final, atol=1e-6)


def test_taking_out_a_head_is_zeroing_its_slice() -> None:
    model = decoder()
    with tracing(model, edit=_without(model, "1.2", "2.0")):
        without = _read(model, TEXT)
    with torch.no_grad():
        model.blocks[1].attention.out.weight[:, 16:24] = 0
        model.blocks[2].attention.out.weight[:, 0:8] = 0
    assert_close(without, _read(model, TEXT))


@pytest.mark.parametrize("layers", [{0}, {1}, {0, -1}])
@pytest.mark.parametrize("shape", SHAPES)
def test_skipping_layers_is_a_model_without_them(shape: str, layers: set[int]) -> None:
    model = decoder(shape)
    layers = {layer % len(model.blocks) for layer in layers}
    with tracing(model, edit=_without(model, *map(str, layers))):
        without = _read(model, TEXT)
    kept = torch.nn.ModuleList(block for i, block in enumerate(model.blocks) if i not in layers)
    model.rotary_of_block = [rotary for i, rotary in enumerate(model.rotary_of_block) if i not in layers]
    model.blocks = kept
    assert_close(without, _read(model, TEXT))


def test_neighbouring_layers_are_skipped_together() -> None:
    model = decoder()
    with tracing(model, "embed", "blocks.2.out", edit=_without(model, "2", "0", "1")) as seen:
        _read(model, TEXT)
    assert torch.equal(seen["blocks.2.out"], seen["embed"])


def test_head_effects_are_those_of_taking_out_each() -> None:
    model = decoder()
    effects = patching.head_effects(Subject.of(model, Bytes()), TEXT, 7)
    usual = _read(model, TEXT)[0, -1, 7]
    with tracing(model, edit=_without(model, "1.3")):
        without = _read(model, TEXT)[0, -1, 7]
    assert effects.values.shape == (3, 4)
    assert effects[1, 3] == pytest.approx(float(usual - without), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("part", ["3", "1.4", "x", "1.", ".1", "-1", "1.2.3"])
def test_parts_the_model_does_not_have_are_refused(part: str) -> None:
    with pytest.raises(UserError):
        _without(decoder(), part)


def _taken(values: Mapping[str, torch.Tensor]) -> Mapping[str, Listener]:
    return {name: lambda _, value=value: value for name, value in values.items()}


@pytest.mark.parametrize("shape", SHAPES)
def test_patching_everything_reproduces_the_other_text(shape: str) -> None:
    model = decoder(shape)
    with tracing(model) as other:
        theirs = _read(model, OTHER)
    with tracing(model, edit=_taken(other)):
        assert torch.equal(_read(model, TEXT), theirs)
    last = f"blocks.{len(model.blocks) - 1}.out"
    with tracing(model, edit=_taken({last: other[last]})):
        assert torch.equal(_read(model, TEXT), theirs), "the last residual alone decides the logits"


def test_a_patch_at_some_positions_leaves_the_others() -> None:
    model = decoder()
    with tracing(model, "blocks.1.out") as other:
        _read(model, OTHER)
    with tracing(model, "blocks.1.out") as ours:
        _read(model, TEXT)
    with tracing(model, "blocks.1.out", edit=_edited(model, Patch(1, OTHER, positions=[3, 9]))) as seen:
        _read(model, TEXT)
    mixed, own = seen["blocks.1.out"], ours["blocks.1.out"].clone()
    own[:, [3, 9]] = other["blocks.1.out"][:, [3, 9]]
    assert torch.equal(mixed, own)


def test_a_steering_vector_is_saved_loaded_and_added(tmp_path: Path) -> None:
    model = decoder()
    made = steering.difference(model, [TEXT, OTHER], [TEXT[:4]], layer=1)
    residuals = [Trace.of(model, Bytes(), ids)["blocks.1.out"][-1] for ids in (TEXT, OTHER, TEXT[:4])]
    vector = np.array(made.vector, np.float32)
    assert_close(vector, (residuals[0] + residuals[1]) / 2 - residuals[2], rtol=1e-4, atol=1e-5)
    steering.save(tmp_path / "up.safetensors", [made])
    loaded = steering.load(tmp_path / "up.safetensors", 0.8)
    assert loaded == (replace(made, strength=0.8),)
    with tracing(model, "blocks.1.out") as before:
        _read(model, TEXT)
    with tracing(model, "blocks.1.out", edit=_edited(model, loaded)) as after:
        _read(model, TEXT)
    moved = after["blocks.1.out"] - before["blocks.1.out"]
    assert_close(moved, torch.from_numpy(0.8 * vector).expand_as(moved), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="31 numbers, the residual stream 32"):
        _edited(model, Add(1, [0.0] * 31))
    with pytest.raises(UserError, match="at least one"):
        steering.difference(model, [TEXT], [], layer=1)


def planted() -> Decoder:
    """Two layers by hand: head 0.1 copies the token before, head 1.2 looks for who came after the like of
    this one.

    The stream has four parts of 16: the token, its place, the token before (written by 0.1) and what 1.2
    found. A token is a random direction, a place a one-hot; the norm's size is the same for all, since every
    row has the same length.
    """
    vocab, places, part = 40, 32, 32
    width = 4 * part
    heads = mha.Config(heads=4, key_size=part, scale=60.0)
    block = Block(heads, MLP(4))
    model = Decoder(Config(vocab, width, places, (block, block), position=SHAPES["gpt2"]().position)).eval()
    token, place, before = (slice(i * part, (i + 1) * part) for i in range(3))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.zero_()
        model.embedding.weight[:, token] = torch.nn.functional.normalize(torch.randn(vocab, part), dim=-1)
        assert model.position is not None
        model.position.weight[:places, place] = torch.eye(places, part)
        first, second = (block.attention for block in model.blocks)
        one, two = slice(part, 2 * part), slice(2 * part, 3 * part)
        # Head 0.1: the query at place p asks for place p - 1, and brings that token into the third part.
        first.query.weight[one, place] = torch.eye(part).roll(-1, 0)
        first.query.weight[one, place][-1] = 0
        first.key.weight[one, place] = torch.eye(part)
        first.value.weight[one, token] = torch.eye(part)
        first.out.weight[before, one] = torch.eye(part)
        # Head 1.2: the query's own token meets the keys' token before.
        second.query.weight[two, token] = torch.eye(part)
        second.key.weight[two, before] = torch.eye(part)
        second.value.weight[two, token] = torch.eye(part)
    return model


class Forty(Bytes):
    """As many tokens as the planted model has."""

    def __len__(self) -> int:
        return 40


def test_a_planted_induction_head_is_found() -> None:
    model = planted()
    subject = Subject.of(model, Forty())
    induction = np.stack(head_scores.induction_scores(subject, length=12))
    previous = np.stack(head_scores.previous_token_scores(subject, length=12))
    assert divmod(int(induction.argmax()), 4) == (1, 2)
    assert divmod(int(previous.argmax()), 4) == (0, 1)
    assert induction[1, 2] > 0.7, "not 1: a random token may also have come up earlier in its own pass"
    assert previous[0, 1] > 0.9
    induction[1, 2] = previous[0, 1] = 0
    assert induction.max() < 0.2 and previous.max() < 0.3


def test_induction_heads_need_the_head_before_them() -> None:
    model = planted()
    with torch.no_grad():
        model.blocks[0].attention.out.weight.zero_()
    assert np.stack(head_scores.induction_scores(Subject.of(model, Forty()), length=12)).max() < 0.2


def test_neighbours_are_those_of_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    rows[7] = 0
    monkeypatch.setattr("cutaway.embedding.neighbours.ROWS", 16)
    ids, cosines = nearest(rows, np.array([3, 30, 7]), 4)
    for row, found, values in zip((3, 30), ids, cosines, strict=False):
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(rows[row])
        all_of_them = [
            (-np.inf if i == row or i == 7 else rows[i] @ rows[row] / lengths[i]) for i in range(50)
        ]
        assert found.tolist() == np.argsort(all_of_them)[::-1][:4].tolist()
        assert values == pytest.approx(sorted(all_of_them)[::-1][:4], abs=1e-5)
    assert (cosines[2] == 0).all()
    assert nearest(rows[:3], np.array([0]), 10)[0].shape == (1, 2)


@pytest.mark.parametrize("text", ["The capital of France is", "2 + 2 ="])
def test_smollm2s_logits_add_up(smollm2, text: str) -> None:
    trace = smollm2.trace(text)
    assert np.allclose(trace.logits, smollm2.logits(smollm2.ids(text)), rtol=1e-3, atol=1e-3)
    for position in (0, 1, -1):
        found = trace.attribution(position=position)
        assert abs(found.rest) < 1e-3
        for parts, sources in zip(found.heads, found.sources, strict=True):
            np.testing.assert_allclose(sources.sum(-1), parts, rtol=1e-3, atol=1e-3)


def test_the_head_that_reads_france_makes_paris(smollm2) -> None:
    trace = smollm2.trace("The capital of France is")
    assert trace.top(1)[0].token == " Paris"
    assert explanation.chosen_reading(trace.attribution()) == (23, 4, 3)
    assert float(trace.attention(23)[4, -1, 3]) > 0.8
    without = smollm2.trace("The capital of France is", edit=edits.ablation("23.4"))
    assert trace.top(1)[0].probability > 2 * float(softmax(without.logits[-1])[trace.top(1)[0].id])


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("shape", ["llama", "mixture"])
def test_what_neurons_output_adds_up_to_what_the_mlp_adds(shape: str, scale: float) -> None:
    """Their output weights have what multiplies the MLP's output too."""
    model = decoder(shape)
    of = model.config
    blocks = tuple(replace(block, mlp=replace(block.mlp, out_scale=scale)) for block in of.blocks)
    scaled = Decoder(replace(of, blocks=blocks)).eval()
    scaled.load_state_dict(model.state_dict())
    trace = Trace.of(scaled, Bytes(), Bytes().encode("the same"), ["blocks.*", *neuron_names(of)])
    for i in range(len(blocks)):
        added = trace[f"blocks.{i}.out"] - trace[f"blocks.{i}.middle"]
        weights = neurons.output_weights(trace.instrumented, i)
        assert np.allclose(neurons.activations(trace, i) @ weights.T, added, atol=1e-5)
