"""`cutaway bench`: how fast models run on this machine, what limits them, and a peer beside them in turns."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

import cutaway
from cutaway import native
from cutaway.commands import console
from cutaway.commands.options import Context, Json, KVCache, Strict
from cutaway.errors import OperationalError, UserError
from cutaway.gguf import Later
from cutaway.native import library
from cutaway.runtime import measure
from cutaway.runtime.engine import RuntimeEngine
from cutaway.store import files

ROUNDS = 3


@dataclass(frozen=True)
class Row:
    """A test's figures: tokens/s of the best round, and fractions of what this machine can do at most."""

    model: str
    type: str
    bytes: int
    parameters: int
    isa: str
    kv_cache: str
    threads: int
    test: str
    tokens_per_second: float = 0.0
    rounds: tuple[float, ...] = ()
    of_reading: float = 0.0
    of_multiplying: float = 0.0
    peer: float | None = None  # tokens/s
    ratio: float | None = None


def bench(
    *models: str,
    prompt: Annotated[str, Parameter(alias="-p")] = "512",
    tokens: Annotated[str, Parameter(alias="-n")] = "128",
    depth: Annotated[str, Parameter(alias="-d")] = "0",
    texts: str = "1,8",
    threads: Annotated[str | None, Parameter(alias="-t")] = None,
    rounds: Annotated[int, Parameter(alias="-r")] = ROUNDS,
    kv_cache: KVCache = "F16",
    context: Context = None,
    strict: Strict = False,
    peer: Path | None = None,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    as_json: Json = False,
) -> None:
    """Measure the runtime on this machine: tokens a second, and what limits them.

    Tests are named as llama-bench names them: pp512 reads a prompt of 512 tokens, tg128 decodes 128, tg128 @
    d4096 does so after 4,096, tg128 x 8 of eight texts at once. Each is run in several rounds, of which the
    best counts. "Of reading" is the share of the speed of a loop that only reads as many bytes, "of products"
    of one that only multiplies bytes; where both are small, others use this machine, or scaling takes the
    time.

    **Examples:**

    cutaway bench

    cutaway bench model.gguf --depth 0,4096 --threads 1,2 --json

    cutaway bench model.gguf --peer llama.cpp/build/bin/llama-bench --output rows.jsonl

    :param models: Models' names, .gguf files or folders. [default: smollm2]
    :param prompt: Lengths of prompts, between commas; 0 for none.
    :param tokens: How many tokens are decoded; 0 for none.
    :param depth: How many tokens come before.
    :param texts: How many texts are decoded at once.
    :param threads: Processor threads; all of this machine's by default.
    :param rounds: How often each test is run.
    :param peer: llama-bench, which runs the same tests of one text on the same files in turns with ours.
    :param output: A file to which each row is appended, as a line of JSON with this machine's facts.
    """
    absent = native.unavailable_reason()
    if absent is not None:
        raise UserError(f"Only the native runtime is measured: {absent[0].lower()}{absent[1:]}")
    if rounds < 1:
        raise UserError(f"--rounds is {rounds}: give a number from 1 up")
    if peer is not None and not os.access(peer, os.X_OK):
        raise UserError(f"--peer {peer}: there is no such program")
    if output is not None:
        files.check_file(output, force=True)  # rows are appended to what is there
    tests = _tests(
        _numbers("prompt", prompt),
        _numbers("tokens", tokens),
        _numbers("depth", depth),
        _numbers("texts", texts, 1),
    )
    each = [native.threads()] if threads is None else _numbers("threads", threads, 1)
    rows: list[Row] = []
    for model in models or ("smollm2",):
        path = console.model_path(model)
        lm: Any = cutaway.load(path, engine="runtime", context=context, kv_cache=kv_cache, strict=strict)
        bare = _bare(lm, model, kv_cache)
        for count in each:
            lm.engine.threads = count
            made = _rows(lm.engine, path, replace(bare, threads=count), tests, rounds, peer)
            with console.watched() as progress:
                for i, row in enumerate(made):
                    progress(f"Measuring {model} on {count} threads", i + 1, len(tests))
                    rows.append(row)
                    if output is not None:
                        with files.disk_errors(output), output.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(_machine() | asdict(row)) + "\n")
    if as_json:
        console.print_json({"machine": _machine(), "rows": [asdict(row) for row in rows]})
        return
    console.on_screen(lambda screen: _show(screen, rows))


