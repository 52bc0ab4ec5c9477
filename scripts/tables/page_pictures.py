"""The pictures of the server's page in docs/, from a server that you started; or all its views to look at.

    cutaway serve smollm2 --features transcoders --runs runs/laptop
    python -m scripts.tables.page_pictures http://127.0.0.1:8000 [--only why,tree] [--sheet folder]

--sheet photographs each view wide and on a phone, in light and dark, into a folder, and prints what can be
seen to be wrong, as `python -m scripts.check.contact_sheet` does. It wants Chromium, Playwright and Pillow.
"""

from __future__ import annotations

import argparse
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.check.contact_sheet import FAULTS, SIZES
from tests.browser.conftest import FLAGS, NAMES

DOCS = Path(__file__).parents[2] / "docs"
MINUTES = 5
QUESTION, SEED, TOKENS, OPENED = "What is gravity?", 1, 48, 8
OPENED_OF = {"Lens": 11}  # tokens of panels that another one shows better
LEARNED = "She was very happy to see him."
MEASURED = """text => document.querySelector(".read")?.textContent === text
    && !document.querySelector(".training [role=status]").textContent"""
CHAPTERS = ("vectors", "qkv", "positions", "mechanisms", "architecture", "plan", "sampler")
SENTENCE = "The%20capital%20of%20France%20is"


def answered(tab: Any) -> None:
    """An answer of the model, written once for all views of the chat."""
    tab.get_by_role("link", name="Chat").click()
    if tab.locator(".turns .answer").count():
        return
    tab.get_by_text("Settings, edits and colours").click()
    tab.get_by_label("seed").fill(str(SEED))
    tab.get_by_label("longest answer").fill(str(TOKENS))
    tab.get_by_text("Settings, edits and colours").click()
    tab.get_by_label("Message", exact=True).fill(QUESTION)
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="Copy as curl").last.wait_for()


def panel(name: str) -> Callable[[Any], None]:
    """A panel of an opened token."""

    def show(tab: Any) -> None:
        answered(tab)
        tab.locator(".answer").first.locator(".t").nth(OPENED_OF.get(name, OPENED)).click()
        tab.get_by_role("tab", name=name).click()
        tab.locator("#panel table").first.wait_for()
        tab.wait_for_function("() => !document.querySelector('#panel [role=status]')")
        if name == "Lens":  # every block, the last ones too: early ones are seldom meaningful
            tab.locator("#panel h3").first.evaluate("one => one.scrollIntoView()")

    return show


def card(tab: Any) -> None:
    """The card of a token's strongest feature."""
    panel("Features")(tab)
    tab.locator("#panel tbody button.link").last.click()
    tab.locator("#card").wait_for()


def edits(tab: Any) -> None:
    """The same seed with a head switched off."""
    panel("Attention")(tab)
    tab.get_by_role("button", name="Switch this head off").click()
    tab.get_by_text("What the edits change").wait_for()
    tab.get_by_role("button", name="Close").click()


def tree(tab: Any) -> None:
    """An answer that went on from another token, without the edits of the picture before."""
    undo = tab.get_by_role("button", name="Undo")
    if undo.is_visible():
        undo.click()
    panel("Alternatives")(tab)
    tab.get_by_role("button", name="Continue").nth(1).click()
    tab.wait_for_function("() => !/Stop/.test(document.querySelector('.composer button').textContent)")
    tab.get_by_role("button", name="Close").click()
    tab.get_by_role("button", name="Tree").last.click()
    tab.locator(".tree").wait_for()


def at(place: str, wait: str) -> Callable[[Any], None]:
    """A place by its address, once something is there."""

    def show(tab: Any) -> None:
        tab.evaluate("to => { location.hash = to; }", place)
        tab.locator(wait).first.wait_for()

    return show


def training(tab: Any) -> None:
    """The checkpoints of the longest run."""
    at("#training", ".run-name")(tab)
    tab.locator(".training button.link").last.click()
    tab.get_by_label("sentence", exact=True).fill(LEARNED)
    tab.get_by_role("button", name="Measure").click()
    tab.wait_for_function(MEASURED, arg=LEARNED)
    tab.locator("#checkpoints-title").evaluate("one => one.scrollIntoView()")


def safety(tab: Any) -> None:
    """A line that a tool returned, and the heads that read it."""
    at("#safety", ".conversation")(tab)
    tab.locator(".safety form button[type=submit]").click()
    tab.locator(".safety h3").get_by_text("Causal check").wait_for()
    tab.locator(".conversation").evaluate("one => one.scrollIntoView()")


def tour(tab: Any) -> None:
    """The first step of a tour."""
    at("#tours", ".tour-list")(tab)
    tab.locator(".tour-list button").nth(5).click()
    tab.locator(".tour-say").wait_for()
    tab.locator(".chapter :is(table, canvas)").first.wait_for()


def share(tab: Any) -> None:
    """What shares a view, over it."""
    answered(tab)
    tab.locator(".share summary").click()
    tab.locator(".share-list li").first.wait_for()


VIEWS: dict[str, Callable[[Any], None]] = {
    "chat": panel("Alternatives"),
    "attention": panel("Attention"),
    "lens": panel("Lens"),
    "features": card,
    "why": panel("Why"),
    "edits": edits,
    "tree": tree,
    "share": share,
    "inside": at(f"#inside/{SENTENCE}", "#views section"),
    "how": at(f"#how/tokenizers/{SENTENCE}", ".chapter :is(table, canvas, .diagram)"),
    **{one: at(f"#how/{one}/{SENTENCE}", ".chapter :is(table, canvas, .diagram)") for one in CHAPTERS},
    "training": training,
    "safety": safety,
    "tours": at("#tours", ".tour-list"),
    "tour": tour,
}
PICTURES = ("attention", "chat", "edits", "features", "how", "lens", "safety", "tour", "training", "tree")
PICTURES += ("why",)
HEIGHTS = {"lens": 1450, "training": 905}  # of pictures in docs/ that show more


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[*VIEWS])
    parser.add_argument("--sheet", type=Path)
    asked = parser.parse_args()
    from playwright.sync_api import sync_playwright

    looks = [(1280, 820, "light")]
    if asked.sheet:
        asked.sheet.mkdir(parents=True, exist_ok=True)
        looks = [(*size, scheme) for size in SIZES.values() for scheme in ("light", "dark")]
    names = [name for name in asked.only if asked.sheet or name in PICTURES]
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, NAMES)), None)
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        for width, height, scheme in looks:
            tab = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
            )
            tab.set_default_timeout(MINUTES * 60_000)
            tab.on("console", lambda line: print("console:", line.text))
            tab.on("pageerror", lambda error: print("error:", error))
            tab.goto(asked.url)
            for name in names:
                tall = height if asked.sheet else HEIGHTS.get(name, height)
                tab.set_viewport_size({"width": width, "height": tall})
                VIEWS[name](tab)
                tab.wait_for_load_state("networkidle")
                target = DOCS / f"page-{name}.png"
                if asked.sheet:
                    target = asked.sheet / f"{name}-{scheme}-{width}.png"
                    print(
                        *(f"{name}, {scheme}, {width} pixels: {one}" for one in tab.evaluate(FAULTS)),
                        sep="\n",
                    )
                save(tab.screenshot(), target)
            tab.close()
        browser.close()


def save(picture: bytes, target: Path) -> None:
    """A picture in 256 colours, which are all that a page has but for smooth edges."""
    from PIL import Image

    Image.open(io.BytesIO(picture)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        target, optimize=True
    )


if __name__ == "__main__":
    main()
