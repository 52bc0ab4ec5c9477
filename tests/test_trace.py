"""Tracing: what is watched is not changed, what is edited changes as named, and what was asked and not heard
is named.
"""

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cutaway import tracing
from cutaway.errors import UserError
from cutaway.hooks import _watchers, stopping, tap, unheard
from cutaway.inspect.edits import Ablate, Add
from cutaway.inspect.inputs import attribution_names
from cutaway.inspect.names import aliases
from cutaway.inspect.subject import Subject
from cutaway.inspect.trace import Trace, trace_texts
from cutaway.layers.config import MoE
from cutaway.model.decoder import Decoder
from cutaway.weights import safetensors
from tests.small import SHAPES, Bytes, decoder

TEXT = list(b"what a tap hears")
# The naive path is watched and torch's fused kernel is not; both are softmax, rounded differently.
PATHS = {"rtol": 1e-4, "atol": 1e-4}


def _read(model: nn.Module, ids: list[int] = TEXT) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]), torch.arange(len(ids))[None])


def _vocabulary(model: Decoder) -> set[str]:
    """The names that docs/inspect.md promises, and docs/moe.md of layers with experts."""
    words = ["q", "k", "v", "scores", "pattern", "z", "out"]
    names = {"embed", "logits", "norm.scale"}
    for i, block in enumerate(model.config.blocks):
        rotated = ["q_unrotated", "k_unrotated"] if block.attention.position else []
        attention = [f"attention.{word}" for word in (*words, *rotated)]
        attention += [f"{norm}.scale" for norm in block.norms]
        attention += [
            f"attention.{norm}.scale" for norm in ("query_norm", "key_norm") if block.attention.qk_norm
        ]
        mlp = ["hidden"]
        if isinstance(block.mlp, MoE):
            mlp = ["scores", "expert_indices", "expert_weights", "input", "out"]
            mlp += [f"experts.{e}.hidden" for e in range(block.mlp.experts)]
            mlp += ["shared.hidden"] if block.mlp.shared else []
        inside = (*attention, *(f"mlp.{word}" for word in mlp), "middle", "out")
        names |= {f"blocks.{i}.{word}" for word in inside}
    return names


@pytest.mark.parametrize("shape", SHAPES)
def test_the_vocabulary_is_heard_and_nothing_else(shape: str) -> None:
    model = decoder(shape)
    with tracing(model) as seen:
        _read(model)
    assert set(seen) == _vocabulary(model)
    assert next(iter(seen)) == "embed" and list(seen)[-1] == "logits"


@pytest.mark.parametrize("shape", SHAPES)
def test_watching_changes_nothing(shape: str) -> None:
    model = decoder(shape)
    before = _read(model)
    for names in ((), ("*",), ("*.pattern",), ("blocks.0.out",)):
        with tracing(model, *names):
            watched = _read(model)
        assert_close(watched, before, **PATHS)
    with tracing(model, "blocks.*.middle", edit={"*.mlp.hidden": lambda value: value}):
        assert torch.equal(_read(model), before), (
            "without scores or patterns the path is the same, and so is every bit"
        )
    assert torch.equal(_read(model), before)


