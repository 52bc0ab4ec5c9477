"""Readings ask one protocol: the runtime's answers are the PyTorch model's, and each says who answered."""

import fnmatch
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway import native
from cutaway.errors import UserError
from cutaway.hooks import TAPS
from cutaway.inspect import activation_quant, derived, edits, explanation, neurons, page_data
from cutaway.inspect.attribution import head_outputs
from cutaway.inspect.head_scores import head_scores
from cutaway.inspect.inputs import neuron_names
from cutaway.inspect.instrumented import head_table
from cutaway.inspect.instrumented_pytorch import InstrumentedPyTorch
from cutaway.inspect.instrumented_runtime import InstrumentedRuntime
from cutaway.inspect.logit_attribution import logit_attribution
from cutaway.inspect.logit_lens import divergences
from cutaway.inspect.subject import Subject
from cutaway.inspect.trace import Trace, trace_texts
from cutaway.quantization import formats
from cutaway.runtime.engine import RuntimeEngine
from cutaway.runtime.reference import ReferenceEngine
from tests import inputs
from tests.rounding import noise
from tests.small import Bytes, model_file
from tests.test_runtime import IDS, SHAPES, config, definition, tensors, wide
from tests.test_runtime_adapters import changed, low_rank

compiled = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)
TEXT = IDS[:12]


class Numbers(Bytes):
    """The vocabulary of the small models."""

    def __len__(self) -> int:
        return 101


TIMES = {"diffllama": 16}  # its maps are subtracted: what halves of keys and values cost counts twice


@functools.cache
def subject(name: str) -> Subject:
    """A small model on the runtime, and the PyTorch model with the runtime's rounding for the rest."""
    of = config(name)
    entries = tensors(of)
    pytorch = InstrumentedPyTorch(definition(of, entries).model, activation_quant.edits(of, entries))
    runtime = InstrumentedRuntime(RuntimeEngine(of, entries), entries)
    return Subject(runtime, Numbers(), other=lambda: pytorch)


def by_pytorch(of: Subject) -> Subject:
    return Subject(of.pytorch, of.tokenizer, of.edit)


def answers(trace: Trace, of: Subject) -> np.ndarray:
    """Every reading of a trace as one vector."""
    found, lens, layers = trace.attribution(7, -2), trace.lens(), range(trace.layers)
    parts = [
        trace.logits,
        *trace.residual_norms().values(),
        *found.heads,
        found.mlps,
        found.beside,
        lens.final,
    ]
    parts += [sources for sources in found.sources if sources is not None]
    parts += [head_outputs(trace.instrumented, trace, layer) for layer in layers]
    if all(name in trace for name in neuron_names(trace.config)):
        weights = [neurons.output_weights(trace.instrumented, layer) for layer in layers]
        parts += [neurons.activations(trace, i) * np.linalg.norm(weights[i], axis=0) for i in layers]
        parts.append(np.nan_to_num(logit_attribution(of, trace.ids, [7, 9], "head").values))
    shown = explanation.explain(trace, 3).attention
    parts.append(np.array([] if shown is None else [one.score for one in shown.score.weights]))
    return np.concatenate([np.ravel(part) for part in parts]).astype(np.float64)


def within_noise(
    of: Subject, output: Callable[[Subject], np.ndarray], times: float = 8, draws: int = 2
) -> None:
    """The runtime's numbers are the PyTorch model's, but for what rounding each weight once does to them."""
    pytorch: Any = by_pytorch(of)
    bound = times * noise(pytorch.engine.model, lambda: torch.from_numpy(output(pytorch)), draws)
    assert np.abs(output(of) - output(pytorch)).max() <= bound


@compiled
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_readings_of_the_runtime_are_the_pytorch_models(name: str) -> None:
    of = subject(name)
    names = page_data.names(of.config)
    assert all(of.choose(some)[0] is of.engine for some in ((TAPS,), names, explanation.names(of.config)))
    within_noise(of, lambda some: answers(trace_texts(some, [TEXT], names)[0], some), TIMES.get(name, 8))
    rest = trace_texts(of, [TEXT], names)[0].attribution(7, -2).rest
    assert abs(rest) < 1e-4, "its parts are the logit"


