"""The corpus of bench/embedding.py: 17.7 MB of English from two dictionaries in Debian, GCIDE and WordNet.

    python bench/embedding_corpus.py FOLDER

Fetches the two packages with apt (or takes them from FOLDER), checks their SHA-256, and writes
FOLDER/corpus.txt: lower-case words, a paragraph a line, each paragraph once, in a fixed random order.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SIZE = 17_700_000
PACKAGES = {
    "dict-gcide_0.48.5+nmu4_all.deb": "7d6c11be209ca67fb4425b1e4d600e9dc9c5c67d919482e51b99b0cca179601b",
    "dict-wn_1%3a3.0-39_all.deb": "bb4f2b19b6130443c432ccb3eb44d4888d440aae6f8b5ac5d196c13ae66207b2",
}
MARKS = re.compile(r"\[[^\]]*\]|\\[^\\]*\\|[{}]")  # sources, pronunciations, links


def main(folder: Path) -> Path:
    """Write the corpus unless it is there, and return its path."""
    target = folder / "corpus.txt"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    lines = sorted({line for package in PACKAGES for line in paragraphs(unpacked(folder, package))})
    random.Random(0).shuffle(lines)
    with target.open("w") as file:
        size = 0
        for line in lines:
            size += file.write(line + "\n")
            if size >= SIZE:
                break
    return target


def unpacked(folder: Path, package: str) -> str:
    """The dictionary's text."""
    file = folder / package
    name, version = package.removesuffix("_all.deb").split("_")
    if not file.is_file():
        asked = f"{name}={version.replace('%3a', ':')}"
        subprocess.run(["apt-get", "download", asked], cwd=folder, check=True)
    if hashlib.sha256(file.read_bytes()).hexdigest() != PACKAGES[package]:
        sys.exit(f"{file} has another checksum than it is pinned to")
    subprocess.run(["dpkg-deb", "-x", file, folder / "unpacked"], check=True)
    short = name.removeprefix("dict-")
    return gzip.open(folder / f"unpacked/usr/share/dictd/{short}.dict.dz").read().decode(errors="replace")


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of five words or more."""
    for paragraph in re.split(r"\n\s*\n|\n    (?=[nv]|adj|adv|\d)", text):
        words = re.findall(r"[a-z]+", MARKS.sub(" ", paragraph).lower())
        if len(words) >= 5:
            yield " ".join(words)


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
