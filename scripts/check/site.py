"""The documentation's site: built without a warning, its links followed, and axe-core over each page.

    python -m scripts.check.site            # needs the extra docs, Chromium and Playwright; ten minutes
    python -m scripts.check.site course     # the browser opens the pages alone whose path has this word

Every page is opened in light, in dark, and as wide as a phone: all rules of axe-core, nothing wider than the
window, no error of a script, and no request to another machine. All equations are MathML. Exits 1 where
something is wrong.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

ROOT = Path(__file__).parents[2]
SIDEBAR = ".sidebar-tree"  # the list of all pages, the same on each: it is judged where a folder begins
DRAWN = "!document.querySelector('main > .wait')"  # a view has drawn its recorded trace
WIDE, PHONE, HEIGHT = 1400, 400, 900  # pixels
# Views are pages of their own. To name all that passes, and to fetch styles as text, doubles axe-core's time.
QUICK = "iframes: false, resultTypes: ['violations'], preload: false"
LATEX = re.compile(r"\\[\[(]|\$\$|\\(?:frac|sum|text|mathrm|cdot|sqrt|left|begin|theta|ln|tanh|log)\b")
NO_PROSE = ("script", "style", "pre", "code", "annotation")


class _Page(HTMLParser):
    """The links of a page, the places in it that a link may name, and the text that is prose."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.prose = ""
        self._outside: list[str] = []  # the elements around, whose text is none
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag links to, and its own name."""
        if tag in NO_PROSE:
            self._outside.append(tag)
        for name, value in attrs:
            if value and name in ("id", "name"):
                self.places.add(value)
            if value and name in ("href", "src") and tag != "link":
                self.links.append(value)

    def handle_endtag(self, tag: str) -> None:
        """Leave an element."""
        if self._outside and self._outside[-1] == tag:
            self._outside.pop()

    def handle_data(self, data: str) -> None:
        """Keep text that a reader reads as prose."""
        if not self._outside:
            self.prose += data


def build(folder: Path) -> int:
    """Build the site as its workflow does; the exit code is Sphinx's."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(ROOT / "docs"), str(folder)]
    return subprocess.run(command, check=False).returncode


def parsed(folder: Path) -> dict[Path, _Page]:
    """Every page of the site but the views, which are programs."""
    found = [path for path in sorted(folder.rglob("*.html")) if path.parent.name != "views"]
    return {path: _Page(path.read_text("utf-8")) for path in found}


def raw_latex(folder: Path) -> Iterator[str]:
    """Equations that a reader would see as LaTeX."""
    for path, page in parsed(folder).items():
        if found := LATEX.search(page.prose):
            around = page.prose[max(0, found.start() - 30) : found.end() + 30]
            yield f"{path.relative_to(folder)}: an equation is no MathML: {' '.join(around.split())}"


def dead_links(folder: Path) -> Iterator[str]:
    """Links within the site that lead to no page, or to no place in it."""
    pages = parsed(folder)
    for path, page in pages.items():
        for link in page.links:
            address, place = urldefrag(link)
            if urlsplit(address).scheme or address.startswith("//"):
                continue
            address = address.partition("?")[0]
            target = (path.parent / unquote(address)).resolve() if address else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{path.relative_to(folder)}: {link}: there is no such file"
            elif place and target in pages and unquote(place) not in pages[target].places:
                yield f"{path.relative_to(folder)}: {link}: there is no such place"


def counts(folder: Path) -> tuple[int, int]:
    """How many pages the site has, views among them, and how many equations."""
    texts = [path.read_text("utf-8") for path in folder.rglob("*.html")]
    return len(texts), sum(text.count("<math ") for text in texts)


def faults(folder: Path, word: str = "") -> Iterator[str]:
    """What a browser finds on each page: opened once, looked at in light, in dark, and as wide as a phone."""
    from playwright.sync_api import sync_playwright

    from tests import inputs

    axe = inputs.path("axe-core").read_text("utf-8")
    pages = [path for path in sorted(folder.rglob("*.html")) if word in str(path.relative_to(folder))]
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(bypass_csp=True)
        context.set_default_timeout(120_000)
        tab = context.new_page()
        noted: list[str] = []
        tab.on("request", lambda asked: _note_request(asked.url, noted))
        tab.on("pageerror", lambda error: noted.append(f"a script fails: {error}"))
        for path in pages:
            tab.set_viewport_size({"width": WIDE, "height": HEIGHT})
            tab.emulate_media(color_scheme="light")
            tab.goto(path.as_uri())
            tab.wait_for_function(DRAWN)
            tab.evaluate(axe)
            found = [*_looks(tab, SIDEBAR if path.name != "index.html" else ""), *noted]
            noted.clear()
            if path.parent.name == "views":  # one view is a frame in a chapter, which has the heading
                found = [one for one in found if "page-has-heading-one" not in one]
            yield from (f"{path.relative_to(folder)}: {one}" for one in found)
        browser.close()


def _note_request(address: str, noted: list[str]) -> None:
    if urlsplit(address).scheme not in ("file", "data", "blob", "about"):
        noted.append(f"it asks another machine: {address}")


def _looks(tab: Any, without: str) -> Iterator[str]:
    """What axe-core and the window say of the open page: in each look by the rules that it changes."""
    part = f"{{exclude: ['{without}']}}" if without else "document"
    colours = "runOnly: ['color-contrast', 'link-in-text-block']"
    others = "rules: {'color-contrast': {enabled: false}, 'link-in-text-block': {enabled: false}}"
    for look, scheme, width, rules in (
        ("light", "light", WIDE, ""),
        ("dark", "dark", WIDE, colours),
        ("phone", "light", PHONE, others),
    ):
        tab.set_viewport_size({"width": width, "height": HEIGHT})
        tab.emulate_media(color_scheme=scheme)
        for found in tab.evaluate(f"axe.run({part}, {{{QUICK}, {rules}}})")["violations"]:
            nodes = "; ".join(str(node["target"][0]) for node in found["nodes"][:3])
            yield f"{look}: {found['id']} ({found['impact']}), {len(found['nodes'])} times: {nodes}"
        over = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        if (wide := tab.evaluate(over)) > 1:
            yield f"{look}: the page scrolls sideways, by {wide} pixels"


def main() -> int:
    """Build, follow, open; print what is wrong."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        wrong = int(build(site) != 0)
        pages, equations = counts(site)
        for problem in itertools.chain(dead_links(site), raw_latex(site), faults(site, *sys.argv[1:2])):
            print(problem, flush=True)
            wrong += 1
    took = f"{pages} pages and {equations} equations in {time.monotonic() - began:.0f} s"
    print(f"{took}: {f'{wrong} problems' if wrong else 'the site is sound'}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