@compiled
@pytest.mark.parametrize("name", ["deepseek-v3", "kimi", "qwen2-moe"])
def test_activations_that_follow_from_others_are_the_pytorch_models(name: str) -> None:
    """Keys and values of latent attention, and experts' neurons, by name and by wildcard."""
    of: Any = subject(name)
    names = [name for name in derived.names(of.config) if not name.endswith("result")]
    (ours,), (theirs,) = (each.values([TEXT], names) for each in (of.engine, of.pytorch))
    assert list(ours) == names and any(len(ours[one]) for one in names)
    assert all(ours[one].shape == theirs[one].shape for one in names)
    within_noise(of, lambda some: np.concatenate([x.ravel() for x in some.values([TEXT], names)[0].values()]))
    layer = names[0].split(".")[1]
    wildcard = "mlp.experts.*.hidden" if name == "qwen2-moe" else "attention.[kv]"
    some = fnmatch.filter(names, f"blocks.{layer}.{wildcard}")
    (again,) = of.engine.values([TEXT], [f"blocks.{layer}.{wildcard}"])
    assert list(again) == some and all(np.array_equal(again[one], ours[one]) for one in some)
    reason = of.engine.unsupported_reason((), [edits.Scale(name=some[0])], ())
    assert reason is not None and ("does not show" in reason or "latents" in reason)


@compiled
@pytest.mark.parametrize("name", ["qwen2", "mamba2", "qwen3-next", "diffllama"])
def test_what_heads_give_is_attentions_output(name: str) -> None:
    of: Any = subject(name)
    names = ["blocks.*.attention.result", "blocks.*.attention.out", "logits"]
    for engine in (of.engine, of.pytorch):
        (seen,) = engine.values([TEXT], names)
        results = [one for one in seen if one.endswith("result")]
        assert len(results) == 3 and not any(one.endswith((".z", "out_input")) for one in seen)
        for one in results:
            path = one.removesuffix(".result")
            bias = f"{path}.out.bias"
            whole = seen[one].sum(0) + (engine.weight(bias) if bias in of.config.weights() else 0)
            assert np.allclose(whole, seen[f"{path}.out"], atol=1e-4), one
    assert not any(one.endswith("result") for one in of.engine.resolve(["blocks.*.attention.*", TAPS]))
    if name == "qwen2":
        theirs = trace_texts(of, [TEXT], ["blocks.1.attn.hook_result"])[0]["blocks.1.attn.hook_result"]
        (own,) = of.engine.values([TEXT], ["blocks.1.attention.result"])
        assert np.array_equal(theirs, own["blocks.1.attention.result"])


@compiled
@pytest.mark.parametrize("name", ["llama", "olmo", "diffllama"])
def test_edited_readings_are_the_pytorch_models(name: str) -> None:
    given = [edits.Ablate(0, "head", 1, positions=[3, -1]), edits.Add(1, [0.3] * 50, [0, 5], 2.0)]
    of = subject(name).edited(given)
    names = explanation.names(of.config)
    trace = trace_texts(of, [TEXT], names)[0]
    assert trace.engine.name == "runtime"
    assert not np.array_equal(trace.logits, trace_texts(subject(name), [TEXT], names)[0].logits)
    within_noise(of, lambda some: answers(trace_texts(some, [TEXT], names)[0], some), TIMES.get(name, 8))


