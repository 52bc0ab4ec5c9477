"""The map of words in a real browser: drawn, searched, zoomed, asked; words stay text; 10,000 are smooth."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway.embedding import map_page
from cutaway.embedding.vectors import Vectors
from tests.browser.conftest import frames

HOSTILE = ["</script><b id=owned>", "<img src=x onerror=alert(1)>", "{{data}}", " king", "a\nb", "\u202ex"]


def vectors(count: int) -> Vectors:
    words = HOSTILE + [f"word{i}" for i in range(count - len(HOSTILE))]
    return Vectors(words, np.random.default_rng(0).standard_normal((count, 24)).astype(np.float32))


@pytest.fixture
def shown(browser: Any, tmp_path: Path) -> Iterator[Any]:
    problems: list[str] = []
    contexts: list[Any] = []

    def show(count: int) -> Any:
        file = tmp_path / "map.html"
        file.write_text(map_page.page(vectors(count), "a <b>name</b>", count), encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": 1200, "height": 800}))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(90_000)
        tab.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda asked: None if asked.url == file.as_uri() else _asked(asked.url, problems))
        tab.goto(file.as_uri())
        tab.wait_for_selector("body[data-ready=yes]")
        return tab

    yield show
    for context in contexts:
        context.close()
    assert not problems


def _asked(url: str, problems: list[str]) -> None:
    if not url.startswith(("data:", "blob:")):
        problems.append(url)


def shown_map(tab: Any) -> bytes:
    """The pixels of the map."""
    frames(tab)
    return tab.locator("#map").screenshot()


def test_a_word_is_found_and_its_neighbours_are_the_tables(shown: Any) -> None:
    tab, table = shown(400), vectors(400)
    before = shown_map(tab)
    tab.get_by_label("Find a word").fill("word37")
    tab.get_by_role("button", name="Show").click()
    assert tab.locator("#chosen").inner_text() == "word37"
    cosines = list(map(float, tab.locator("#near span").all_inner_texts()))
    expected = table.nearest("word37", 10)
    assert cosines == pytest.approx([one.cosine for one in expected], abs=6e-4)
    named = tab.locator("#near button").all_inner_texts()
    assert [word for word in named if word.startswith("word")] == [
        one.word for one in expected if one.word.startswith("word")
    ]
    assert shown_map(tab) != before
    tab.locator("#near button").nth(2).click()
    assert tab.locator("#chosen").inner_text() != "word37"
    tab.get_by_label("Find a word").fill("absent")
    tab.keyboard.press("Enter")
    assert "is not on this map" in tab.locator("#message").inner_text()
    tab.get_by_label("Find a word").fill("king")
    tab.keyboard.press("Enter")
    assert tab.locator("#chosen").inner_text() == "␣king"


def test_hands_move_zoom_and_choose(shown: Any) -> None:
    tab = shown(60)
    box = tab.locator("#map").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    whole = shown_map(tab)
    tab.mouse.move(*middle)
    tab.mouse.wheel(0, -300)
    zoomed = shown_map(tab)
    assert zoomed != whole
    tab.mouse.down()
    tab.mouse.move(middle[0] + 60, middle[1] + 30, steps=3)
    tab.mouse.up()
    assert shown_map(tab) != zoomed and tab.locator("#near li").count() == 0, "a drag chooses nothing"
    tab.get_by_role("button", name="Whole map").click()
    tab.locator("#map").focus()
    tab.locator("h1").hover()
    alone = shown_map(tab)
    for key, changes in (("ArrowLeft", True), ("+", True), ("0", False)):
        tab.keyboard.press(key)
        assert (shown_map(tab) != alone) is changes, key


def test_a_click_on_a_point_chooses_it(shown: Any) -> None:
    tab = shown(60)
    box = tab.locator("#map").bounding_box()
    for x in range(60, int(box["width"]), 12):  # along the middle until a word is under the pointer
        tab.mouse.move(box["x"] + x, box["y"] + box["height"] / 2)
        if name := tab.locator("#hovered").inner_text():
            break
    tab.mouse.click(box["x"] + x, box["y"] + box["height"] / 2)
    assert tab.locator("#chosen").inner_text() == name and tab.locator("#near li").count() == 10


def test_what_a_word_spells_is_never_obeyed(shown: Any) -> None:
    tab = shown(60)
    assert tab.locator("#owned").count() == 0 and tab.locator("h1").inner_text() == "a <b>name</b>"
    for word in HOSTILE[:3]:
        tab.get_by_label("Find a word").fill(word)
        tab.keyboard.press("Enter")
        assert tab.locator("#chosen").inner_text() == word
    assert tab.locator("#owned, #near img").count() == 0


def test_ten_thousand_points_are_one_canvas(shown: Any) -> None:
    """What makes it smooth: the points are pixels and no elements of the page."""
    tab = shown(10_000)
    assert tab.locator("#map canvas").count() == 1
    tab.get_by_label("Find a word").fill("word9000")
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.querySelectorAll('*').length") < 150
