"""Edges on models with norms after attention, and into heads' queries, keys and values."""

import inspect
from typing import Any

import pytest
import torch

from cutaway.errors import UserError
from cutaway.hooks import tracing
from cutaway.inspect import gradients, patching
from cutaway.inspect.subject import Subject
from tests.small import Bytes, decoder
from tests.test_graph import model_of

TEXT, OTHER = list(b"all of it adds"), list(b"all of us add!")


def metric(logits: torch.Tensor) -> torch.Tensor:
    return logits[-1, 9] - logits[-1, 7]


def summed(made: gradients.Circuit) -> dict[str, float]:
    """The effects into each receiver together."""
    found: dict[str, float] = {}
    for _, receiver, effect in made.edges:
        found[receiver] = found.get(receiver, 0.0) + effect
    return found


@pytest.mark.parametrize("family", ["gemma", "olmo2", "parallel", "latent"])
def test_edges_into_a_receiver_sum_to_its_inputs_effect(family: str) -> None:
    """Senders add up to the residual stream, so their effects do, by norms after attention and MLPs too: they
    are the metric's rate when what one receiver reads moves towards the other text's.
    """
    subject, step = Subject.of(model_of(family).double(), Bytes()), 1e-6
    found, model = summed(gradients.circuit(subject, TEXT, OTHER, metric=metric)), subject.pytorch.model
    last = len(model.config.blocks) - 1
    shared = model.config.blocks[last].parallel == "shared"
    norms = [f"blocks.{last}.{half}_norm" for half in ("attention", "mlp")]
    before = f"blocks.{last - 1}.out"
    reads = {
        f"attention {last}": (before, norms[0], norms[0]),
        f"mlp {last}": (before if shared else f"blocks.{last}.middle", norms[1], norms[not shared]),
        "logits": (f"blocks.{last}.out", "norm", "norm"),
    }
    names = [stream for stream, _, _ in reads.values()]
    ours, theirs = (subject.pytorch.values([ids], names)[0] for ids in (TEXT, OTHER))

    def measured(ids: list[int], edit: dict[str, torch.Tensor] | None = None) -> float:
        given: Any = {name: lambda _, value=value: value[None] for name, value in (edit or {}).items()}
        with torch.no_grad(), tracing(model, edit=given):
            return float(metric(model(torch.tensor([ids]), torch.arange(len(ids))[None])[0]))

    here, there = measured(TEXT), measured(OTHER)
    for receiver, (stream, at, norm) in reads.items():
        x, towards = (torch.from_numpy(some[stream]).double() for some in (ours, theirs))
        of = model.get_submodule(norm)
        with torch.no_grad():
            edit = {at: of(x + step * (towards - x))}
            edit |= {norms[1]: of(x)} if shared and at == norms[0] else {}
        want = (measured(TEXT, edit) - here) / step / (there - here)
        assert found[receiver] == pytest.approx(want, rel=1e-4, abs=1e-5), receiver


@pytest.mark.parametrize("family", ["gemma", "parallel"])
def test_edges_into_queries_keys_and_values_are_those_into_attention(family: str) -> None:
    subject = Subject.of(model_of(family).double(), Bytes())
    whole = summed(gradients.circuit(subject, TEXT, OTHER, metric=metric))
    made = gradients.circuit(subject, TEXT, OTHER, metric=metric, receivers="heads")
    parts = summed(made)
    groups = subject.config.blocks[0].attention.groups
    for layer in range(len(subject.config.blocks)):
        own = [effect for name, effect in parts.items() if name.startswith(f"{layer}.")]
        assert len(own) == 4 + 2 * groups, "four queries, and keys and values of their groups"
        assert sum(own) == pytest.approx(whole[f"attention {layer}"], abs=1e-5)
    assert parts["mlp 1"] == pytest.approx(whole["mlp 1"], abs=1e-6)
    assert ("0.1", "1.0 k") in {edge[:2] for edge in made.edges}


def test_receivers_that_there_are_not() -> None:
    whole = inspect.unwrap(gradients.circuit)  # past the types that the tests check
    with pytest.raises(UserError, match="receivers is"):
        whole(Subject.of(decoder(), Bytes()), TEXT, OTHER, metric=metric, receivers="all")


def test_paths_go_through_norms_after_attention() -> None:
    """No head follows the last layer, so its heads' direct paths are their whole effects."""
    subject = Subject.of(decoder("gemma"), Bytes())
    direct = patching.path_patching(subject, TEXT, OTHER, metric=metric)
    whole = patching.patching(subject, TEXT, OTHER, "heads", metric=metric)
    assert direct[-1] == pytest.approx(whole[-1], abs=1e-4)
    assert abs(direct[0] - whole[0]).max() > 1e-3