@compiled
def test_scores_of_heads_and_distances_of_two_models_are_the_pytorch_models() -> None:
    of = subject("qwen3")
    for kind in ("induction", "previous"):
        within_noise(of, lambda some: np.nan_to_num(head_scores(some, kind, 8, 2).values))  # noqa: B023
    other = of.edited(edits.Scale(0, "mlp", strength=0.5))

    def apart(some: Subject) -> np.ndarray:
        traces = [
            trace_texts(one, [TEXT], ["embed", "blocks.*.out"])[0] for one in (some, some.edited(other.edit))
        ]
        engines: Any = tuple(trace.instrumented for trace in traces)
        residuals: Any = tuple(trace.residuals() for trace in traces)
        return divergences(engines, residuals, 101)

    within_noise(of, apart)
    assert apart(of)[0].max() == 0 and apart(of)[1:].min() > 0


@compiled
def test_the_reference_shows_the_runtimes_bits() -> None:
    of = config("gpt2")
    entries = tensors(of)
    ours, theirs = (
        InstrumentedRuntime(engine(of, entries), entries) for engine in (RuntimeEngine, ReferenceEngine)
    )
    names = [name for name in ours.shapes() if not name.endswith("pattern")]
    for one, other in zip(*(each.values([TEXT, TEXT[:3]], names) for each in (ours, theirs)), strict=True):
        assert list(one) == list(other) == names
        assert all(np.array_equal(one[name], other[name]) for name in names)
        assert np.array_equal(ours.unembed(one["blocks.2.out"]), one["logits"])
        assert np.array_equal(theirs.unembed(one["blocks.2.out"]), one["logits"])


@compiled
@pytest.mark.parametrize("type", ["F16", "BF16", "Q8_0", "Q6_K"])
def test_rows_are_unembedded_as_the_engine_does(type: str) -> None:
    """Of a packed head, whose vectors are rounded twice, to the bit; its weights are those of the file."""
    of, entries = wide(type)
    engine = InstrumentedRuntime(RuntimeEngine(of, entries), entries)
    (values,) = engine.values([TEXT], ["blocks.1.out", "logits"])
    assert np.array_equal(engine.unembed(values["blocks.1.out"]), values["logits"])
    rows = head_table(engine)
    assert rows.shape == (160, 256) and len(rows[3:9]) == 6
    name = "embedding.weight" if of.tied else "head.weight"
    assert np.array_equal(rows[np.array([7, 3])], formats.unpack(entries[name])[[7, 3]])
    assert np.array_equal(
        engine.weight("blocks.1.mlp.down.weight"), formats.unpack(entries["blocks.1.mlp.down.weight"])
    )


