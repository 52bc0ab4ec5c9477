"""Counting the words of files on a local Ray gives the counts of one process.

Not among the tests, because starting Ray alone takes longer than any of them.
"""

import sys
import tempfile
import time
from pathlib import Path

from cutaway.errors import UserError
from cutaway.tokenizer import ray_counts
from cutaway.tokenizer.word_counts import WordCounts


def main(files: list[Path]) -> None:
    start = time.perf_counter()
    alone = WordCounts.of(files, "gpt2", ["<|end|>"])
    middle = time.perf_counter()
    together = ray_counts.of(files, "gpt2", ["<|end|>"])
    end = time.perf_counter()
    assert together.words == alone.words
    assert (together.documents, together.bytes, together.done) == (alone.documents, alone.bytes, alone.done)
    print(
        f"{len(files)} files, {len(alone):,} distinct words: equal. "
        f"{middle - start:.1f} s in one process, {end - middle:.1f} s on a local Ray, its start included"
    )
    with tempfile.TemporaryDirectory() as folder:
        bad = Path(folder) / "bad.txt"
        bad.write_bytes(b"a\xff")
        try:
            ray_counts.of([bad])
        except UserError as problem:
            print(f"A file that is not UTF-8 is refused: {problem}")
        else:
            raise AssertionError("a file that is not UTF-8 was counted")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or sorted(Path(__file__).parents[2].glob("cutaway/**/*.py")))
