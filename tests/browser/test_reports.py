"""Charts of reports in a real browser: drawn from their data, read by mouse and keyboard, distinguished
without colour, as tables and as CSV, in both themes and on a phone.
"""

import itertools
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cutaway.page import report
from cutaway.page.charts import Axis, Bar, Bars, Heat, Labels, Plot, Series, Table
from tests import inputs
from tests.browser.conftest import frames

HOSTILE = "</script><b id=owned>"
LOSSES = [4.0, 2.5, 2.0, float("nan"), 1.5]
PLOT = Plot(
    "Loss by step",
    Axis("step"),
    Axis("loss", "nats per token"),
    [Series("mha", [0, 10, 20, 30, 40], LOSSES), Series(HOSTILE, [0, 20, 40], [4.1, 3.0, 2.9])],
    marks=[("chance", 4.2)],
)
POINTS = Plot(
    "Score by state",
    Axis("state", log=True),
    Axis("score", low=0, high=1),
    [
        Series(n, [x], [y], [y - 0.05], [y + 0.05], [n], line=False, points=True)
        for n, x, y in (("a", 1e3, 0.4), ("b", 1e6, 0.9))
    ],
)
BARS = Bars(
    "Attacks",
    Axis("rate", low=0, high=1),
    "arm",
    ["one", "two"],
    [Bar("", [0.5, 0.25], [0.4, 0.1], [0.6, 0.3])],
    dots=True,
)
LONG = "a-long-name-" * 8
WIDTHS = Bars("Bytes", Axis("bytes"), "text", [LONG], [Bar("x", [2.0]), Bar(LONG, [4.0])])
HEAT = Heat(
    "Heads",
    Labels("layer", ["0", "1"]),
    Labels("head", ["0", "1", "2"]),
    [[1.0, -2.0, 0.25], [0.5, 0.0, -0.5]],
    "change",
)
TABLE = Table("Sizes", ["name", "tokens"], [["a, b", 12345.0], [HOSTILE, None]])
PARTS = (
    report.Text("A **report**.\n\n| a | b |\n|---|---:|\n| x | 1 |"),
    report.Grid([PLOT, POINTS, BARS, WIDTHS, HEAT]),
    TABLE,
)

Opened = Callable[..., Any]


@pytest.fixture
def reported(browser: Any, tmp_path: Path) -> Iterator[Opened]:
    problems: list[str] = []
    contexts: list[Any] = []

    def show(*parts: report.Part, width: int = 1280, **context: Any) -> Any:
        file = tmp_path / "report.html"
        file.write_text(report.html(HOSTILE, parts or PARTS), encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **context))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(10_000)
        tab.on(
            "console", lambda line: problems.append(line.text) if line.type in ("error", "warning") else None
        )
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda asked: None if asked.url == file.as_uri() else problems.append(asked.url))
        tab.goto(file.as_uri())
        tab.wait_for_selector("body[data-ready=yes]")
        frames(tab)
        return tab

    yield show
    for context in contexts:
        context.close()
    assert not problems


def chart(tab: Any, title: str) -> Any:
    return tab.get_by_role("figure", name=title, exact=True)


def points_of(tab: Any, title: str) -> list[list[float]]:
    """The corners of a chart's first line, in pixels."""
    path = chart(tab, title).locator("path.line").first.get_attribute("d")
    return [list(map(float, one.split())) for one in path.replace("L", "M").split("M") if one]


def test_a_line_is_where_its_numbers_are(reported: Opened) -> None:
    tab = reported()
    corners = points_of(tab, "Loss by step")
    assert len(corners) == 4, "what is no number is a gap in the data, and no point"
    known = [value for value in LOSSES if value == value]
    rise = (corners[-1][1] - corners[0][1]) / (known[0] - known[-1])
    for (x, y), step, value in zip(corners, (0, 10, 20, 40), known, strict=True):
        assert y == pytest.approx(corners[0][1] + (known[0] - value) * rise, abs=0.2)
        assert x == pytest.approx(corners[0][0] + step / 40 * (corners[-1][0] - corners[0][0]), abs=0.2)
    text = chart(tab, "Loss by step").locator(".plot svg").text_content()
    assert "loss (nats per token)" in text and "step" in text and "chance" in text and HOSTILE[:4] in text


def test_the_cursor_reads_values_by_mouse_and_by_keyboard(reported: Opened) -> None:
    tab = reported()
    plot = chart(tab, "Loss by step")
    box = plot.locator(".plot")
    x, y = points_of(tab, "Loss by step")[1]
    box.hover(position={"x": x + 1, "y": y})
    assert plot.locator(".readout").inner_text() == "step 10: mha 2.5"
    box.focus()
    for key, says in (
        ("Home", "step 0: mha 4 · </script><b id=owned> 4.1"),
        ("ArrowRight", "step 10: mha 2.5"),
        ("End", "step 40"),
    ):
        tab.keyboard.press(key)
        assert plot.locator(".readout").inner_text().startswith(says)
    for title, says in (
        ("Score by state", "state 1,000: a, a 0.4 (0.35 to 0.45)"),
        ("Attacks", "one: rate 0.5 (0.4 to 0.6)"),
    ):
        chart(tab, title).locator(".plot").focus()
        tab.keyboard.press("Home")
        assert chart(tab, title).locator(".readout").inner_text() == says
    heads = chart(tab, "Heads")
    heads.locator(".heat").focus()
    tab.keyboard.press("ArrowRight")
    assert heads.locator(".readout").first.inner_text() == "layer 0, head 1: change −2"
    assert heads.locator(".ramp-numbers").inner_text().split() == ["−2", "0", "2"]


