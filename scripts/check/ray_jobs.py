"""Counting words, tokenising, `compare`, `eval` and `activations` on a local Ray, each with a worker killed
in the middle, give what one machine gives, to the bit. Takes about ten minutes on two cores.

    python -m scripts.check.ray_jobs [count_words tokenise compare evaluate activations]

Not among the tests, because starting Ray alone takes longer than any of them. Where other work fills the
machine, set RAY_worker_niceness=0: Ray's workers wait for every other process otherwise.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import cutaway
from cutaway import cli
from cutaway.compare import arms, report, sweep
from cutaway.compare.tasks import copying
from cutaway.data import cluster, filters, run_tokenizer, shards
from cutaway.data.sources import Source
from cutaway.errors import UserError
from cutaway.tokenizer import ray_counts
from cutaway.tokenizer.word_counts import WordCounts
from scripts.check.kill_and_resume import table
from tests.training import chatting_model

SOURCE = Path(cutaway.__file__).parent


def main(names: list[str]) -> int:
    """Prints what each gave; 1 where one differs."""
    import ray

    differ = []
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
        for name in names or list(VERBS):
            for way in ("alone", "ray"):
                (home / name / way).mkdir(parents=True)
            start = time.perf_counter()
            alone = VERBS[name](home / name / "alone", False)
            middle = time.perf_counter()
            with killing() as killed:
                together = VERBS[name](home / name / "ray", True)
            end = time.perf_counter()
            same = "equal" if alone == together else "DIFFERENT"
            differ += [] if same == "equal" and killed else [name]
            print(
                f"{name}: {same}; killed: {', '.join(killed) or 'NONE'}. "
                f"{middle - start:.1f} s in one process, {end - middle:.1f} s on Ray",
                flush=True,
            )
        ray.shutdown()
    return int(bool(differ))


@contextmanager
def killing() -> Iterator[list[str]]:
    """Kills one of this process's Ray workers while it works; the list says what it was doing."""
    killed: list[str] = []
    over = threading.Event()

    def watch() -> None:
        before: dict[int, str] = {}
        while not over.wait(0.05):
            found = busy()
            for pid in found.keys() & before.keys():  # has been at it for a while
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(found[pid])
                    return
            before = found

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def busy() -> dict[int, str]:
    """The Ray workers below this process that run a task, and their titles."""
    parents, titles = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(entry.name)] = (entry / "cmdline").read_bytes().rstrip(b"\0").decode()

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    works = {pid: title for pid, title in titles.items() if title.startswith("ray::") and ours(pid)}
    own = ("IDLE", "Agent", "Actor")  # Ray's own processes
    return {pid: title for pid, title in works.items() if not any(word in title for word in own)}


# ---- the verbs ---------------------------------------------------------------------------------------------


def count_words(home: Path, on_ray: bool) -> Any:
    """The words of Cutaway's own source; on Ray a file that is not UTF-8 is refused in a sentence too."""
    files = sorted(SOURCE.glob("**/*.py"))
    found = (ray_counts if on_ray else WordCounts).of(files, "gpt2", ["<|end|>"])
    if on_ray:
        (home / "bad.txt").write_bytes(b"a\xff")
        try:
            ray_counts.of([home / "bad.txt"])
        except UserError as problem:
            print(f"A file that is not UTF-8 is refused: {problem}")
        else:
            raise AssertionError("a file that is not UTF-8 was counted")
    return dict(found.words), found.documents, found.bytes, found.done


def tokenise(home: Path, on_ray: bool) -> Any:
    """Every token, document border and count of the source's files, all of them twice."""
    for copy in ("a", "b"):
        copied(home / "text" / copy, "data/*.py")
    words = run_tokenizer.save(run_tokenizer.of_bytes(), home / "words")
    source, rules = Source(str(home / "text")), filters.Filters(min_characters=200)
    if on_ray:
        made = cluster.prepare(source, words, home / "made", rules=rules, documents=4)
    else:
        made = shards.prepare(source, words, home / "made", rules=rules, workers=1)
    return [part.tolist() for part in made.read(0, made.tokens)], dict(made.counts)


def compare(home: Path, on_ray: bool) -> Any:
    """The table of a small comparison; without Ray that of two processes is the same too."""
    settings = {"steps": 20, "trial_steps": 10, "batch_size": 16, "seeds": 2, "test": 32}
    settings |= {"learning_rates": (0.01,)}
    made = arms.preset(copying.Config(6, 8), {"attention": ["mha", "linear"]}, width=16, **settings)
    ways: list[dict[str, Any]] = [{"ray": True}] if on_ray else [{}, {"workers": 2}]
    found = set()
    for n, how in enumerate(ways):
        folder = home / str(n)
        found.add(table(report.save(made, sweep.run_sweep(made, folder, lambda what: None, **how), folder)))
    (only,) = found
    return only


def evaluate(home: Path, on_ray: bool) -> Any:
    """All figures of texts and of choices, but for seconds."""
    base = chatting_model(home / "base")
    texts = [path.read_text()[:600] for path in sorted(SOURCE.glob("**/*.py"))][:150]
    (home / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows = [
        {"prompt": f"{n} + 1 =", "choices": [f" {n + k}" for k in (1, 2, 3)], "answer": 0} for n in range(150)
    ]
    (home / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = f"text:{home / 'texts.jsonl'},file:{home / 'sums.jsonl'}"
    printed = called(
        "eval", str(base), "--tasks", tasks, "--mutual-information", "--no-cache", "--json", ray=on_ray
    )
    figures = json.loads(printed)["tasks"].values()
    names = ("seconds", "source")
    return [{name: value for name, value in each.items() if name not in names} for each in figures]


def activations(home: Path, on_ray: bool) -> Any:
    """Every shard's bytes."""
    base = chatting_model(home / "base")
    words = ["--model", str(base), "--output", str(home / "acts"), "--max-tokens", "150000", "--json"]
    copied(home / "text", "**/*.py")
    called("activations", str(home / "text"), "--names", "blocks.1.out", *words, ray=on_ray)
    return {path.name: path.read_bytes() for path in sorted((home / "acts").glob("*.safetensors"))}


def copied(folder: Path, pattern: str) -> None:
    """Files of Cutaway's own source, as text."""
    folder.mkdir(parents=True)
    for n, path in enumerate(sorted(SOURCE.glob(pattern))):
        (folder / f"{n:04}.txt").write_bytes(path.read_bytes())


def called(*words: str, ray: bool) -> str:
    """What the command prints."""
    out = io.StringIO()
    with redirect_stdout(out):
        code = cli.main([*words, *(["--ray"] if ray else [])])
    assert code == 0, f"{words[0]} ended with {code}"
    return out.getvalue()


VERBS: dict[str, Callable[[Path, bool], Any]] = {
    "count_words": count_words,
    "tokenise": tokenise,
    "compare": compare,
    "evaluate": evaluate,
    "activations": activations,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
