"""Encoding and decoding side by side: Cutaway, tiktoken, tokenizers, gigatoken, fastokens, on the same text.

    python bench/tokenizer.py [--json] [--only NAME ...] [--texts prose mixed] [--rounds 3]

cl100k_base in all of them; English prose and mixed text (bench/corpus.py), as one 10 MB document and as
10,000 short ones, on one processor and on two. "first" is a fresh tokenizer's first sight of the text,
"warm" the best of three more. Each row is a process of its own, whose peak memory is beside it; the rows
are taken in turn, --rounds times, and each figure is the best of them. Ids must be tiktoken's. A peer that
is not installed is left out by name. Takes about ten minutes, most of them tokenizers'; run it alone on the
machine.
"""

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PEERS = ("cutaway", "cutaway lists", "tiktoken", "tokenizers", "gigatoken", "fastokens")
SIZE, SHORT = 10_000_000, 1_000  # characters
ODD = 1_000_000


def ranks() -> dict[bytes, int]:
    """cl100k's tokens."""
    from cutaway import Tokenizer
    from tests import inputs

    tok = Tokenizer.load(inputs.path("tiktoken") / "cl100k_base.json")
    return {tok.token_bytes(id): id for id in tok.spec.vocabulary.values()}


def prepared(folder: Path) -> None:
    """The vocabulary in the formats that peers read, and the texts."""
    import base64

    from bench import corpus
    from cutaway import Tokenizer
    from tests import inputs

    tok = Tokenizer.load(inputs.path("tiktoken") / "cl100k_base.json")
    tok.save(folder / "tokenizer.json")
    lines = (base64.b64encode(data) + b" %d\n" % id for data, id in ranks().items())
    (folder / "cl100k_base.tiktoken").write_bytes(b"".join(lines))
    (folder / "prose.txt").write_text(corpus.prose()[:SIZE].replace("\ufffd", ""))
    (folder / "mixed.txt").write_text(corpus.mixed(SIZE))
    noise = random.Random(5)
    odd = {
        "letters": "a" * ODD,
        "spaces": " " * ODD,
        "newlines": "\n" * ODD,
        "random bytes": noise.randbytes(200_000).decode("utf-8", "replace"),
        "Chinese": "".join(
            page for page in "".join(corpus.pages("libreoffice-help-zh-cn")) if page > "\u4e00"
        )[:ODD],
        "Thai": next(text for text in corpus.law() if "มนุษย์" in text).replace(" ", "").replace("\n", "") * 8,
    }
    (folder / "odd.json").write_text(json.dumps(odd))


def made(
    peer: str, folder: Path, threads: int
) -> tuple[Callable[[str], Any], Callable[[list[str]], Any], Any]:
    """A fresh tokenizer: its encode, its encode of a batch, and its decode."""
    if peer.startswith("cutaway"):
        from cutaway import Tokenizer
        from tests import inputs

        tok = Tokenizer.load(inputs.path("tiktoken") / "cl100k_base.json")
        if peer == "cutaway":
            return (
                lambda text: tok.encode_array(text, threads=threads),
                lambda texts: tok.encode_batch(texts, threads=threads)[0],
                tok.decode,
            )
        return tok.encode, lambda texts: [tok.encode(text) for text in texts], tok.decode
    if peer == "tiktoken":
        import tiktoken

        from cutaway.tokenizer.pretokenize import CL100K

        encoding = tiktoken.Encoding("cl100k", pat_str=CL100K, mergeable_ranks=ranks(), special_tokens={})
        return (
            encoding.encode_ordinary,
            lambda texts: encoding.encode_ordinary_batch(texts, num_threads=threads),
            encoding.decode,
        )
    if peer == "tokenizers":
        import tokenizers

        hf = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        return (
            lambda text: hf.encode(text).ids,
            lambda texts: [one.ids for one in hf.encode_batch_fast(texts)],
            hf.decode,
        )
    if peer == "gigatoken":
        import gigatoken

        giga = gigatoken.Tokenizer(str(folder / "tokenizer.json"))
        return giga.encode, lambda texts: giga.encode_batch(texts), lambda ids: giga.decode(ids)
    import fastokens

    fast = fastokens.Tokenizer.from_tiktoken(str(folder / "cl100k_base.tiktoken"), encoding="cl100k_base")
    return fast.encode_ordinary, lambda texts: fast.encode_batch_flat(texts)[0], fast.decode


