"""Where drafting pays: decoding with and without drafts, in turns, beside llama.cpp's own drafting.

    python -m bench.speculative [MODEL] [--draft MODEL ...] [--llama-server PATH] [--llama-eagle3 HEAD.gguf]
                                [--kinds chat ...] [--prompts FILE] [--tokens 48] [--texts 1 8] [--turns 12]

Greedy, by the runtime's scheduler. In a turn each way writes the same texts once, the next turn in reverse
order, so that other work of the machine meets all alike. A cell has the median of all texts' tokens a second;
the median over turns of its ratio to no drafts (of llama.cpp's to llama.cpp's own) with a 95% interval, for
which "no drafts again" says what chance alone does; the same ratio of processor seconds a token; the share of
drafted tokens that were accepted, and how many were drafted a token. --draft names a smaller model, with
which llama-server drafts too if it is a .gguf, or a folder with an EAGLE-3 head; --llama-eagle3 gives that to
llama-server as its convert_hf_to_gguf.py made it. Its own lookup (``--spec-type ngram-simple``) is always
there. --prompts adds the kind "prompts", whose turns take the file's next ones. CUTAWAY_THREADS sets the
threads of both. Our ways write the same texts, which is checked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cutaway
from cutaway.generate import constrain
from cutaway.generate.batch.request import Request
from cutaway.generate.batch.scheduler import Scheduler
from cutaway.generate.decode import finish
from cutaway.generate.sampling_params import SamplingParams
from cutaway.native import library
from cutaway.weights import eagle3
from scripts.lib.serving import answering

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
SHIP = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "port": {"type": "string", "maxLength": 20},
        "tons": {"type": "integer", "minimum": 0, "maximum": 9999},
        "cargo": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
    },
    "required": ["name", "port", "tons", "cargo"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": SHIP, "minItems": 3, "maxItems": 3}
PROMPTS = {
    "chat": "What should I see in Paris in two days?",
    "editing code": f"Here is a file:\n\n{CODE}\nWrite the same file with surface in place of area.",
    "JSON under a schema": f"Records of ships, one a line:\n{RECORDS}\nWrite the first three as JSON.",
    "summarising": f"{NEWS * 2}\n\nSummarise this text.",
}


class Written(NamedTuple):
    """What one way made of a turn's texts."""

    texts: list[tuple[int, ...]]
    rate: float  # tokens a second of all texts
    processor: float  # seconds of all threads a token
    drafted: int
    accepted: int


Write = Callable[[list[list[int]], int, bool], Written]  # prompts, tokens of each, whether SCHEMA holds


@contextmanager
def ours(lm: Any, draft: Any) -> Iterator[Write]:
    """Our scheduler; ``draft`` is what `lm.drafting` takes, or None."""
    scheduler = Scheduler(lm.engine, lm.tokenizer, drafting=None if draft is None else lm.drafting(draft))
    grammar = constrain.json_schema(SCHEMA).begin(lm.tokenizer)

    def write(prompts: list[list[int]], tokens: int, constrained: bool) -> Written:
        began, settings = time.process_time(), SamplingParams(max_tokens=tokens, ignore_eos=not constrained)
        requests = [
            Request(tuple(ids), settings, grammar.fresh() if constrained else None) for ids in prompts
        ]
        with scheduler.paused():
            streams = [scheduler.submit(request) for request in requests]
        made = [finish(stream) for stream in streams]
        count, times = sum(len(one.ids) for one in made), [one.timings for one in made]
        rate = sum(one.decode_tokens for one in times) / max(one.decode_seconds for one in times)
        drafted, accepted = (
            sum(one.drafted_tokens for one in times),
            sum(one.accepted_tokens for one in times),
        )
        processor = (time.process_time() - began) / count
        return Written([one.ids for one in made], rate, processor, drafted, accepted)

    try:
        yield write
    finally:
        scheduler.close()


