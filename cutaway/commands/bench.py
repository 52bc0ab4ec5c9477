"""`cutaway bench`: how fast a model runs on this machine, and what limits it."""

from pathlib import Path
from typing import Any

import cutaway
from cutaway import native
from cutaway.commands.console import model_path, print_json
from cutaway.commands.options import Json, Model
from cutaway.errors import UserError
from cutaway.runtime.measure import DEPTH, PROMPT, TEXTS, figures

ROWS = {
    "decode": "one text, token by token",
    "decode at 2000": "the same after 2,000 tokens",
    "8 texts": "eight texts at once",
    "read 512": "a prompt of 512 tokens",
}
NEAR = 0.6  # of the speed of a loop that only reads: above it reading is the limit


def bench(model: Model = "smollm2", /, *, as_json: Json = False) -> None:
    """Measure the runtime on this machine: tokens a second, and what limits them.

    Each speed is beside how much of memory is read for it, as a fraction of what a loop that only reads gets
    here; where it is small, arithmetic is the limit, or others who use this machine.

    **Examples:**

    cutaway bench

    cutaway bench model.gguf --json
    """
    absent = native.why_not()
    if absent is not None:
        raise UserError(f"Only the native runtime is measured: {absent[0].lower()}{absent[1:]}")
    path: Path = model_path(model)
    lm: Any = cutaway.load(path, engine="runtime")
    threads = native.threads()
    found = figures(lm.engine)
    bandwidth, fractions = found["bytes a second"], _fractions(lm.engine, found)
    if as_json:
        print_json(
            {
                "model": model,
                "isa": native.isa(),
                "threads": threads,
                "bytes_per_second": bandwidth,
                "bytes_per_token": found["bytes a token"],
                "tokens_per_second": {name: found[name] for name in ROWS},
                "fraction_of_bandwidth": fractions,
                "limit": {name: _limit(fraction) for name, fraction in fractions.items()},
            }
        )
        return
    print(f"{model} on {threads} threads ({native.isa()})")
    for name, about in ROWS.items():
        fraction = fractions[name]
        print(
            f"  {about:<28}{found[name]:9.1f} tokens/s, {100 * fraction:3.0f}% of reading: "
            f"limited by {_limit(fraction)}"
        )
    print(
        f"A token reads {found['bytes a token'] / 1e6:.0f} MB of weights. A loop that only reads as many, in "
        f"turns with it, gets {bandwidth / 1e9:.1f} GB/s."
    )


def _fractions(engine: Any, found: dict[str, float]) -> dict[str, float]:
    """Of a loop that only reads, the speed of each row: experts count as far as a token passes them."""
    token = found["bytes a token"]
    passes = {"decode at 2000": 1, "8 texts": TEXTS, "read 512": PROMPT}
    out = {"decode": found["fraction of reading"]}
    for name, tokens in passes.items():
        read = min(tokens * token, engine.plan.nbytes)
        if name == "decode at 2000":
            read += DEPTH * engine.page_bytes / engine.page
        out[name] = found[name] / tokens * read / found["bytes a second"]
    return out


def _limit(fraction: float) -> str:
    return "memory" if fraction >= NEAR else "arithmetic"