def test_intervals_and_bars_are_drawn_to_scale(reported: Opened) -> None:
    tab = reported()
    ends = (
        chart(tab, "Attacks")
        .locator("path.whisker")
        .evaluate_all("all => all.map(one => one.getBBox().width)")
    )
    assert ends == pytest.approx([ends[0], ends[0]], abs=1.5), "both are 0.2 wide"
    widths = (
        chart(tab, "Bytes").locator(".bar-mark").evaluate_all("all => all.map(one => one.getBBox().width)")
    )
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01)
    assert chart(tab, "Bytes").locator(".value").all_text_contents() == ["2", "4"]
    shapes = (
        chart(tab, "Score by state")
        .locator("svg path.point")
        .evaluate_all("all => all.map(one => one.getAttribute('d'))")
    )
    assert len(set(shapes)) == 2, "series differ in more than colour"


def test_every_chart_is_a_table_and_csv(reported: Opened) -> None:
    tab = reported(permissions=["clipboard-read", "clipboard-write"])
    plot = chart(tab, "Loss by step")
    plot.get_by_role("button", name="Table").click()
    assert plot.locator("tbody tr").nth(3).all_inner_texts() == ["mha\t30\t–"]
    chart(tab, "Sizes").get_by_role("button", name="Copy CSV").click()
    chart(tab, "Sizes").get_by_text("Copied").wait_for()
    copied = tab.evaluate("navigator.clipboard.readText()").replace("\r\n", "\n")
    assert copied == f'name,tokens\n"a, b",12345\n{HOSTILE},\n'
    chart(tab, "Attacks").get_by_role("button", name="Copy CSV").click()
    chart(tab, "Attacks").get_by_text("Copied").wait_for()
    copied = tab.evaluate("navigator.clipboard.readText()").replace("\r\n", "\n")
    assert copied == "arm,rate,low,high\none,0.5,0.4,0.6\ntwo,0.25,0.1,0.3\n"


def test_a_chart_is_saved_as_svg_and_png(reported: Opened, tmp_path: Path) -> None:
    tab = reported()
    for title, kind in (("Loss by step", "SVG"), ("Loss by step", "PNG"), ("Score by state", "PNG")):
        with tab.expect_download() as saved:
            chart(tab, title).get_by_role("button", name=f"Save {title} as {kind}").click()
        saved.value.save_as(tmp_path / "picture")
        content = (tmp_path / "picture").read_bytes()
        if kind == "SVG":
            root = ElementTree.fromstring(content)
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert title in "".join(root.itertext()) and root.findall(".//{*}path")
            assert "var(" not in content.decode(), "its colours are its own"
        else:
            assert content.startswith(b"\x89PNG") and len(content) > 2_000


def test_a_long_line_keeps_its_extremes(reported: Opened) -> None:
    values = [1.0] * 30_000
    values[12_345] = 9.0
    tab = reported(Plot("Long", Axis("step"), Axis("loss"), [Series("loss", list(range(30_000)), values)]))
    corners = points_of(tab, "Long")
    assert len(corners) < 6_000 and min(y for _, y in corners) < corners[0][1] - 100


def test_the_theme_changes_by_its_button_and_text_stays_text(reported: Opened) -> None:
    tab = reported(color_scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(colour)
    tab.get_by_role("button", name="Use dark colours").click()
    assert tab.evaluate(colour) != light
    assert tab.locator("#owned").count() == 0 and tab.locator("h1").inner_text() == HOSTILE


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_a_report_is_accessible_and_fits(reported: Opened, width: int, scheme: str) -> None:
    tab = reported(width=width, color_scheme=scheme, reduced_motion="reduce")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    outside = """all => all.filter(one => {
        const box = one.getBoundingClientRect();
        return box.width && (box.left < -1 || box.right > innerWidth + 1);
    }).map(one => one.textContent)"""
    assert tab.locator("svg text").evaluate_all(outside) == []
    tab.evaluate(inputs.path("axe-core").read_text(encoding="utf-8"))
    found = tab.evaluate("axe.run()")["violations"]
    assert not [
        (one["id"], one["nodes"][0]["html"][:160])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def test_a_mark_beyond_the_values_is_within_the_chart(reported: Opened) -> None:
    apart = Bars(
        "Apart", Axis("Elo"), "models", ["a − b"], [Bar("", [85.0], [20.0], [150.0])],
        dots=True, marks=[("equal", 0.0)],
    )  # fmt: skip
    tab = reported(apart, width=400)
    box = tab.locator("svg text", has_text="equal").bounding_box()
    assert box["x"] >= 0


def test_a_label_covers_no_point_and_no_other_label(reported: Opened) -> None:
    x, words = [0.0, 0.5, 0.54, 1.0], ["first", "to its left", "to its right", "last"]
    cloud = Series("words", x, [0.5] * 4, labels=words, line=False, points=True)
    tab = reported(Plot("Cloud", Axis("x", low=0, high=1), Axis("y", low=0, high=1), [cloud]))
    assert tab.locator("svg .label").all_text_contents() == words
    sides = """all => all.map(one => one.getBoundingClientRect()).map(({ left, right }) => [left, right])"""
    found = sorted(tab.locator("svg :is(.label, .point)").evaluate_all(sides))
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(found)), found


def test_lines_at_one_x_are_drawn_and_long_names_are_whole(reported: Opened) -> None:
    names = [f"a classifier of long texts, families {which}" for which in ("it learnt", "held out")]
    lines = [Series(name, [0.0, 0.0], [0.0, 1.0], points=True) for name in names]
    tab = reported(Plot("At one x", Axis("false positives"), Axis("caught"), lines))
    assert tab.locator(".legend li").all_inner_texts() == names
    assert not tab.locator(".legend.unseen").count()
    middle = "all => all.map(one => one.getBoundingClientRect().left)"
    assert min(tab.locator("svg .point").evaluate_all(middle)) > 100
