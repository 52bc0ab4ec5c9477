"""What each attention mechanism costs as the text grows: time and peak memory of one layer, beside the naive
form and torch's own kernel; then one decoding step after more and more tokens.

    python bench/attention.py [--kinds local,linear] [--tokens 1024,...] [--rounds 3] [--json]

One layer of width 512 with 8 heads of 64, float32, batch 1; chunks and top-k of 256, windows of 128, blocks
of 64 for bigbird, as its paper has them. Every point is a process of its own, so that its peak is its own:
the most that was resident while it read, less what was before (Linux's VmHWM). Times are the best of
several in each of some rounds over all points, with an allocator that keeps what it has. "naive" is causal
attention with every score in memory, where they fit, "torch" scaled_dot_product_attention between the same
matrices, "near" an encoder's window, and "deepseek" a layer of DeepSeek-V2-Lite. Exit code 1 if a bar at
the end is missed. A round of it all takes about five minutes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.nn.functional import scaled_dot_product_attention

from cutaway.attention import backends, mla
from cutaway.attention.common.registry import Sizes, kind, kinds
from cutaway.attention.common.visibility import Positions

SIZES = Sizes(width=512, heads=8, groups=2, key_size=64, value_size=64)
OPTIONS = {
    "window": 128, "first": 4, "globals": 64, "chunk": 256, "block": 64, "random": 1, "stride": 128,
    "summary": 8, "top_k": 256, "index_heads": 2,
}  # fmt: skip
TOKENS = [1024, 2048, 4096, 8192, 16384, 32768]
ROOM = 6e9  # bytes of scores that a naive point may hold
SECONDS = 0.5  # a point is repeated until so much is measured
FEWEST = 5  # runs of a point, unless they are long
LINEAR, FLAT, QUADRATIC, ABSORBED = 9.0, 1.5, 1.5, 20.0  # the bars
STEPPED = ("bahdanau", "luong")  # read by a decoder one word at a time
SPARSE = ("local", "streaming", "longformer", "chunked", "bigbird", "near")
Point = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kinds", help="names from the folder, and naive, torch, near, deepseek")
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--threads", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--rounds", type=int, default=3, help="of measuring every point")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    tokens = [int(n) for n in given.tokens.split(",")]
    known = ["naive", "torch", *(one.name for one in kinds()), "near", "deepseek"]
    names = given.kinds.split(",") if given.kinds else known
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no {unknown[0]}: use some of {', '.join(known)}")
    points = measured(names, tokens, given.threads, given.rounds)
    bars = judged(points)
    if given.json:
        print(json.dumps({"threads": given.threads, "points": points, "bars": bars}, indent=2))
    else:
        show(points, tokens, bars)
    return int(not all(bar["holds"] for bar in bars))


def measured(names: list[str], tokens: list[int], threads: int, rounds: int) -> list[Point]:
    """Every point, each time in a process of its own, with the time left on standard error."""
    wanted = [(name, what, n) for name in names for what in ("prefill", "decode") for n in tokens]
    wanted = [one for one in wanted if _exists(*one)] * rounds
    points: dict[tuple[str, str, int], Point] = {}
    start, weight = time.monotonic(), sum(_weight(*one) for one in wanted)
    done = 0.0
    for i, one in enumerate(wanted):
        if done and sys.stderr.isatty():
            left = (time.monotonic() - start) * (weight - done) / done
            print(f"\r{i}/{len(wanted)} {one[0]} {one[1]} {one[2]}, about {left:.0f} s left \033[K",
                  end="", file=sys.stderr, flush=True)  # fmt: skip
        points[one] = _better(points.get(one), _apart(one, threads))
        done += _weight(*one)
    print(f"\n{len(wanted)} points in {time.monotonic() - start:.0f} s", file=sys.stderr)
    return [dict(zip(("kind", "what", "tokens"), one, strict=True)) | found for one, found in points.items()]


def _better(known: Point | None, found: Point) -> Point:
    """The lower times of two rounds, and the higher peak."""
    if known is None or "failed" in known or "failed" in found:
        return known if known and "failed" in known else found
    return known | {
        key: (max if key == "peak" else min)(value, known[key])
        for key, value in found.items()
        if value is not None
    }


def _exists(name: str, what: str, n: int) -> bool:
    """Whether there is such a point: an encoder decodes nothing, and scores must fit."""
    if name in STEPPED or name == "deepseek":
        return what == "decode" and (name in STEPPED or n == 4096)
    if what == "decode":
        return name not in ("bidirectional", "near", "naive", "torch")
    return name != "naive" or 4 * SIZES.heads * n * n * 3 <= ROOM


def _weight(name: str, what: str, n: int) -> float:
    """What a point costs beside the others, roughly."""
    return 1.0 + (n / 4096) ** 2 if what == "prefill" and _quadratic(name) else 1.0 + n / 16384


def _quadratic(name: str) -> bool:
    return name in ("naive", "torch") or (name not in SPARSE and not hasattr(_config(name), "state_bytes"))


def _apart(one: tuple[str, str, int], threads: int) -> Point:
    """A point measured in a process of its own; forked, so that torch is there already."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(one, threads, theirs))
    child.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return {"failed": "the process ended without an answer: out of memory?"}
    finally:
        child.join()


