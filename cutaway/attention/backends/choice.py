"""Which backend computes softmax attention, and why each other one does not."""

from typing import NamedTuple

import torch
from torch import Tensor

from cutaway.attention.backends import blocked, matmul, naive, native, sdpa
from cutaway.attention.backends.inputs import AttentionInputs
from cutaway.attention.common.visibility import All
from cutaway.hooks import tell, watched
from cutaway.shapes import Float

BACKENDS = {
    "naive": naive.attend,
    "sdpa": sdpa.attend,
    "blocked": blocked.attend,
    "products": matmul.attend,
    "native": native.attend,
}
MANY = 4 * blocked.BLOCK  # queries from which blocks pay


class Choice(NamedTuple):
    """The backend, why, and ``refused``: why not each other one."""

    backend: str
    why: str
    refused: dict[str, str]


def choose(inputs: AttentionInputs) -> tuple[str, str]:
    """The name of the backend for these inputs, and why."""
    if watched("scores", "pattern"):
        return "naive", "the scores or the pattern are traced, and only the naive backend has them"
    whole = sdpa.unmasked(inputs) or not _in_blocks(inputs)
    if whole and native.pays(inputs):
        return (
            "native",
            "training on a CPU: the native core takes less time for it than torch's kernel",
        )
    if whole and matmul.pays(inputs):
        return "products", "bf16 training on a CPU: torch's fused kernel takes twice the time for it"
    if inputs.softcap is None and sdpa.unmasked(inputs):
        return "sdpa", "in order, and causal or seeing all: torch's fused kernel needs no mask"
    if _in_blocks(inputs):
        if inputs.visibility == All() and inputs.query.documents is None:
            return "blocked", "what is masked or added is made for a block of queries, never for all at once"
        return "blocked", "what a token sees has a structure: blocks that no query can see are skipped"
    if inputs.softcap is not None:
        return "naive", "torch's fused kernel has no soft-cap"
    return "sdpa", "torch's fused kernel does all that is needed"


def _in_blocks(inputs: AttentionInputs) -> bool:
    """Whether there are enough queries for blocks, and torch does not compile: blocks depend on the data."""
    return inputs.q.shape[2] >= MANY and not torch.compiler.is_compiling()


def attend(inputs: AttentionInputs) -> Float[Tensor, "b h t v"]:
    """z of each query head, by the backend that ``choose`` names. Tells ``backend``, a ``Choice``."""
    backend, why = choose(inputs)
    tell("backend", lambda: Choice(backend, why, refusals(inputs, backend)))
    return BACKENDS[backend](inputs)


def refusals(inputs: AttentionInputs, backend: str) -> dict[str, str]:
    """Why each other backend does not compute these inputs."""
    from cutaway.attention.backends import flex

    (_, h, t, _), s = inputs.q.shape, inputs.k.shape[2]
    reasons = {
        "naive": f"it would hold all {h * t * s:,} scores in memory at once; it is there to judge the others",
        "sdpa": "it would hold a mask of every query and key, and skip nothing that is hidden",
        "blocked": f"{t} {'query' if t == 1 else 'queries'}: blocks pay from {MANY} on",
        "products": matmul.unsupported_reason(inputs)
        or "it pays in bf16 on a CPU, where gradients are needed",
        "native": native.unsupported_reason(inputs) or "it pays where gradients are needed",
        "flex": flex.unsupported_reason(inputs)
        or "it compiles for every rule and shape: it runs only when called",
    }
    if inputs.softcap is not None:
        reasons["sdpa"] = "torch's fused kernel has no soft-cap"
    if t >= MANY:
        reasons["blocked"] = "no mask is needed, so there is none to cut into blocks"
    return {name: reason for name, reason in reasons.items() if name != backend}