@contextmanager
def theirs(server: Path, model: Path, texts: int, *options: str) -> Iterator[Write]:
    """llama-server with these options."""
    command = [str(server), "--model", str(model), "--parallel", str(texts), "--ctx-size", str(2048 * texts)]
    command += ["--threads", str(library.threads())]
    with answering([*command, *options]) as (port, process), ThreadPoolExecutor(texts) as pool:

        def used() -> float:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / 100

        def ask(body: dict[str, Any]) -> dict[str, Any]:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/completion",
                json.dumps(body).encode(),
                {"content-type": "application/json"},
            )
            return json.load(urllib.request.urlopen(request))

        def write(prompts: list[list[int]], tokens: int, constrained: bool) -> Written:
            began, more = used(), {"json_schema": SCHEMA} if constrained else {"ignore_eos": True}
            asked = [
                {"prompt": ids, "n_predict": tokens, "temperature": 0, "return_tokens": True} | more
                for ids in prompts
            ]
            made = list(pool.map(ask, asked))
            times = [one["timings"] for one in made]
            count = sum(one["predicted_n"] for one in times)
            rate = (count - len(made)) / max(one["predicted_ms"] for one in times) * 1000
            drafted, accepted = (
                sum(one.get(name, 0) for one in times) for name in ("draft_n", "draft_n_accepted")
            )
            texts = [tuple(one["tokens"]) for one in made]
            return Written(texts, rate, (used() - began) / count, drafted, accepted)

        yield write


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the ends of its 95% interval by the bootstrap."""
    drawn = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return statistics.median(values), float(low), float(high)


def row(
    ways: dict[str, Write], turns: list[list[list[int]]], asked: Any, constrained: bool
) -> dict[str, float]:
    """Print a row's cells, of the prompts of each turn; the ratio of each of our ways to no drafts."""
    made: dict[str, list[Written]] = {way: [] for way in ways}
    for turn, prompts in enumerate(turns):
        for way in list(ways)[:: -1 if turn % 2 else 1]:
            one = ways[way](prompts, asked.tokens, constrained)
            made[way] += [one] if turn else []  # the first reads the prompts, and finds its pace
    own = [way for way in ways if not way.startswith("llama")]
    texts = {way: [one.texts for one in made[way]] for way in own}
    assert all(texts[way] == texts[own[0]] for way in own), "our texts are the same"
    cells, ratios = [], {}
    for way, all_turns in made.items():
        base = made["no drafts" if way in own else "llama.cpp"]
        median, low, high = interval([a.rate / b.rate for a, b in zip(all_turns, base, strict=True)])
        processor = statistics.median(b.processor / a.processor for a, b in zip(all_turns, base, strict=True))
        rate = statistics.median(one.rate for one in all_turns)
        drafted, accepted = sum(one.drafted for one in all_turns), sum(one.accepted for one in all_turns)
        tokens = sum(len(text) for one in all_turns for text in one.texts)
        share = f"{100 * accepted / drafted:.0f}% of {drafted / tokens:.1f}" if drafted else "none"
        plain = all_turns is base
        cells.append(
            f"{rate:.0f}"
            if plain
            else f"{rate:.0f}: {median:.2f} ({low:.2f} to {high:.2f}), {processor:.2f}; {share}"
        )
        if way in own and not way.startswith("no drafts"):
            ratios[way] = median
    print(" | ".join(cells) + " |", flush=True)
    return ratios


def drafting(path: Path) -> Any:
    """What drafts, as `lm.drafting` takes it."""
    return path if eagle3.is_head(path) else cutaway.load(path, engine="runtime")


def turns(lm: Any, kind: str, texts: int, asked: Any) -> list[list[list[int]]]:
    """The prompts of the first turn, which is not counted, and of the others."""
    if kind == "prompts":
        lines = asked.prompts.read_text().splitlines()[: (asked.turns + 1) * texts]
        words = [json.loads(line)["messages"][0]["content"] for line in lines]
    else:
        one = [f"Number {n}. {PROMPTS[kind]}" if texts > 1 else PROMPTS[kind] for n in range(texts)]
        words = one * (asked.turns + 1)
    prompts = [lm.chat_ids([{"role": "user", "content": one}]) for one in words]
    return [prompts[at : at + texts] for at in range(0, len(prompts), texts)]


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--draft", action="append", default=[], help="a smaller model of the same vocabulary")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server, built for this machine")
    parser.add_argument("--llama-eagle3", type=Path, help="an EAGLE-3 head as llama.cpp has it")
    parser.add_argument("--kinds", nargs="*", default=list(PROMPTS), choices=list(PROMPTS))
    parser.add_argument("--prompts", type=Path, help="conversations, whose first question is asked")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--texts", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--turns", type=int, default=12)
    asked = parser.parse_args(given)
    lm: Any = cutaway.load(asked.model, engine="runtime")
    drafts: dict[str, Any] = {"no drafts": None, "no drafts again": None, "lookup": "lookup"}
    drafts |= {f"draft {Path(one).stem}": drafting(Path(one)) for one in asked.draft}
    found: dict[str, float] = {}
    with ExitStack() as open_ways:
        ways = {name: open_ways.enter_context(ours(lm, draft)) for name, draft in drafts.items()}
        if asked.llama_server is not None:
            own = asked.llama_server, lm.checkpoint.source, max(asked.texts)
            options = {"llama.cpp": (), "llama.cpp lookup": ("--spec-type", "ngram-simple")}
            options |= {
                f"llama.cpp draft {Path(one).stem}": ("--spec-type", "draft-simple", "--model-draft", one)
                for one in asked.draft
                if one.endswith(".gguf")
            }
            if asked.llama_eagle3 is not None:
                head = ("--spec-type", "draft-eagle3", "--model-draft", str(asked.llama_eagle3))
                options["llama.cpp eagle3"] = head
            ways |= {name: open_ways.enter_context(theirs(*own, *how)) for name, how in options.items()}
        print("| text | texts | " + " | ".join(ways) + " |\n|---|" + "---|" * (len(ways) + 1))
        for kind in [*asked.kinds, *(["prompts"] if asked.prompts else [])]:
            for texts in asked.texts:
                print(f"| {kind} | {texts} | ", end="")
                ratios = row(ways, turns(lm, kind, texts, asked), asked, "schema" in kind)
                found |= {f"{way}, {kind}, {texts}": ratio for way, ratio in ratios.items()}
    worst = min(found, key=found.__getitem__)
    print(f"The slowest is {found[worst]:.3f} of no drafts: {worst}.")


if __name__ == "__main__":
    main()
