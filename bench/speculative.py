"""Where drafting pays: tokens a second of a server's scheduler with and without drafts, in turns.

    python bench/speculative.py [MODEL] [--draft MODEL] [--layers 4] [--tokens 96] [--texts 1 8] [--rounds 3]

Greedy, by the runtime. For each kind of text and each number of texts at once: the median over the rounds of
all texts' tokens a second; behind it the ratio to no drafts, the share of drafted tokens that were accepted,
and drafted tokens per token. "first n layers" is the model's own first layers with its last norm and head.
All ways write the same texts, which is checked.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import cutaway
from cutaway.generate.batch.request import Request
from cutaway.generate.batch.scheduler import Scheduler
from cutaway.generate.decode import finish
from cutaway.generate.sampling_params import SamplingParams

CODE = '''def area(width, height):
    """Return the area of a rectangle."""
    if width < 0 or height < 0:
        raise ValueError("a side is negative")
    return width * height

def perimeter(width, height):
    """Return the perimeter of a rectangle."""
    return 2 * (width + height)
'''
NEWS = (
    "The lighthouse at Cape Verity was switched off on Monday after 140 years. The harbour office said that "
    "ships find their way by satellite now. The last keeper, Anna Brandt, lit the lamp one more time. "
)
RECORDS = "".join(
    f'{{"name": "ship {n}", "port": "Cape Verity", "tons": {900 + n}, "cargo": ["salt", "rope"]}}\n'
    for n in range(1, 6)
)
PROMPTS = {
    "editing code": f"A file:\n\n{CODE}\nThe same file, with surface in place of area:\n\n",
    "JSON": f"Records of ships, one a line:\n{RECORDS}",
    "summarising": f"{NEWS}\n\nIn short: the lighthouse at Cape Verity",
    "a story": "Once upon a time, in a village by the sea, there lived",
}


def written(scheduler: Scheduler, lm: Any, prompt: str, texts: int, tokens: int) -> tuple[list[Any], float]:
    """The generations of so many texts that begin together, and their tokens a second."""
    settings = SamplingParams(max_tokens=tokens, ignore_eos=True)
    prompts = [f"Number {n}.\n{prompt}" if texts > 1 else prompt for n in range(texts)]
    with scheduler.paused():
        streams = [scheduler.submit(Request(tuple(lm.ids(one)), settings)) for one in prompts]
    made = [finish(stream) for stream in streams]
    seconds = max(one.timings.decode_seconds for one in made)
    return made, sum(one.timings.decode_tokens for one in made) / seconds


def row(schedulers: dict[str, Scheduler], lm: Any, name: str, texts: int, asked: Any) -> list[float]:
    """Print a row of the table; the ratio of each way to no drafts."""
    rates: dict[str, list[float]] = {way: [] for way in schedulers}
    shares, found = dict.fromkeys(schedulers, ""), dict[str, list[tuple[int, ...]]]()
    for _ in range(asked.rounds):
        for way, scheduler in schedulers.items():
            made, rate = written(scheduler, lm, PROMPTS[name], texts, asked.tokens)
            rates[way].append(rate)
            found[way] = [one.ids for one in made]
            drafted, accepted, count = (
                sum(one)
                for one in zip(
                    *(
                        (one.timings.drafted_tokens, one.timings.accepted_tokens, len(one.ids))
                        for one in made
                    ),
                    strict=True,
                )
            )
            shares[way] = f"{100 * accepted / drafted:.0f}% of {drafted / count:.1f}" if drafted else "none"
    assert all(ids == found["no drafts"] for ids in found.values()), "the texts are the same"
    medians = {way: statistics.median(of) for way, of in rates.items()}
    ratios = {way: rate / medians["no drafts"] for way, rate in medians.items()}
    cells = [f"{medians[way]:.0f} ({ratios[way]:.2f}; {shares[way]})" for way in list(schedulers)[1:]]
    print(f"| {name} | {texts} | {medians['no drafts']:.0f} | " + " | ".join(cells) + " |", flush=True)
    return list(ratios.values())[1:]


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--draft", action="append", default=[], help="a smaller model of the same vocabulary")
    parser.add_argument("--layers", type=int, nargs="*", default=[4])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--texts", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(given)
    lm: Any = cutaway.load(asked.model, engine="runtime")
    ways: dict[str, Any] = {"no drafts": None, "lookup": "lookup"}
    ways |= {one: cutaway.load(one, engine="runtime") for one in asked.draft}
    ways |= {f"first {n} layers": lm.first_layers(n) for n in asked.layers}
    schedulers = {
        way: Scheduler(lm.engine, lm.tokenizer, drafting=None if how is None else lm.drafting(how))
        for way, how in ways.items()
    }
    print("| text | texts | " + " | ".join(schedulers) + " |\n|---|" + "---|" * (len(schedulers) + 1))
    ratios = [
        ratio
        for name in PROMPTS
        for texts in asked.texts
        for ratio in row(schedulers, lm, name, texts, asked)
    ]
    for scheduler in schedulers.values():
        scheduler.close()
    print(f"The slowest is {min(ratios):.2f} of no drafts, the fastest {max(ratios):.2f}.")


if __name__ == "__main__":
    main()
