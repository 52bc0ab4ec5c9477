"""The ways to compute one attention ``Problem``. ``naive`` is the definition and judges the others."""

from typing import NamedTuple

import torch
from torch import Tensor

from cutaway.attention.backends import blocked, matmul, naive, native, sdpa
from cutaway.attention.parts.score import Problem
from cutaway.attention.parts.visibility import All
from cutaway.hooks import tell, watched
from cutaway.shapes import Float

PATHS = {
    "naive": naive.attend,
    "sdpa": sdpa.attend,
    "blocked": blocked.attend,
    "products": matmul.attend,
    "native": native.attend,
}
MANY = 4 * blocked.BLOCK  # queries from which blocks pay


class Choice(NamedTuple):
    """What was computed how, and ``refused``: why each other way was not taken."""

    path: str
    why: str
    refused: dict[str, str]


def choose(problem: Problem) -> tuple[str, str]:
    """The name of the path that computes this problem, and why."""
    if watched("scores", "pattern"):
        return "naive", "someone watches the scores or the pattern, and only the naive path has them"
    whole = sdpa.unmasked(problem) or not _in_blocks(problem)
    if whole and native.pays(problem):
        return (
            "native",
            "with a way back on a CPU: the native core takes less time for it than torch's kernel",
        )
    if whole and matmul.pays(problem):
        return "products", "bf16 with a way back on a CPU: torch's fused kernel takes twice the time for it"
    if problem.softcap is None and sdpa.unmasked(problem):
        return "sdpa", "in order, and causal or seeing all: torch's fused kernel needs no mask"
    if _in_blocks(problem):
        if problem.visibility == All() and problem.query.documents is None:
            return "blocked", "what is masked or added is made for a block of queries, never for all at once"
        return "blocked", "what a token sees has a structure: blocks that no query can see are skipped"
    if problem.softcap is not None:
        return "naive", "torch's fused kernel has no soft-cap"
    return "sdpa", "nothing asks for more than torch's fused kernel gives"


def _in_blocks(problem: Problem) -> bool:
    """Whether there are queries enough for blocks, and nobody compiles what follows the data."""
    return problem.q.shape[2] >= MANY and not torch.compiler.is_compiling()


def attend(problem: Problem) -> Float[Tensor, "b h t v"]:
    """What each query head gathered, by the path that ``choose`` names. Tells ``path``, a ``Choice``."""
    path, why = choose(problem)
    tell("path", lambda: Choice(path, why, refusals(problem, path)))
    return PATHS[path](problem)


def refusals(problem: Problem, path: str) -> dict[str, str]:
    """Why each path but this one does not compute the problem."""
    from cutaway.attention.backends import flex

    (_, h, t, _), s = problem.q.shape, problem.k.shape[2]
    reasons = {
        "naive": f"it would hold all {h * t * s:,} scores in memory at once; it is there to judge the others",
        "sdpa": "it would hold a mask of every query and key, and skip nothing that is hidden",
        "blocked": f"{t} {'query' if t == 1 else 'queries'}: blocks pay from {MANY} on",
        "products": matmul.why_not(problem) or "it pays in bf16 on a CPU, where there is a way back",
        "native": native.why_not(problem) or "it pays where there is a way back",
        "flex": flex.why_not(problem) or "it compiles for every rule and shape: for who asks for it",
    }
    if problem.softcap is not None:
        reasons["sdpa"] = "torch's fused kernel has no soft-cap"
    if t >= MANY:
        reasons["blocked"] = "no mask is needed, so there is none to cut into blocks"
    return {name: reason for name, reason in reasons.items() if name != path}