def peak() -> float:
    """The most memory that this process had, in MB: of its own, not of the one that it was forked from."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) / 1024


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measured(peer: str, folder: Path, kind: str, threads: int) -> dict[str, float]:
    """One row: megabytes a second of each setting, and the megabytes of memory that they took."""
    text = (folder / f"{kind}.txt").read_text()
    texts = [text[i : i + SHORT] for i in range(0, len(text), SHORT)]
    size = len(text.encode()) / 1e6
    out: dict[str, float] = {}
    for setting, load in (("document", text), ("batch", texts)):
        encode, batch, decode = made(peer, folder, threads)
        call = encode if setting == "document" else batch
        call("A word before." if setting == "document" else ["A word before."])  # what is built once is built
        out[f"{setting} first"] = size / seconds(lambda: call(load))  # noqa: B023
        out[f"{setting} warm"] = size / min(seconds(lambda: call(load)) for _ in range(3))  # noqa: B023
        if setting == "document" and threads == 1:
            ids = encode(text)
            ids = getattr(ids, "ids", ids)  # fastokens has them in an object
            ids = list(map(int, ids)) if peer not in ("cutaway",) else ids
            out["decode"] = size / min(seconds(lambda: decode(ids)) for _ in range(3))  # noqa: B023
            out["ids"] = len(ids)
    out["peak MB"] = peak()
    return out


def oddities(folder: Path) -> dict[str, float]:
    """How many times prose's time a byte our encoder takes on what is hard to encode, both at first sight."""
    texts = json.loads((folder / "odd.json").read_text())
    texts["prose"] = (folder / "prose.txt").read_text()[:ODD]
    best = dict.fromkeys(texts, 1e9)
    for _ in range(5):
        for name, text in texts.items():
            encode = made("cutaway", folder, 1)[0]
            encode("A word before.")
            best[name] = min(best[name], seconds(lambda: encode(text)) / len(text.encode()))  # noqa: B023
    return {name: spent / best["prose"] for name, spent in best.items()}


def row(folder: Path, threads: int, *words: str) -> dict[str, float]:
    """A measurement in a process of its own, on as many processors as it has threads."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(folder), str(threads), *words],
        capture_output=True,
        env=environment,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        check=False,
    )
    if done.returncode:
        print(f"{words[0]} failed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return {}
    return json.loads(done.stdout)


def best(rows: list[dict[str, float]], chosen: Callable[..., float] = max) -> dict[str, float]:
    """The best of each figure; of the memory, which is none of speed, the most."""
    return {name: chosen(found[name] for found in rows if found) for name in rows[0]}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="*", default=PEERS)
    parser.add_argument("--texts", nargs="*", default=["prose", "mixed"])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(arguments)
    absent = [peer for peer in asked.only if importlib.util.find_spec(peer.split()[0]) is None]
    for peer in absent:
        print(f"{peer} is not installed and is left out", file=sys.stderr)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepared(folder)
        for kind in asked.texts:
            for threads in (1, 2):
                peers = [peer for peer in asked.only if peer not in absent]
                rows = [
                    {peer: row(folder, threads, peer, kind) for peer in peers} for _ in range(asked.rounds)
                ]
                for peer in peers:
                    found = best([rows_of[peer] for rows_of in rows])
                    figures[f"{kind}, {threads}, {peer}"] = found
                    if not asked.json:
                        print(
                            f"{kind} {threads} {peer:14}"
                            + "".join(f"  {k} {v:,.0f}" for k, v in found.items()),
                            flush=True,
                        )
        figures["odd"] = best([row(folder, 1, "odd") for _ in range(asked.rounds)], min)
    print(json.dumps(figures, indent=1) if asked.json else f"odd, times prose: {figures['odd']}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    if sys.argv[1:2] == ["--one"]:
        where, count, peer, *rest = sys.argv[2:]
        got = oddities(Path(where)) if peer == "odd" else measured(peer, Path(where), rest[0], int(count))
        print(json.dumps(got))
    else:
        main(sys.argv[1:])
