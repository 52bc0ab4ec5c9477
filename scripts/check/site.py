"""The documentation's site: built without a warning, its links followed, and axe-core over each page.

    python -m scripts.check.site            # needs the extra docs, Chromium and Playwright; five minutes
    python -m scripts.check.site course     # axe-core on the pages alone whose path has this word

Every page is opened in light, in dark, and as wide as a phone. Exits 1 where something is wrong.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

ROOT = Path(__file__).parents[2]
LOOKS = {"light": (1200, "light"), "dark": (1200, "dark"), "phone": (390, "light")}
THEMES_OWN = ("search.html", "genindex.html")
SERIOUS = ("serious", "critical")


class _Page(HTMLParser):
    """The links of a page, and the places in it that a link may name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag links to, and its own name."""
        for name, value in attrs:
            if value and name in ("id", "name"):
                self.places.add(value)
            if value and name in ("href", "src") and tag != "link":
                self.links.append(value)


def build(folder: Path) -> int:
    """Build the site as its workflow does; the exit code is Sphinx's."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(ROOT / "docs"), str(folder)]
    return subprocess.run(command, check=False).returncode


def dead_links(folder: Path) -> Iterator[str]:
    """Links within the site that lead to no page, or to no place in it."""
    pages = {path: _Page(path.read_text("utf-8")) for path in sorted(folder.rglob("*.html"))}
    for path, page in pages.items():
        if path.parent.name == "views":
            continue
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


def faults(folder: Path, word: str = "") -> Iterator[str]:
    """What axe-core calls serious on a page, in each look."""
    from playwright.sync_api import sync_playwright

    from tests import inputs

    axe = inputs.path("axe-core").read_text("utf-8")
    pages = [path for path in sorted(folder.rglob("*.html")) if path.name not in THEMES_OWN]
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for look, (width, scheme) in LOOKS.items():
            context = browser.new_context(viewport={"width": width, "height": 900}, bypass_csp=True)
            context.set_default_timeout(60_000)
            tab = context.new_page()
            tab.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            for path in (path for path in pages if word in str(path) and path.parent.name != "views"):
                tab.goto(path.as_uri())
                yield from _faults_of(tab, axe, f"{path.relative_to(folder)}, {look}")
        browser.close()


def _faults_of(tab: Any, axe: str, name: str) -> Iterator[str]:
    tab.evaluate(axe)
    options = "{runOnly: ['wcag2a', 'wcag2aa'], iframes: false}"
    for found in tab.evaluate(f"axe.run(document, {options})")["violations"]:
        if found["impact"] in SERIOUS:
            nodes = "; ".join(str(node["target"][0]) for node in found["nodes"][:3])
            yield f"{name}: {found['id']}, {len(found['nodes'])} times: {nodes}"
    wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if wide > 1:
        yield f"{name}: the page scrolls sideways, by {wide} pixels"


def main() -> int:
    """Build, follow, open; print what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        wrong = int(build(site) != 0)
        for problem in (*dead_links(site), *faults(site, *sys.argv[1:2])):
            print(problem)
            wrong += 1
    print(f"{wrong} problems" if wrong else "the site is sound")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
