"""What runs in parallel, as a plan with bytes: the steps of a prompt and of the token after it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cutaway import native
from cutaway.errors import UserError
from cutaway.inspect import parallel

SEQUENCES = 16


def plan(lm: Any, tokens: int) -> dict[str, Any]:
    """The passes of ``inspect/parallel.py``, and this machine's measured limits.

    Raises UserError for an encoder, and for more tokens than the context holds.
    """
    if lm.is_encoder:
        raise UserError("The model is an encoder: it reads a text at once and decodes nothing")
    if not 1 <= tokens <= lm.config.context:
        raise UserError(f"The text has {tokens:,} tokens: the context holds 1 to {lm.config.context:,}")
    here = parallel.machine(lm, native.threads(), seconds=0.15)
    names = ("prompt", "next token", f"next token of {SEQUENCES} texts")
    passes = []
    for name, one in zip(names, parallel.passes(lm, tokens, SEQUENCES), strict=True):
        flops, moved, seconds = one.total(here)
        steps = [
            asdict(step)
            | {"times": times, "seconds": step.seconds(here), "memory": step.intensity < here.balance}
            for times, step in one.steps()
        ]
        totals = {"waits": one.waits, "flops": flops, "bytes": moved, "seconds": seconds}
        passes.append({"name": name, **totals, "steps": steps})
    return {"machine": asdict(here) | {"balance": here.balance}, "passes": passes}