@compiled
def test_a_text_has_the_same_bits_alone_in_pieces_and_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each under its own edits, and with the logits of some positions alone."""
    engine: Any = subject("gemma3").engine
    texts = [IDS[:30], IDS[5:8], IDS[40:41], IDS[:30]]
    given: list[Any] = [edits.Ablate(1, "mlp"), (), edits.Scale(0, "head", 2, 3.0), ()]
    names = ["embed", "blocks.1.attention.q", "blocks.*.attention.pattern", "blocks.2.out", "logits"]
    alone = [engine.values([text], names, [one])[0] for text, one in zip(texts, given, strict=True)]
    assert not np.array_equal(alone[0]["blocks.2.out"], alone[3]["blocks.2.out"])
    monkeypatch.setattr("cutaway.inspect.instrumented_runtime.CHUNK", 7)
    beside = engine.values(texts, names, given)
    for one, other in zip(alone, beside, strict=True):
        assert list(one) == list(other)
        assert all(np.array_equal(one[name], other[name]) for name in one)
    some = engine.values(texts, ["logits"], given, logits_at=[-1, 0])
    assert all(
        np.array_equal(few["logits"], all_of["logits"][[-1, 0]])
        for few, all_of in zip(some, alone, strict=True)
    )
    pytorch = subject("gemma3").pytorch.values(texts, ["logits"], given, logits_at=[-1, 0])
    assert [one["logits"].shape for one in pytorch] == [(2, 101)] * 4
    assert all(
        np.allclose(*(one["logits"] for one in pair), atol=0.05) for pair in zip(some, pytorch, strict=True)
    )


@compiled
def test_no_layer_runs_that_no_name_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = subject("llama").engine
    depths: list[int] = []
    shallow = RuntimeEngine.first_layers
    monkeypatch.setattr(RuntimeEngine, "first_layers", lambda own, n: depths.append(n) or shallow(own, n))
    given = [(edits.Ablate(0, "mlp"), edits.Ablate(2, "mlp"))]
    (values,) = engine.values([TEXT], ["blocks.0.out", "blocks.1.attention.q"], given)
    assert depths == [2] and list(values) == ["blocks.0.out", "blocks.1.attention.q"]


@compiled
def test_a_trace_states_which_engine_answered_and_why(tmp_path: Path) -> None:
    file = model_file(tmp_path / "tiny.gguf")
    lm = cutaway.load(file)
    trace = lm.trace("the bits")
    assert trace.engine == ("runtime", "it is the fastest here") and trace.attribution().heads
    other = lm.trace("the bits", names=["blocks.0.mlp.up"])
    assert other.engine == ("pytorch", "the runtime does not show 'blocks.0.mlp.up'")
    function = lm.trace("the bits", names=["embed"], edit={"embed": lambda value: value * 2})
    assert function.engine.name == "pytorch" and "function" in function.engine.reason
    assert np.allclose(function["embed"], 2 * trace["embed"])
    ablated = lm.edited(edits.Ablate(0, "head", 1)).trace("the bits", names=["blocks.0.attention.z"])
    assert ablated.engine.name == "runtime" and not ablated["blocks.0.attention.z"][1].any()
    with pytest.raises(UserError, match=r"nothing is named 'blocks\.0\.nothing'"):
        lm.trace("the bits", names=["blocks.0.nothing"])
    _ = lm.model
    asked = lm.trace("the bits", names=["embed"])
    assert asked.engine == ("pytorch", "lm.model was asked for and may have been changed")
    runtime = cutaway.load(file, engine="runtime")
    with cutaway.tracing(runtime.model, edit={"embed": lambda value: value * 0}):
        heard = runtime.trace("the bits", names=["embed"])
    assert not heard["embed"].any() and "a trace of lm.model is open" in heard.engine.reason
    assert cutaway.load(file, engine="pytorch").trace("the bits").engine == (
        "pytorch",
        "it was asked for",
    )
    (tmp_path / "trace.safetensors").unlink(missing_ok=True)
    saved = Trace.load(trace.save(tmp_path / "trace.safetensors"), lm)
    assert saved.engine == trace.engine and saved.instrumented.name == "pytorch"


@compiled
def test_weights_have_an_adapters_changes() -> None:
    of = config("llama")
    entries = tensors(of)
    adapter = low_rank(of)
    merged = changed(of, entries, adapter)
    engine = InstrumentedRuntime(RuntimeEngine(of, entries).adapted(adapter), merged)
    model = InstrumentedPyTorch(definition(of, merged).model)
    for name in of.weights():
        assert np.array_equal(engine.weight(name), model.weight(name)), name
    trace = trace_texts(Subject(engine, Numbers()), [TEXT], explanation.names(of))[0]
    assert abs(trace.attribution(7).rest) < 0.01, "what W_o changes is in the heads' parts"


@compiled
def test_smollm2_is_read_on_both_engines_alike() -> None:
    lm = cutaway.load(inputs.path("smollm2"), engine="runtime")
    of, text = lm.subject, lm.ids("The capital of France is")
    names = page_data.names(of.config)
    trace = trace_texts(of, [text], names)[0]
    assert trace.engine.name == "runtime" and trace.top(1)[0].token == " Paris"
    assert explanation.chosen_reading(trace.attribution()) == (23, 4, 3)

    def output(some: Subject) -> np.ndarray:
        read = trace_texts(some, [text], names)[0]
        found = read.attribution()
        return np.concatenate([read.logits[-1], *found.heads, found.mlps, read.lens().final.ravel()])

    within_noise(of, output, draws=1)
