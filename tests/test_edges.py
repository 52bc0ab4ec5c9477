"""Edges on models with norms after attention, and into heads' queries, keys and values."""

import inspect

import pytest
import torch

from cutaway.errors import UserError
from cutaway.inspect import causal, gradients
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


@pytest.mark.parametrize("shape", ["gemma"])
def test_edges_into_a_receiver_sum_to_its_inputs_effect(shape: str) -> None:
    """Senders add up to the residual stream, so their effects do, by norms after attention and MLPs too."""
    subject = Subject.of(decoder(shape).double(), Bytes())
    made = gradients.circuit(subject, TEXT, OTHER, metric=metric)
    found, model = summed(made), subject.pytorch.model
    reads = {
        "attention 2": ("blocks.1.out", "blocks.2.attention_norm"),
        "mlp 1": ("blocks.1.middle", "blocks.1.mlp_norm"),
    }
    reads["logits"] = ("blocks.2.out", "norm")
    ours, theirs = (
        subject.pytorch.values([ids], [at for at, _ in reads.values()])[0] for ids in (TEXT, OTHER)
    )
    here, there = (
        float(metric(subject.pytorch.run([ids], ["logits"])["logits"][0])) for ids in (TEXT, OTHER)
    )
    grads = gradients.gradients(subject, TEXT, metric, [norm for _, norm in reads.values()])
    for receiver, (stream, norm) in reads.items():
        x = torch.from_numpy(ours[stream]).double().requires_grad_()
        (back,) = torch.autograd.grad(model.get_submodule(norm)(x), x, torch.from_numpy(grads[norm]).double())
        want = float(((theirs[stream] - ours[stream]) * back.numpy()).sum()) / (there - here)
        assert found[receiver] == pytest.approx(want, rel=1e-4, abs=1e-5), receiver


@pytest.mark.parametrize("shape", ["gemma"])
def test_edges_into_queries_keys_and_values_are_those_into_attention(shape: str) -> None:
    subject = Subject.of(decoder(shape).double(), Bytes())
    whole = summed(gradients.circuit(subject, TEXT, OTHER, metric=metric))
    made = gradients.circuit(subject, TEXT, OTHER, metric=metric, receivers="heads")
    parts = summed(made)
    for layer in range(3):
        own = [effect for name, effect in parts.items() if name.startswith(f"{layer}.")]
        assert len(own) == 4 + 2 + 2, "four queries, two keys, two values"
        assert sum(own) == pytest.approx(whole[f"attention {layer}"], abs=1e-5)
    assert parts["mlp 1"] == pytest.approx(whole["mlp 1"], abs=1e-6)
    assert ("0.1", "1.0 k") in {edge[:2] for edge in made.edges}


def test_models_without_a_norm_before_are_refused() -> None:
    for family in ("parallel", "gated"):
        with pytest.raises(UserError, match="a norm before each attention"):
            gradients.circuit(Subject.of(model_of(family), Bytes()), TEXT, OTHER, metric=metric)
    whole = inspect.unwrap(gradients.circuit)  # past the types that the tests check
    with pytest.raises(UserError, match="receivers is"):
        whole(Subject.of(decoder(), Bytes()), TEXT, OTHER, metric=metric, receivers="all")


def test_paths_go_through_norms_after_attention() -> None:
    """No head follows the last layer, so its heads' direct paths are their whole effects."""
    subject = Subject.of(decoder("gemma"), Bytes())
    direct = causal.path_patching(subject, TEXT, OTHER, metric=metric)
    whole = causal.patching(subject, TEXT, OTHER, "heads", metric=metric)
    assert direct[-1] == pytest.approx(whole[-1], abs=1e-4)
    assert abs(direct[0] - whole[0]).max() > 1e-3