def test_nothing_stays_behind() -> None:
    model = decoder()
    with tracing(model, "*"):
        _read(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert tap("free", 3) == 3


def test_only_what_was_asked_is_kept() -> None:
    model = decoder()
    with tracing(model, "blocks.1.attention.pattern", "*.middle") as seen:
        _read(model)
    assert set(seen) == {"blocks.1.attention.pattern", *(f"blocks.{i}.middle" for i in range(3))}


def test_a_star_also_keeps_the_layers_outputs() -> None:
    model = decoder()
    with tracing(model, "*") as seen:
        _read(model)
    assert {"embedding", "norm", "blocks.2.mlp.gate", "blocks.0.attention.query"} < set(seen)
    assert _vocabulary(model) < set(seen)


def test_patterns_are_what_attention_used() -> None:
    model = decoder()
    with tracing(model) as seen:
        _read(model)
    pattern, v = seen["blocks.1.attention.pattern"], seen["blocks.1.attention.v"]
    assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
    assert (pattern.triu(1) == 0).all()
    assert_close(pattern @ v.repeat_interleave(2, dim=1), seen["blocks.1.attention.z"])


@torch.no_grad()
def test_ablation_by_edit_is_zeroing_the_weights() -> None:
    model, head, size = decoder(), 2, 8

    def silence(mixed: torch.Tensor) -> torch.Tensor:
        mixed = mixed.clone()
        mixed[:, head] = 0
        return mixed

    with tracing(model, edit={"blocks.1.attention.z": silence}):
        edited = _read(model)
    model.blocks[1].attention.out.weight[:, head * size : (head + 1) * size] = 0
    zeroed = _read(model)
    assert_close(edited, zeroed)
    assert (edited - _read(decoder())).abs().max() > 1e-3


def test_an_edit_changes_what_it_names_and_what_follows() -> None:
    model = decoder()
    names = ("blocks.*.middle", "blocks.*.out", "blocks.*.hidden", "embed")
    with tracing(model, *names) as before:
        _read(model)
    with tracing(model, *names, edit={"blocks.1.mlp.hidden": lambda value: value * 0}) as after:
        _read(model)
    same = [name for name in after if torch.equal(after[name], before[name])]
    untouched = {"blocks.0.middle", "blocks.0.out", "blocks.0.mlp.hidden", "blocks.0.attention.out"}
    assert set(same) == {"embed", *untouched, "blocks.1.middle", "blocks.1.attention.out"}
    assert (after["blocks.1.mlp.hidden"] == 0).all(), "what is kept is what the model went on with"
    assert torch.equal(after["blocks.1.out"], after["blocks.1.middle"])


def test_a_layers_output_can_be_edited_too() -> None:
    model = decoder()
    with tracing(
        model, "blocks.1.middle", "blocks.0.out", edit={"blocks.1.attention.out": torch.zeros_like}
    ) as seen:
        _read(model)
    assert torch.equal(seen["blocks.1.middle"], seen["blocks.0.out"])


def test_two_edits_of_one_value_follow_each_other() -> None:
    model = decoder()
    edit = {"embed": lambda x: x + 1, "emb*": lambda x: x * 0}
    with tracing(model, "embed", edit=edit) as seen:
        _read(model)
    assert (seen["embed"] == 0).all()


@pytest.mark.parametrize("name", ["blocks.9.out", "*.patern", "blocks.0.attention"])
def test_a_name_that_never_appears_is_refused(name: str) -> None:
    model = decoder()
    with pytest.raises(UserError, match="nothing named"), tracing(model, name, "embed"):
        _read(model)
    with pytest.raises(UserError, match="nothing named"), tracing(model, edit={name: lambda value: value}):
        _read(model)


def test_an_edit_of_another_shape_is_refused() -> None:
    model = decoder()
    with (
        pytest.raises(UserError, match="must return the shape"),
        tracing(model, edit={"embed": lambda x: x[:, 1:]}),
    ):
        _read(model)
    with pytest.raises(UserError, match="it returned a float"), tracing(model, edit={"embed": lambda x: 1.0}):
        _read(model)


def test_traces_nest_and_keep_what_the_model_went_on_with() -> None:
    model = decoder()
    with tracing(model, "blocks.1.*") as alone:
        usual = _read(model)
    names = "blocks.1.mlp.hidden", "blocks.1.mlp.down", "blocks.1.out"
    outer, inner = ({f"blocks.1.mlp.{name}": by for name in ("hidden", "down")} for by in (_plus, _double))
    with tracing(model, *names, edit=outer) as outside:
        with tracing(model, *names, edit=inner) as inside:
            twice = _read(model)
        for name in names:
            assert torch.equal(outside[name], inside[name]), "an outer trace keeps what inner edits made"
        assert_close(inside[names[0]], (alone[names[0]] + 1) * 2)
        once = _read(model)
        assert_close(outside[names[0]], alone[names[0]] + 1)
    assert not torch.equal(twice, once)
    assert_close(_read(model), usual, **PATHS)


def test_a_part_is_traced_while_the_whole_is() -> None:
    model = decoder()
    with tracing(model, "blocks.1.attention.pattern", "embed") as whole:
        with tracing(model.blocks[1], "attention.pattern") as part:
            _read(model)
        with unheard():
            _read(model, TEXT[:3])
    assert torch.equal(whole["blocks.1.attention.pattern"], part["attention.pattern"])
    assert whole["embed"].shape[1] == len(TEXT), "a pass inside unheard() is not heard"


def test_a_pass_stops_after_a_module_and_the_next_is_whole() -> None:
    model, ran = decoder(), []
    usual = _read(model)
    handle = model.blocks[2].register_forward_hook(lambda *_: ran.append(1))
    with tracing(model, "blocks.1.out") as seen, stopping(model.blocks[1]):
        _read(model)
    assert not ran and set(seen) == {"blocks.1.out"}
    with tracing(model, "logits") as outside:
        with tracing(model, "blocks.1.out"), stopping(model.blocks[1]):
            _read(model)
        assert torch.equal(outside["logits"], usual), "an outer trace wants what follows"
    assert ran == [1]
    handle.remove()


def _plus(value: torch.Tensor) -> torch.Tensor:
    return value + 1


def _double(value: torch.Tensor) -> torch.Tensor:
    return value * 2


@pytest.mark.parametrize("cast", [torch.Tensor.double, torch.Tensor.numpy])
def test_an_edit_may_return_float64_or_numpy(cast) -> None:
    model = decoder()
    with tracing(model, "logits", edit={"blocks.1.out": _plus}):
        usual = _read(model)
    with tracing(model, edit={"blocks.1.out": lambda value: cast(_plus(value))}):
        assert torch.equal(_read(model), usual)


def test_a_failure_inside_closes_the_trace_and_stays_itself() -> None:
    model = decoder()
    with pytest.raises(ZeroDivisionError), tracing(model, "blocks.9.out"):
        1 / 0
    assert not _watchers
    assert not any(module._forward_hooks for module in model.modules())


def test_a_reading_that_failed_halfway_does_not_misname_the_next() -> None:
    model = decoder()

    def once(value: torch.Tensor) -> None:
        if not failed:
            failed.append(True)
            raise ArithmeticError

    failed: list[bool] = []
    with tracing(model, "*.middle", "*logits", edit={"blocks.1.mlp.hidden": once}) as seen:
        with pytest.raises(ArithmeticError):
            _read(model)
        logits = _read(model)
        model.logits(torch.ones(1, 1, 32))
        assert torch.equal(seen["logits"], logits), (
            "the head alone is not a reading of the model, and is unheard"
        )
    assert set(seen) == {"blocks.0.middle", "blocks.1.middle", "blocks.2.middle", "logits"}


def test_another_thread_may_run_the_model_unheard() -> None:
    model = decoder()
    usual, heard = _read(model), []
    with tracing(model, edit={"blocks.0.out": lambda value: value * 0}):
        other = threading.Thread(target=lambda: heard.append(_read(model)))
        other.start()
        other.join()
        edited = _read(model)
    assert torch.equal(heard[0], usual)
    assert (edited - usual).abs().max() > 1e-3


def test_a_trace_keeps_what_was_asked_and_the_logits() -> None:
    model = decoder()
    trace = Trace.of(model, Bytes(), TEXT, names=["blocks.0.middle"])
    assert set(trace) == {"blocks.0.middle", "logits"}
    assert trace["blocks.0.middle"].shape == (len(TEXT), 32)
    assert_close(torch.from_numpy(trace.logits), _read(model)[0])
    with pytest.raises(UserError, match="did not keep"):
        trace.attention(0)
    assert set(Trace.of(model, Bytes(), TEXT)) == _vocabulary(model)
    with pytest.raises(UserError, match=r"attribution needs 'blocks.2.out'.*names=inputs\.attribution_names"):
        trace.attribution()
    enough = Trace.of(model, Bytes(), TEXT, names=attribution_names(model.config))
    assert enough.attribution().logit == pytest.approx(float(enough.logits[-1].max()))


def test_a_trace_with_an_edit_keeps_what_followed_from_it() -> None:
    trace = Trace.of(decoder(), Bytes(), TEXT, edit={"blocks.1.attention.pattern": torch.zeros_like})
    assert (trace.attention(1) == 0).all() and (trace["blocks.1.attention.z"] == 0).all()
    assert trace.attention(-1).shape == (4, len(TEXT), len(TEXT))


def test_a_trace_answers_about_the_next_token() -> None:
    model = decoder()
    trace = Trace.of(model, Bytes(), TEXT)
    chances = _read(model)[0].softmax(-1)
    for position in (0, -1):
        best = trace.top(3, position)
        assert [guess.id for guess in best] == chances[position].topk(3).indices.tolist()
        assert_close(
            torch.tensor([guess.probability for guess in best]), chances[position].topk(3).values, **PATHS
        )
    assert trace.tokens[0] == "w" and len(trace.top(1000)) == 256
    assert Trace.of(model, Bytes(), [0, 0xC3]).tokens == ["<end>", "\\xc3"]


def test_norms_are_the_streams_lengths() -> None:
    trace = Trace.of(decoder(), Bytes(), TEXT)
    norms = trace.residual_norms()
    assert list(norms) == ["embed", *(f"blocks.{i}.{half}" for i in range(3) for half in ("middle", "out"))]
    assert np.allclose(norms["blocks.1.out"], np.sqrt(np.square(trace["blocks.1.out"]).sum(-1)))


@pytest.mark.parametrize(
    ("ids", "why"),
    [([], "no tokens"), ([1] * 65, "65 tokens.*context holds 64"), ([256], "token 256"), ([-1], "token -1")],
)
def test_what_the_model_cannot_read_is_refused(ids: list[int], why: str) -> None:
    with pytest.raises(UserError, match=why):
        Trace.of(decoder(), Bytes(), ids)


def test_maps_that_would_not_fit_are_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutaway.inspect.trace.MOST_BYTES", 4 * 3 * 4 * 2 * 10 * 10)
    with pytest.raises(UserError, match=r"16 tokens.*up to 10"):
        Trace.of(decoder(), Bytes(), TEXT)
    Trace.of(decoder(), Bytes(), TEXT[:10])
    Trace.of(decoder(), Bytes(), TEXT, names=["blocks.*.out"])


@pytest.mark.parametrize(
    "ask", [lambda t: t.attention(3), lambda t: t.top(1, 16), lambda t: t.attribution(position=-17)]
)
def test_layers_and_positions_that_are_not_there_are_refused(ask) -> None:
    with pytest.raises(UserError, match="there is no"):
        ask(Trace.of(decoder(), Bytes(), TEXT))


TEXTS = [TEXT, list(b"shorter"), list(b"what a batch of texts hears is long")]


@pytest.mark.parametrize("shape", ["llama", "gpt2", "gemma"])
def test_a_batch_is_its_texts_one_by_one(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(shape)
    names = [
        "blocks.*.out",
        "blocks.0.attention.pattern",
        "blocks.1.attention.scores",
        "blocks.*.attention.z",
    ]
    edit = [Ablate(0, "head", 1, positions=[-1]), Add(1, [0.5] * 32, positions=[0, -2])]
    monkeypatch.setattr("cutaway.inspect.instrumented_pytorch.BATCH", 2)
    traces = trace_texts(Subject.of(model, Bytes()), TEXTS, names, edit)
    longest = max(map(len, TEXTS))
    assert traces.mask.sum(1).tolist() == list(map(len, TEXTS)) and traces.mask.shape == (3, longest)
    for i, (text, trace) in enumerate(zip(TEXTS, traces, strict=True)):
        alone = Trace.of(model, Bytes(), text, names, edit)
        assert trace.ids == tuple(text) and set(trace) == set(alone) - {"logits"}
        for name in trace:
            np.testing.assert_allclose(trace[name], alone[name], **PATHS)
        whole = traces["blocks.1.attention.z"]
        assert whole.shape[:3] == (3, 4, longest) and not whole[i, :, len(text) :].any()
        np.testing.assert_allclose(traces.at("blocks.1.out", -2)[i], alone["blocks.1.out"][-2], **PATHS)
    with pytest.raises(UserError, match="no position 7"):
        traces.at("blocks.1.out", 7)
    with pytest.raises(UserError, match="did not keep 'logits'"):
        traces[0].top()


def test_a_trace_computes_no_layer_after_the_last_that_is_named() -> None:
    model, ran = decoder(), []
    model.blocks[1].register_forward_hook(lambda *_: ran.append(1))
    subject = Subject.of(model, Bytes(), Add(2, [1.0] * 32))
    for names in (["embed"], ["blocks.0.out"], ["blocks.1.hook_resid_pre", "blocks.0.mlp.hidden"]):
        trace_texts(subject, [TEXT], ["blocks.2.out"])  # names are known now
        ran.clear()
        trace_texts(subject, [TEXT], names)
        assert not ran


@pytest.mark.parametrize("shape", ["llama", "gpt2", "gemma", "mixture"])
def test_transformer_lens_names_are_aliases(shape: str) -> None:
    """Against the equations, for those that have no other name here."""
    model = decoder(shape)
    trace = Trace.of(model, Bytes(), TEXT, ["*hook_*", "*.out", "*"])
    lens = aliases(set(trace), len(model.blocks))
    before = trace["blocks.1.hook_resid_pre"]
    assert np.array_equal(before, trace["blocks.0.out"])
    assert np.array_equal(trace["ln_final.hook_normalized"], trace["norm"])
    centred = before - before.mean(-1, keepdims=True) if shape == "gpt2" else before
    scale = np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)
    assert np.allclose(trace["blocks.1.ln1.hook_scale"], scale, rtol=1e-3, atol=1e-3)
    normed = torch.from_numpy(trace["blocks.1.ln1.hook_normalized"])
    q = model.blocks[1].attention.query(normed).detach().numpy()
    if shape in ("llama", "mixture"):
        own = trace["blocks.1.attn.hook_q"].swapaxes(0, 1).reshape(len(TEXT), -1)
        np.testing.assert_allclose(own, q, rtol=1e-5, atol=1e-5)
    middle, after = (trace[f"blocks.1.{name}"] for name in ("hook_resid_mid", "hook_resid_post"))
    assert np.allclose(middle, before + trace["blocks.1.hook_attn_out"], rtol=1e-5, atol=1e-5)
    assert np.allclose(after, middle + trace["blocks.1.hook_mlp_out"], rtol=1e-5, atol=1e-5)
    assert "blocks.0.mlp.hook_post" in lens or shape == "mixture"
    with pytest.raises(UserError, match=r"near are .*blocks\.1\.hook_resid_post"):
        Trace.of(model, Bytes(), TEXT, ["blocks.1.hook_resid_pst"])


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_a_norms_scale_and_unrotated_queries_can_be_edited(shape: str) -> None:
    model = decoder(shape)
    trace = Trace.of(model, Bytes(), TEXT, ["*"])
    twice = Trace.of(model, Bytes(), TEXT, ["*"], {"norm.scale": _double})
    bias = 0 if shape == "llama" else model.norm.bias.detach().numpy()
    assert np.allclose(twice["norm"] - bias, (trace["norm"] - bias) / 2, atol=1e-6)
    if shape == "llama":
        zero = Trace.of(model, Bytes(), TEXT, ["*"], {"blocks.0.attn.hook_q": torch.zeros_like})
        assert not zero["blocks.0.attention.scores"].any()


@pytest.mark.parametrize("shape", ["llama", "gemma"])
def test_gradients_are_those_of_finite_differences(shape: str) -> None:
    model = decoder(shape).double()
    trace = Trace.of(model, Bytes(), TEXT)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[-1, 7] - logits[-1, 9]

    kept = ["blocks.0.out", "blocks.1.attn.hook_z", "blocks.1.mlp.hidden"]
    grads = trace.grads(metric, kept)
    for asked, name in zip(kept, grads, strict=True):
        grad = grads[name]
        step = torch.randn(grad.shape, dtype=torch.double, generator=torch.Generator().manual_seed(1)) * 1e-6
        moved = Trace.of(model, Bytes(), TEXT, ["logits"], {name: lambda value, step=step: value + step})
        assert float(metric(moved.logits) - metric(trace.logits)) == pytest.approx(
            float((grad * step.numpy()).sum()), rel=1e-3
        )
        assert np.array_equal(grads[asked], grads[name])
    with pytest.raises(UserError, match="does not depend on 'embedding'"):
        trace.grads(metric, ["embedding"])


def test_a_trace_is_kept_in_a_file_and_pickled(tmp_path: Path) -> None:
    subject = Subject.of(decoder("mixture"), Bytes())
    trace = trace_texts(subject, [TEXT])[0]
    trace.save(tmp_path / "trace.safetensors")
    for again in (Trace.load(tmp_path / "trace.safetensors"), pickle.loads(pickle.dumps(trace))):
        assert again.ids == trace.ids and again.tokens == trace.tokens and set(again) == set(trace)
        assert all(
            np.array_equal(again[name], trace[name]) and again[name].dtype == trace[name].dtype
            for name in trace
        )
        assert np.array_equal(again["blocks.1.hook_resid_post"], trace["blocks.1.out"])
        assert again.engine == trace.engine and trace.engine.name == "pytorch"
        with pytest.raises(UserError, match="loaded without its model"):
            again.lens()
    joined = Trace.load(tmp_path / "trace.safetensors", subject)
    assert np.array_equal(joined.lens().ids, trace.lens().ids)
    (tmp_path / "other.safetensors").write_bytes(safetensors.packed({}))
    with pytest.raises(UserError, match="is no trace"):
        Trace.load(tmp_path / "other.safetensors")


def test_a_trace_is_a_table_with_named_axes() -> None:
    trace = Trace.of(decoder("gemma"), Bytes(), TEXT)
    table = trace.to_pandas("blocks.1.attention.pattern")
    assert table.index.names == ["head", "token"] and table.loc[(2, 5), "text"] == chr(TEXT[5])
    assert table.loc[(2, 5)][3] == pytest.approx(float(trace.attention(1)[2, 5, 3]))
    data = trace.to_xarray()
    assert data["blocks.1.attention.pattern"].dims == ("head", "token", "key")
    assert data["blocks.1.out"].sel(token=3).shape == (32,) and data["text"].values[0] == "w"
    assert data["blocks.0.attention.k"].dims[0] == "head_2", "two key-value heads beside four heads"
