"""`cutaway bench`: how fast a model runs on this machine, and what limits it."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

import cutaway
from cutaway import native
from cutaway.commands.console import model_path, print_json

ROWS = {
    "decode": "one text, token by token",
    "decode at 2000": "the same after 2,000 tokens",
    "8 texts": "eight texts at once",
    "read 512": "a prompt of 512 tokens",
}
NEAR = 0.6  # of the speed of a loop that only reads as much: above it reading is said to be the limit


def bench(
    model: str = "smollm2",
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Measure the runtime on this machine: tokens a second, and what limits them. Takes about a minute.

    Examples:

    cutaway bench

    cutaway bench model.gguf --json

    Parameters
    ----------
    model
        A model's name, a .gguf file or a folder.
    as_json
        Print one JSON document.
    """
    from cutaway.runtime.measure import figures

    path: Path = model_path(model)
    lm: Any = cutaway.load(path, engine="runtime")
    threads = native.threads()
    found = figures(lm.engine)
    bandwidth, share = found["bytes a second"], found["share of reading"]
    limit = "how fast weights are read" if share >= NEAR else "arithmetic, or others who use this machine"
    if as_json:
        print_json(
            {
                "model": model,
                "isa": native.isa(),
                "threads": threads,
                "bytes_per_second": bandwidth,
                "bytes_per_token": found["bytes a token"],
                "tokens_per_second": {name: found[name] for name in ROWS},
                "share_of_bandwidth": share,
                "limit": limit,
            }
        )
        return
    print(f"{model} on {threads} threads ({native.isa()})")
    for name, about in ROWS.items():
        print(f"  {about:<30}{found[name]:9.1f} tokens/s")
    megabytes = found["bytes a token"] / 1e6
    print(
        f"A token reads {megabytes:.0f} MB, which alone, from memory or a cache that holds them, are read at "
        f"{bandwidth / 1e9:.1f} GB/s."
    )
    print(f"Decoding reaches {100 * share:.0f}% of that, measured in turns.")
    print(f"It is limited by {limit}.")
