"""50 MB of real text to train tokenizers on: documentation, dictionaries, help in five scripts, source code.

    python bench/training_text.py FOLDER

Writes FOLDER/training-text.txt and prints its size and SHA-256. The text comes from Debian packages, fetched
with `apt-get download`, and from Python's own standard library; the same versions give the same bytes.
"""

import gzip
import hashlib
import html
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

# Debian packages, and how many megabytes of each are taken.
FRACTIONS = {
    "linux-doc-6.12": 12.0,
    "python3.13-doc": 5.0,
    "dict-gcide": 10.0,
    "dict-wn": 6.0,
    "libreoffice-help-de": 2.5,
    "libreoffice-help-ru": 2.5,
    "libreoffice-help-ja": 2.5,
    "libreoffice-help-zh-cn": 2.5,
}
WHOLE = 50_000_000  # bytes; what the packages leave open is Python source


def build(folder: Path) -> Path:
    """The text in a folder, made if it is not there."""
    target = folder / "training-text.txt"
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        parts = [_some(_package(name, folder), int(fraction * 1e6)) for name, fraction in FRACTIONS.items()]
        parts.append(_some(_library(), WHOLE - sum(map(len, parts)) - len(parts)))
        target.write_bytes(b"\n".join(parts))
    return target


def _package(name: str, folder: Path) -> Iterable[str]:
    unpacked = folder / name
    if not unpacked.is_dir():
        if not list(folder.glob(f"{name}_*.deb")):
            subprocess.run(["apt-get", "download", "-qq", name], cwd=folder, check=True)
        archive = next(iter(sorted(folder.glob(f"{name}_*.deb"))))
        subprocess.run(["dpkg-deb", "-x", archive, unpacked], check=True)
    for path in sorted(unpacked.rglob("*")):
        if path.suffix == ".html":
            yield _plain(path.read_text(encoding="utf-8", errors="ignore"))
        elif path.name.endswith((".dict.dz", ".rst.gz")):
            yield gzip.decompress(path.read_bytes()).decode("utf-8", "ignore")


def _plain(page: str) -> str:
    page = re.sub(r"(?s)<(script|style|head)\b.*?</\1>", "", page)
    return re.sub(r"\n\s*\n+", "\n\n", html.unescape(re.sub(r"<[^>]*>", "", page))).strip() + "\n"


def _library() -> Iterable[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts:
            yield path.read_text(encoding="utf-8", errors="ignore")


def _some(texts: Iterable[str], size: int) -> bytes:
    """The first `size` bytes of the texts, as far as whole characters go."""
    out, have = [], 0
    for text in texts:
        out.append(text.encode("utf-8", "ignore"))
        have += len(out[-1])
        if have >= size:
            break
    return b"".join(out)[:size].decode("utf-8", "ignore").encode()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python bench/training_text.py FOLDER")
    built = build(Path(sys.argv[1]))
    data = built.read_bytes()
    print(f"{built}: {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")
