"""Training a 32,768 vocabulary on 50 MB, beside every peer that is installed: seconds and peak memory.

    python bench/tokenizer_training.py [FILE] [--size N] [--threads 1 2] [--rounds 1] [--only NAME] [--json]

Without FILE the text is that of bench/training_text.py. Each row is a process of its own, so that threads and
memory are its own; the rows are taken in turn, --rounds times, and each is the fastest of them: from the text
on disk to the merges in memory, the import not counted. CPU seconds are those of all threads, which a busy
machine changes less; peak is the process's largest resident size above what it had after the import. All cut
by the pattern of cl100k, except gigabpe and gigatoken, which know GPT-2's alone, and sentencepiece (BPE over
characters, by lines); peers that take no file get documents of about 64 KB.
"""

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from training_text import build

from cutaway.tokenizer.pretokenize import CL100K


def cutaway(file: Path, size: int, threads: int) -> int:
    from cutaway.tokenizer import training
    from cutaway.tokenizer.word_counts import WordCounts

    return len(training.bpe(WordCounts.of(file, "cl100k", threads=threads), size).merges or ())


def documents(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8", newline="") as text:
        while lines := text.readlines(1 << 16):
            yield "".join(lines)


def tokenizers(file: Path, size: int, threads: int) -> int:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    judge = Tokenizer(models.BPE())
    judge.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CL100K), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    judge.train_from_iterator(documents(file), trainer)
    return judge.get_vocab_size() - 256


def sentencepiece(file: Path, size: int, threads: int) -> int:
    import sentencepiece

    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            input=str(file),
            model_prefix=f"{folder}/model",
            vocab_size=size,
            model_type="bpe",
            num_threads=threads,
            input_sentence_size=0,
            max_sentence_length=1 << 20,
            byte_fallback=True,
            minloglevel=2,
        )
    return size


def rustbpe(file: Path, size: int, threads: int) -> int:
    import rustbpe

    judge = rustbpe.Tokenizer()
    judge.train_from_iterator(documents(file), size, pattern=CL100K)
    return len(judge.get_mergeable_ranks()) - 256


def bpeasy(file: Path, size: int, threads: int) -> int:
    import bpeasy

    return len(bpeasy.train_bpe(documents(file), CL100K, 128, size)) - 256


def gigabpe(file: Path, size: int, threads: int) -> int:
    import gigabpe

    return len(gigabpe.train_bpe([str(file)], size, pretokenizer="bytelevel", threads=threads)[1])


def gigatoken(file: Path, size: int, threads: int) -> int:
    import gigatoken

    return len(gigatoken.train_bpe(str(file), size, [])[1])


PEERS = {
    "gigabpe": gigabpe,
    "gigatoken": gigatoken,
    "sentencepiece": sentencepiece,
    "rustbpe": rustbpe,
    "tokenizers": tokenizers,
    "bpeasy": bpeasy,
}


def one(name: str, file: Path, size: int, threads: int) -> dict[str, float | str]:
    """A row: what one trainer takes, measured in this process."""
    train = cutaway if name == "cutaway" else PEERS[name]
    importlib.import_module("cutaway.tokenizer.training" if name == "cutaway" else name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, spent = time.perf_counter(), time.process_time()
    merges = train(file, size, threads)
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "trainer": name,
        "threads": threads,
        "seconds": seconds,
        "CPU seconds": spent,
        "peak MB": peak / 1024,
        "merges": merges,
    }


def measured(name: str, file: Path, size: int, threads: int) -> dict[str, float | str]:
    options = ["--one", name, "--size", str(size), "--threads", str(threads)]
    command = [sys.executable, __file__, str(file), *options]
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads), "CUTAWAY_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"trainer": name, "threads": threads, "problem": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--size", type=int, default=32768)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=["cutaway", *PEERS])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    file = asked.file or build(Path.home() / ".cache" / "cutaway" / "training-text")
    if asked.one:
        print(json.dumps(one(asked.one, file, asked.size, asked.threads[0])))
        return
    names = asked.only or ["cutaway", *(name for name in PEERS if importlib.util.find_spec(name))]
    rows = []
    for threads in asked.threads:
        turns = [
            {name: measured(name, file, asked.size, threads) for name in names} for _ in range(asked.rounds)
        ]
        for name in names:
            rows.append(min((turn[name] for turn in turns), key=lambda row: float(row.get("seconds", 1e9))))
            if not asked.json:
                print(line(rows), flush=True)
    if asked.json:
        print(json.dumps(rows, indent=2))


def line(rows: list[dict[str, float | str]]) -> str:
    """The last row in words, with its time as a multiple of Cutaway's on as many threads."""
    row = rows[-1]
    head = f"{row['trainer']:>14}, {row['threads']} threads: "
    if "problem" in row:
        return head + str(row["problem"])
    ours = [
        r for r in rows if r["trainer"] == "cutaway" and r["threads"] == row["threads"] and "seconds" in r
    ]
    times = f"{float(row['seconds']) / float(ours[0]['seconds']):6.1f}x" if ours else ""
    spent = f"{row['CPU seconds']:7.2f} s of CPU"
    return (
        f"{head}{row['seconds']:7.2f} s {times} {spent}  {row['peak MB']:6.0f} MB  {row['merges']:,} merges"
    )


if __name__ == "__main__":
    main()
