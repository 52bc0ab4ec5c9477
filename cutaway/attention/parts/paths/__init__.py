"""The ways to compute one attention ``Problem``. ``naive`` is the definition and judges the others."""

from torch import Tensor

from cutaway.attention.parts.paths import naive, sdpa
from cutaway.attention.parts.score import Problem
from cutaway.shapes import Float
from cutaway.trace import watched

PATHS = {"naive": naive.attend, "sdpa": sdpa.attend}


def choose(problem: Problem) -> tuple[str, str]:
    """The name of the path that computes this problem, and why."""
    if watched("scores", "pattern"):
        return "naive", "someone watches the scores or the pattern, and only the naive path has them"
    if problem.softcap is not None:
        return "naive", "torch's fused kernel has no soft-cap"
    return "sdpa", "nothing asks for more than torch's fused kernel gives"


def attend(problem: Problem) -> Float[Tensor, "b h t v"]:
    """What each query head gathered, by the path that ``choose`` names."""
    path, _ = choose(problem)
    return PATHS[path](problem)
