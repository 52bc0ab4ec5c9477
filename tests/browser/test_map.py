"""The map of words in a real browser: drawn, searched, zoomed, asked; words stay text; 10,000 are smooth."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway.embedding import map as maps
from cutaway.embedding.vectors import Vectors

pytest.importorskip("plotly")
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
        file.write_text(maps.page(vectors(count), "a <b>name</b>", count), encoding="utf-8")
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


def ranges(tab: Any) -> list[float]:
    return tab.evaluate("[...map._fullLayout.xaxis.range, ...map._fullLayout.yaxis.range]")


def test_a_word_is_found_and_its_neighbours_are_the_tables(shown: Any) -> None:
    tab, table = shown(400), vectors(400)
    before = ranges(tab)
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
    zoomed = ranges(tab)
    assert zoomed[1] - zoomed[0] < before[1] - before[0]
    tab.locator("#near button").nth(2).click()
    assert tab.locator("#chosen").inner_text() != "word37"
    tab.get_by_role("button", name="Whole map").click()
    assert ranges(tab) == pytest.approx(before, rel=1e-3)
    tab.get_by_label("Find a word").fill("absent")
    tab.keyboard.press("Enter")
    assert "is not on this map" in tab.locator("#message").inner_text()
    tab.get_by_label("Find a word").fill("king")
    tab.keyboard.press("Enter")
    assert tab.locator("#chosen").inner_text() == "␣king"


def test_a_click_on_a_point_asks_it_and_the_wheel_zooms(shown: Any) -> None:
    tab = shown(60)
    place = tab.evaluate(
        """() => {
            const at = map._fullLayout, box = map.getBoundingClientRect();
            const x = at.xaxis.d2p(facts.x[20]) + at.xaxis._offset + box.left;
            return [x, at.yaxis.d2p(facts.y[20]) + at.yaxis._offset + box.top];
        }"""
    )
    tab.mouse.move(*place)
    tab.wait_for_timeout(200)
    tab.mouse.click(*place)
    tab.wait_for_function("document.getElementById('near').children.length === 10")
    assert tab.locator("#chosen").inner_text() in {word.replace(" ", "␣") for word in vectors(60).words}
    before = ranges(tab)
    tab.mouse.wheel(0, -300)
    tab.wait_for_timeout(400)
    after = ranges(tab)
    assert after[1] - after[0] < before[1] - before[0]


def test_what_a_word_spells_is_never_obeyed(shown: Any) -> None:
    tab = shown(60)
    assert tab.locator("#owned").count() == 0 and tab.locator("h1").inner_text() == "a <b>name</b>"
    for word in HOSTILE[:3]:
        tab.get_by_label("Find a word").fill(word)
        tab.keyboard.press("Enter")
        assert tab.locator("#chosen").inner_text() == word.replace(" ", "␣")
    assert tab.locator("#owned, #near img").count() == 0


def test_ten_thousand_points_are_one_canvas(shown: Any) -> None:
    """What makes it smooth: the points are pixels of WebGL and no elements of the page."""
    tab = shown(10_000)
    assert tab.evaluate("map.data[0].type") == "scattergl" and tab.evaluate("map.data[0].x.length") == 10_000
    assert tab.locator("#map canvas").count() >= 1
    elements = tab.evaluate("document.querySelectorAll('*').length")
    tab.get_by_label("Find a word").fill("word9000")
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="Whole map").click()
    assert elements < 1500 and tab.evaluate("document.querySelectorAll('*').length") < 1600