def _bare(lm: Any, model: str, kv_cache: str) -> Row:
    """A model's row before it is measured."""
    stored = [lm.checkpoint.tensors.later(name) for name in lm.checkpoint.tensors]
    return Row(
        model=model,
        type=_main_type(stored),
        bytes=sum(one.nbytes for one in stored),
        parameters=sum(math.prod(shape) for shape in lm.config.weights().values()),
        isa=native.isa(),
        kv_cache=kv_cache,
        threads=0,
        test="",
    )


def _numbers(name: str, text: str, least: int = 0) -> list[int]:
    """The numbers between an option's commas."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < least:
        raise UserError(f"--{name} is {text!r}: give numbers from {least} up, between commas")
    return found


def _tests(prompts: list[int], tokens: list[int], depths: list[int], texts: list[int]) -> list[measure.Test]:
    found = []
    for depth in depths:
        found += [measure.Test(prompt=count, depth=depth) for count in prompts if count]
        found += [
            measure.Test(tokens=count, depth=depth, texts=some) for count in tokens if count for some in texts
        ]
    if not found:
        raise UserError("--prompt and --tokens are both 0: nothing is left to measure")
    return found


def _rows(
    engine: RuntimeEngine, path: Path, bare: Row, tests: list[measure.Test], rounds: int, peer: Path | None
) -> Iterator[Row]:
    """A row for each test, as soon as it is measured."""
    runs = [measure.prepared(engine, test) for test in tests]
    runs[0]()  # memory is touched, threads are awake
    multiplying = measure.multiplying(bare.threads)
    for test, run in zip(tests, runs, strict=True):
        ours, theirs, reading = [], [], 0.0
        for _ in range(rounds):
            ours.append(run())
            reading = max(reading, measure.reading(engine.packed.token_nbytes, bare.threads))
            if peer is not None and test.texts == 1:
                theirs.append(_theirs(peer, path, test, bare.threads, bare.kv_cache))
        best, other = max(ours), max(theirs, default=None)
        yield replace(
            bare,
            test=test.name,
            tokens_per_second=best,
            rounds=tuple(ours),
            of_reading=best * measure.bytes_a_token(engine, test) / reading,
            of_multiplying=best * measure.products_a_token(engine, test) / multiplying,
            peer=other,
            ratio=None if other is None else best / other,
        )


def _theirs(program: Path, path: Path, test: measure.Test, threads: int, kv_cache: str) -> float:
    """llama-bench's tokens/s of one run."""
    command = [program, "-m", path, "-t", threads, "-r", 1, "-o", "json"]
    command += ["-p", test.prompt, "-n", test.tokens, "-d", test.depth]
    command += ["-ctk", kv_cache.lower(), "-ctv", kv_cache.lower()] if kv_cache != "F16" else []
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    try:
        return float(json.loads(run.stdout)[0]["avg_ts"])
    except (ValueError, LookupError, TypeError):
        last = run.stderr.strip().splitlines()[-1:] or ["it printed no figures"]
        raise OperationalError(f"{program} did not measure {path}: {last[0]}") from None


def _main_type(stored: list[Later]) -> str:
    """The type that most of a model's matrices' weights are stored as."""
    counts: Counter[str] = Counter()
    for one in stored:
        if len(one.shape) > 1:
            counts[one.type] += math.prod(one.shape)
    return counts.most_common(1)[0][0]


def _machine() -> dict[str, Any]:
    return {
        "processor": library.processor(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "version": cutaway.__version__,
    }


def _show(screen: Any, rows: list[Row]) -> None:
    """A line and a table for each model and number of threads."""
    from rich.table import Table

    for (model, threads), group in groupby(rows, key=lambda row: (row.model, row.threads)):
        some = list(group)
        first, peers = some[0], any(row.peer is not None for row in some)
        weights = f"{first.parameters / 1e6:,.0f} million weights"
        screen.print(
            f"{model}: {first.type}, {console.size(first.bytes)}, {weights}; {threads} threads, {first.isa}, "
            f"KV cache {first.kv_cache}; "
            f"best of {len(first.rounds)} rounds",
            markup=False,
            soft_wrap=True,
        )
        table = Table(box=None)
        table.add_column("test", no_wrap=True)
        for name in ("tokens/s", "of reading", "of products", *(("peer", "ratio") if peers else ())):
            table.add_column(name, justify="right", no_wrap=True)
        for row in some:
            figures = [f"{row.tokens_per_second:.1f}", f"{row.of_reading:.0%}", f"{row.of_multiplying:.1%}"]
            if row.peer is not None and row.ratio is not None:
                figures += [f"{row.peer:.1f}", f"{row.ratio:.2f}"]
            table.add_row(row.test, *figures)
        console.print_table(screen, table)
