"""How smoothly the page follows the pointer: frame times over two seconds of hovering, 200 tokens on the
real model.

    python -m scripts.check.page_frames [--budget 17]

Prints the median and the slowest of 100 frames; exits with 1 where the median is over the budget
(milliseconds). It wants an idle machine, Chromium and Playwright.
"""

import argparse
import itertools
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

import cutaway
from cutaway.inspect import page_data
from cutaway.inspect.page import page
from cutaway.inspect.trace import Trace

TOKENS = 200
TEXT = (
    "The quick brown fox jumps over the lazy dog, and the lazy dog sleeps on in the sun by the river. " * 12
)
RECORD = """() => new Promise(done => {
  const times = [];
  const go = now => { times.push(now); now - times[0] < 2000 ? requestAnimationFrame(go) : done(times); };
  requestAnimationFrame(go);
})"""
# The pointer's way is made inside the page, so that no message between two processes is timed.
SWEEP = """([selector, steps]) => {
  const box = document.querySelector(selector);
  const bounds = box.getBoundingClientRect();
  const all = [...box.querySelectorAll('[data-t]')];
  let at = 0;
  const move = () => {
    at++;
    if (all.length) all[at % all.length].dispatchEvent(new PointerEvent('pointerover', { bubbles: true }));
    else box.dispatchEvent(new PointerEvent('pointermove', { bubbles: true,
      clientX: bounds.left + (0.15 + 0.8 * Math.abs(Math.sin(at / 40))) * bounds.width,
      clientY: bounds.top + (0.15 + 0.8 * Math.abs(Math.sin(at / 23))) * bounds.height }));
    if (at < steps) requestAnimationFrame(move);
  };
  requestAnimationFrame(move);
}"""


def main() -> int:
    """Times the strip, the small maps and the large one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=17.0)
    budget = parser.parse_args().budget
    lm = cutaway.load("smollm2", engine="pytorch")
    ids = lm.ids(TEXT)[:TOKENS]
    document = page(
        [page_data.build(Trace.of(lm.model, lm.tokenizer, ids, page_data.names(lm.model)), "smollm2")]
    )
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "page.html"
        file.write_text(document, encoding="utf-8")
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=["--headless", "--no-sandbox", "--disable-gpu"],
        )
        tab = browser.new_page(viewport={"width": 1360, "height": 900})
        tab.goto(file.as_uri())
        tab.wait_for_selector("section")
        parts = {"strip": "#strip .chips", "every head": "#attention .heat", "lens": "#lens .heat"}
        medians = [_timed(tab, name, selector) for name, selector in parts.items()]
        browser.close()
    return int(max(medians) > budget)


def _timed(tab: Page, name: str, selector: str) -> float:
    tab.locator(selector).first.scroll_into_view_if_needed()
    tab.wait_for_timeout(500)
    tab.evaluate(SWEEP, [selector, 200])
    times = tab.evaluate(RECORD)
    deltas = sorted(after - before for before, after in itertools.pairwise(times))
    median, slow = statistics.median(deltas), deltas[int(0.95 * len(deltas))]
    print(f"{name:<12} {len(deltas)} frames, median {median:.1f} ms, 95% under {slow:.1f} ms")
    return median


if __name__ == "__main__":
    sys.exit(main())