def _run(one: tuple[str, str, int], threads: int, answer: Any) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    name, what, n = one
    with torch.inference_mode(), ExitStack() as stack:
        if name == "naive":
            stack.enter_context(mock.patch.object(backends, "choose", return_value=("naive", "asked for")))
        answer.send(prefill(name, n) if what == "prefill" else decode(name, n))


def prefill(name: str, n: int) -> Point:
    """Seconds and peak bytes of reading n tokens; a small reading first, so that torch is warm."""
    reader(name, 256)()
    read = reader(name, n)
    before = _peak(reset=True)
    start = time.perf_counter()
    read()
    first = time.perf_counter() - start
    peak = _peak() - before if before is not None else None
    _keep_memory()
    return {"seconds": best(read, first), "peak": peak}


def reader(name: str, n: int) -> Callable[[], Any]:
    """Reads n random tokens with one layer of this kind."""
    x, places = torch.randn(1, n, SIZES.width), Positions(torch.arange(n)[None])
    if name == "torch":
        projected = [torch.nn.Linear(SIZES.width, SIZES.width, bias=False) for _ in range(4)]
        return lambda: _torchs(x, projected)
    module = _config(name).build(SIZES.width).eval()
    if name == "cross":
        return lambda: module(x, places, x, places)
    return lambda: module(x, places, None, True, None)


def _torchs(x: torch.Tensor, projected: list[Any]) -> torch.Tensor:
    q, k, v = (one(x).unflatten(-1, (SIZES.heads, -1)).transpose(1, 2) for one in projected[:3])
    mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
    return projected[3](mixed.transpose(1, 2).flatten(2))


def _config(name: str) -> Any:
    """The mechanism with this benchmark's sizes and options."""
    if name == "deepseek":  # a layer of DeepSeek-V2-Lite
        return mla.Config(heads=16, key_size=128, rope_dim=64, latent=512)
    if name == "near":
        return kind("bidirectional").like(SIZES, {"reach": 128, "globals": 2})
    found = kind("mha" if name in ("naive", "torch") else name)
    return found.like(SIZES, {option: OPTIONS[option] for option in found.usual if option in OPTIONS})


def decode(name: str, n: int) -> Point:
    """Seconds of one step after n tokens, and the bytes that are remembered of them."""
    config = _config(name)
    if name in STEPPED:
        return _look(config, n)
    width = 2048 if name == "deepseek" else SIZES.width
    module, state = config.build(width).eval(), config.state()
    _fill(name, module, config, state, n)
    step, held = torch.randn(1, 1, width), state.nbytes
    at = iter(range(n, 2**40))

    def read() -> None:
        if name == "cross":
            module(step, Positions(torch.tensor([[next(at)]])), None, None, state)
        else:
            module(step, Positions(torch.tensor([[next(at)]])), None, False, state)

    read()
    point = {"seconds": best(read), "state": held}
    if not isinstance(config, mla.Config) or hasattr(config, "top_k"):
        return point
    with mock.patch.object(mla.Config, "absorbs", return_value=False):
        read()
        return point | {"expanded": best(read)}


def _look(config: Any, n: int) -> Point:
    """One query of a recurrent decoder at a memory of n words."""
    module = config.build(SIZES.width, SIZES.width).eval()
    values = torch.randn(1, n, SIZES.width)
    memory = module.remember(values, torch.arange(n)[None])
    query = torch.randn(1, 1, SIZES.width)
    held = config.bytes_per_token(SIZES.width, 4) * n
    return {"seconds": best(lambda: module(query, memory)), "state": held}


def _fill(name: str, module: Any, config: Any, state: Any, n: int) -> None:
    """The state as after n tokens: random entries, or for a recurrence the reading itself."""
    pos = torch.arange(n)[None]
    if hasattr(config, "entries"):
        entries = {key: torch.randn(1, heads, n, size) for key, (heads, size) in config.entries.items()}
        (state.write if name == "cross" else state.append)(entries, pos)
        return
    for at in pos.split(1024, dim=1):
        module(torch.randn(1, at.shape[1], SIZES.width), Positions(at), None, False, state)


