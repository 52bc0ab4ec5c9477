"""Tokenising as a Ray Data job gives, token for token, what one machine gives: on a local Ray of two
processes, over files of Cutaway's own source, all of them twice. Takes about a minute.

    python -m scripts.check.ray_shards
"""

import shutil
import sys
import tempfile
from pathlib import Path

import cutaway
from cutaway.data import cluster, filters, run_tokenizer, shards
from cutaway.data.sources import Source


def main() -> int:
    """Prints both counts."""
    import ray

    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        shutil.copytree(Path(cutaway.__file__).parent / "data", home / "text" / "a")
        shutil.copytree(home / "text" / "a", home / "text" / "b")
        vocabulary = run_tokenizer.save(run_tokenizer.of_bytes(), home / "words")
        source, rules = Source(str(home / "text"), suffixes=(".py",)), filters.Filters(min_characters=200)
        here = shards.prepare(source, vocabulary, home / "here", rules=rules, workers=1)
        ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
        there = cluster.prepare(source, vocabulary, home / "there", rules=rules, documents=4)
        ray.shutdown()
        print(f"one machine: {here.counts}, {len(here.shards)} shards")
        print(f"Ray:         {there.counts}, {len(there.shards)} shards")
        ids = [corpus.read(0, corpus.tokens) for corpus in (here, there)]
        equal = all((a == b).all() for a, b in zip(*ids, strict=True)) and here.counts == there.counts
        print("equal" if equal else "DIFFERENT")
        return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
