"""The ways to compute one attention ``Problem``. ``naive`` is the definition and judges the others."""

import torch
from torch import Tensor

from cutaway.attention.parts.paths import blocked, naive, sdpa
from cutaway.attention.parts.score import Problem
from cutaway.attention.parts.visibility import All, Causal
from cutaway.shapes import Float
from cutaway.trace import watched

PATHS = {"naive": naive.attend, "sdpa": sdpa.attend, "blocked": blocked.attend}


def choose(problem: Problem) -> tuple[str, str]:
    """The name of the path that computes this problem, and why."""
    if watched("scores", "pattern"):
        return "naive", "someone watches the scores or the pattern, and only the naive path has them"
    plain = problem.bias is None and problem.sinks is None and problem.softcap is None
    if plain and problem.in_order and problem.visibility == Causal() and problem.chosen is None:
        return "sdpa", "causal and in order: torch's fused kernel needs no mask"
    if _in_blocks(problem):
        return "blocked", "what a token sees has a structure: blocks that no query can see are skipped"
    if problem.softcap is not None:
        return "naive", "torch's fused kernel has no soft-cap"
    return "sdpa", "nothing asks for more than torch's fused kernel gives"


def _in_blocks(problem: Problem) -> bool:
    """Whether blocks pay: enough queries, a rule that hides some, and no compiler, which cannot follow the
    data.
    """
    if torch.compiler.is_compiling() or problem.q.shape[2] < 2 * blocked.BLOCK:
        return False
    return problem.visibility != All() or problem.query.documents is not None


def attend(problem: Problem) -> Float[Tensor, "b h t v"]:
    """What each query head gathered, by the path that ``choose`` names."""
    path, _ = choose(problem)
    return PATHS[path](problem)