def best(run: Callable[[], Any], *before: float) -> float:
    """Seconds of the fastest run, of as many as SECONDS hold; ``before`` are runs that were timed already."""
    seconds = list(before)
    while sum(seconds) < SECONDS or (len(seconds) < FEWEST and sum(seconds) < 4 * SECONDS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _keep_memory() -> None:
    """Tells glibc not to give memory back, or a longer text would be charged for fetching it at each run."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**25)


def _peak(reset: bool = False) -> int | None:
    """The most that was resident of this process, in bytes; None where the system does not tell."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def judged(points: list[Point]) -> list[dict[str, Any]]:
    """The bars, with what was measured."""
    bars = []
    for name in dict.fromkeys(point["kind"] for point in points):
        read, stepped = _series(points, name, "prefill"), _series(points, name, "decode")
        if name in SPARSE and {1024, 8192} <= read.keys():
            found = read[8192]["seconds"] / read[1024]["seconds"]
            bars.append(_bar(f"{name}: time from 1k to 8k", found, found <= LINEAR, f"at most {LINEAR}"))
        power = exponent(read)
        if power is not None and name != "naive":
            bars.append(_bar(f"{name}: memory grows as n^", power, power < QUADRATIC, f"below {QUADRATIC}"))
        if stepped and hasattr(_config(name), "state_bytes"):
            times = [one["seconds"] for one in stepped.values()]
            found = max(times) / min(times)
            bars.append(_bar(f"{name}: slowest step over fastest", found, found <= FLAT, f"at most {FLAT}"))
        if name == "deepseek":
            found = stepped[4096]["expanded"] / stepped[4096]["seconds"]
            what = "deepseek: expanded step over absorbed at 4096"
            bars.append(_bar(what, found, found >= ABSORBED, f"at least {ABSORBED}"))
    return bars


def _bar(what: str, found: float, holds: bool, bar: str) -> dict[str, Any]:
    return {"what": what, "found": found, "bar": bar, "holds": holds}


def _series(points: list[Point], name: str, what: str) -> dict[int, Point]:
    ours = (one for one in points if one["kind"] == name and one["what"] == what and "failed" not in one)
    return {one["tokens"]: one for one in ours}


def exponent(read: dict[int, Point]) -> float | None:
    """The p of peak ~ n^p, fitted by least squares from 4k on: below, what is fixed weighs too much."""
    pairs = [(math.log(n), math.log(one["peak"])) for n, one in read.items() if n >= 4096 and one["peak"]]
    if len(pairs) < 2:
        return None
    mean_x, mean_y = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in pairs) / sum((x - mean_x) ** 2 for x, _ in pairs)


def show(points: list[Point], tokens: list[int], bars: list[dict[str, Any]]) -> None:
    """Tables: a row a kind, a column a length."""
    names = list(dict.fromkeys(point["kind"] for point in points))
    heads = "".join(f"{_short(n):>9}" for n in tokens)
    for what, value, unit, last in (
        ("prefill", "seconds", "milliseconds to read n tokens", "1k to 8k"),
        ("prefill", "peak", "MB at most while reading n tokens", "n^"),
        ("decode", "seconds", "microseconds of a step after n tokens", "last/first"),
        ("decode", "state", "MB remembered of n tokens", ""),
    ):
        rows = [(name, _series(points, name, what)) for name in names]
        rows = [(name, series) for name, series in rows if series]
        if not rows:
            continue
        print(f"\n{unit}\n{'':14}{heads}  {last}")
        scale = {"peak": 1e-6, "state": 1e-6}.get(value, 1e3 if what == "prefill" else 1e6)
        for name, series in rows:
            cells = "".join(_cell(series.get(n), value, scale) for n in tokens)
            print(f"{name:14}{cells}  {_growth(series, what, value)}".rstrip())
            if value == "seconds" and any("expanded" in one for one in series.values()):
                cells = "".join(_cell(series.get(n), "expanded", scale) for n in tokens)
                print(f"{'  expanded':14}{cells}")
    print()
    for bar in bars:
        print(f"{'holds ' if bar['holds'] else 'MISSED'}  {bar['what']} {bar['found']:.2f} ({bar['bar']})")


def _growth(series: dict[int, Point], what: str, value: str) -> str:
    if value == "peak":
        power = exponent(series)
        return "" if power is None else f"{power:.2f}"
    if value == "state":
        return ""
    first, last = (1024, 8192) if what == "prefill" else (min(series), max(series))
    if first not in series or last not in series:
        return ""
    return f"{series[last][value] / series[first][value]:.1f}x"


def _cell(point: Point | None, value: str, scale: float) -> str:
    if point is None or point.get(value) is None:
        return f"{'-':>9}"
    number = point[value] * scale
    return f"{number:9,.0f}" if number >= 100 else f"{number:9.2f}"


def _short(n: int) -> str:
    return f"{n // 1024}k" if n % 1024 == 0 else str(n)


if __name__ == "__main__":
    sys.exit(main())
