"""Tracing: what is watched is not changed, what is edited changes as named, and what was asked and not heard
is named.
"""

import threading

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cutaway import tracing
from cutaway.errors import UserError
from cutaway.hooks import _watchers, tap
from cutaway.inspect.trace import Trace
from cutaway.layers.config import MoE
from cutaway.model.decoder import Decoder
from tests.small import SHAPES, Bytes, decoder

TEXT = list(b"what a tap hears")
# The naive path is watched and torch's fused kernel is not; both are softmax, rounded differently.
PATHS = {"rtol": 1e-4, "atol": 1e-4}


def _read(model: nn.Module, ids: list[int] = TEXT) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]), torch.arange(len(ids))[None])


def _vocabulary(model: Decoder) -> set[str]:
    """The names that docs/inspect.md promises, and docs/moe.md of layers with experts."""
    attention = [f"attention.{word}" for word in ("q", "k", "v", "scores", "pattern", "z", "out")]
    names = {"embed", "logits"}
    for i, block in enumerate(model.config.blocks):
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


def test_one_trace_at_a_time() -> None:
    model = decoder()
    with tracing(model, "embed"):
        with pytest.raises(UserError, match="already open"), tracing(model):
            pass
        _read(model)


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
    assert_close(trace.logits, _read(model)[0])
    with pytest.raises(UserError, match="did not keep"):
        trace.attention(0)
    assert set(Trace.of(model, Bytes(), TEXT)) == _vocabulary(model)


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
    assert_close(norms["blocks.1.out"], trace["blocks.1.out"].square().sum(-1).sqrt())


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
