"""A chat beside open pages: its tokens a second alone, and while readers walk over tokens in four of them.

    python -m scripts.served.open_pages [--pages 4] [--turns 3] [--tokens 96] [--pause 1.0]

SmolLM2 in this process. Each page has asked for an answer of its own, and its reader goes to the next token
every ``pause`` seconds, in turns through attention, the lenses and why; a client outside of them streams a
chat. Alone and beside them take turns, and the ratio of each pair counts, so that it holds on a busy machine.
The last line tells when each page had painted first. Exits with 1 where the median ratio is below 0.75.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from playwright.sync_api import Page, sync_playwright

from scripts.served.edited_answers import rate
from tests import serving

LEAST = 0.75  # of its speed alone
PANELS = ("Attention", "Lens", "Why")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]
QUESTIONS = ("What is gravity?", "Why is the sky blue?", "Name four seas.", "What do bees eat?")


def opened(browser: Any, url: str, question: str) -> tuple[Page, float]:
    """A page whose answer is there, its first token open; and the milliseconds to its first paint."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(url)
    tab.locator(".composer").wait_for()
    paint = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    tab.get_by_label("Message", exact=True).fill(question)
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="Copy as curl").wait_for(timeout=120_000)
    tab.locator(".answer .t").first.click()
    return tab, paint


def look(tab: Page, step: int) -> None:
    """A reader's next look: another token, and from time to time another panel."""
    if step % 4 == 0:
        tab.get_by_role("tab", name=PANELS[step // 4 % len(PANELS)]).click()
    tab.locator(".answer").first.press("ArrowRight")


def main() -> int:
    """Print the speeds of each turn, and what they come to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--pause", type=float, default=1.0)
    asked = parser.parse_args()
    ratios: list[float] = []
    with (
        serving.running(serving.model(None)) as server,
        sync_playwright() as playwright,
        ThreadPoolExecutor(1) as pool,
    ):
        found = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        pages = [opened(browser, server.url, QUESTIONS[n % len(QUESTIONS)]) for n in range(asked.pages)]
        steps = itertools.count()
        for turn in range(asked.turns):
            alone = pool.submit(rate, server, asked.tokens, [], 2 * turn).result()
            chat = pool.submit(rate, server, asked.tokens, [], 2 * turn + 1)
            looks = 0
            while not chat.done():
                step = next(steps)
                look(pages[step % len(pages)][0], step // len(pages))
                pages[0][0].wait_for_timeout(1000 * asked.pause / len(pages))
                looks += 1
            beside = chat.result()
            ratios.append(beside / alone)
            print(
                f"alone {alone:6.1f} tokens/s, beside {len(pages)} pages and {looks} looks {beside:6.1f} "
                f"({ratios[-1]:.2f})",
                flush=True,
            )
        browser.close()
    print(f"median ratio {statistics.median(ratios):.2f}; first paints after", end=" ")
    print(", ".join(f"{paint:.0f}" for _, paint in pages), "ms")
    return int(statistics.median(ratios) < LEAST)


if __name__ == "__main__":
    sys.exit(main())
