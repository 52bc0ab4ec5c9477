"""Charts and diagrams as SVG: well-formed, whole, in light and dark; and the figures of the course."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from cutaway.errors import UserError
from cutaway.inspect import block_diagram
from cutaway.model.config import Decoder
from cutaway.page.charts import Axis, Bar, Bars, Chart, Heat, Labels, Plot, Series, Table
from cutaway.page.svg import diagrams, render, scales
from scripts.tables import figures
from tests.small import SHAPES

HOSTILE = '</text><script>alert(1)</script>&"\x1b[31m\x00'
LINE = Series("a", [0, 1, 2], [1.0, math.nan, 3.0], low=[0.5, 0.5, 2.5], high=[1.5, 1.5, 3.5])
CHARTS: dict[str, Chart] = {
    "plot": Plot(HOSTILE, Axis("x"), Axis("y", HOSTILE), [LINE], marks=[("chance", 2.0)], note=HOSTILE),
    "logarithmic": Plot(
        "p", Axis("x", log=True), Axis("y", log=True), [Series("a", [0, 1, 100], [1e-9, 1, 2])]
    ),
    "points": Plot(
        "p", Axis("x"), Axis("y"), [Series("a", [1], [1], labels=[HOSTILE], points=True, line=False)]
    ),
    "empty": Plot("p", Axis("x"), Axis("y"), []),
    "bars": Bars("b", Axis("x"), "g", [HOSTILE, "two"], [Bar("a", [1, None], low=[0, None], high=[2, None])]),
    "dots": Bars("b", Axis("x", log=True), "g", ["one"], [Bar("a", [3]), Bar("b", [0])], dots=True),
    "heat": Heat("h", Labels("r", [HOSTILE]), Labels("c", ["a", "b"]), [[-1.0, math.inf]], "v"),
}


def texts(made: str) -> list[str]:
    return ["".join(one.itertext()) for one in ET.fromstring(made).iter() if one.tag.endswith("text")]


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_one_well_formed_file(name: str) -> None:
    made = render.chart(CHARTS[name])
    assert made is not None and "NaN" not in made and "nan" not in made and "inf" not in made
    tree = ET.fromstring(made)
    assert not [one for one in tree.iter() if one.tag.endswith("script")]
    assert "prefers-color-scheme:dark" in made and 'role="img"' in made
    used = set(re.findall(r"[fs]-[a-z]+(?:-\d)?", " ".join(re.findall(r'class="([^"]*)"', made))))
    assert all(f".{one}{{" in made for one in used)


def test_a_table_is_no_drawing() -> None:
    assert render.chart(Table("t", ["a"], [["b"]])) is None


def test_numbers_are_written_as_the_page_writes_them() -> None:
    """The same as brief() of charts/scales.js: tests/browser has that one."""
    values = [0, 0.0123, math.pi, 12345, 1.5e6, 2.1e15, -3.5, 1e-5, None]
    shown = ["0", "0.0123", "3.142", "12,345", "1.5M", "2.1 × 10¹⁵", "−3.5", "10⁻⁵", "–"]
    assert [scales.brief(value) for value in values] == shown
    assert [text for _, text in scales.ticks(-1, 1, 4, False)] == ["−1.0", "−0.5", "0.0", "0.5", "1.0"]
    assert [text for _, text in scales.ticks(690, 693, 6, False, whole=True)] == ["690", "691", "692", "693"]
    assert [text for _, text in scales.ticks(1, 1000, 4, True)] == ["1", "10", "100", "1,000"]
    assert [text for _, text in scales.ticks(1e-7, 0.1, 4, True)] == ["10⁻⁷", "10⁻⁵", "10⁻³", "10⁻¹"]


def test_points_are_where_their_values_are() -> None:
    made = render.chart(Plot("p", Axis("x"), Axis("y"), [Series("a", [0, 10], [0, 5], points=True)]))
    (_, first), (_, second) = re.findall(r'<circle class="([^"]*)" cx="[\d.]+" cy="([\d.]+)"', made or "")
    zero, five = (float(re.findall(rf'y="([\d.]+)" text-anchor="end">{n}<', made or "")[0]) for n in (0, 5))
    assert (float(first), float(second)) == (
        pytest.approx(zero - 4, abs=0.2),
        pytest.approx(five - 4, abs=0.2),
    )


def test_a_run_of_one_step_is_drawn() -> None:
    made = render.chart(Plot("p", Axis("step"), Axis("loss"), [Series("a", [1], [5.0], points=True)]))
    assert made is not None and made.count("<circle") == 1


def test_each_merge_is_a_row() -> None:
    made = diagrams.merges("m", [list("lele"), ["le", "le"], ["lele"]])
    assert texts(made)[1:] == ["its characters", *"lele", "merge 1", "le", "le", "merge 2", "lele"]


def test_a_block_has_the_models_own_sizes() -> None:
    config = SHAPES["llama"]()
    shown = texts(block_diagram.drawn(config, "b"))
    weights = config.weights()
    out = math.prod(weights["blocks.0.attention.out.weight"])
    assert (
        f"{out:,}" in shown and "4 queries of 8, 2 keys and values" in shown and "32 → 48, then silu" in shown
    )
    with pytest.raises(UserError, match="layers are 0 to 2"):
        block_diagram.drawn(config, "b", 3)
    with pytest.raises(UserError, match="of a decoder alone"):
        block_diagram.drawn(Decoder(8, 8, 8, ()), "b")


def test_every_figure_is_shown_small_and_described() -> None:
    pages = "".join(
        page.read_text("utf-8") for page in sorted((figures.ROOT / "docs/course").glob("[1-9]-*.md"))
    )
    shown = re.findall(r"!\[([^\]]{20,})\]\(figures/([\w-]+)\.svg\)", pages)
    drawn = {path.stem: path.stat().st_size for path in figures.FOLDER.glob("*.svg")}
    assert sorted(name for _, name in shown) == sorted(drawn) == sorted(figures.FIGURES)
    assert max(drawn.values()) < 40_000
    assert {name[0] for name in drawn} == set("123456789")


@pytest.mark.parametrize("name", ["4-training", "7-sharing", "7-masks", "9-angles", "9-distance"])
def test_a_figure_that_asks_no_model_is_what_its_code_draws(name: str) -> None:
    made = figures.FIGURES[name]()
    text = made if isinstance(made, str) else render.chart(made)
    written = (figures.FOLDER / f"{name}.svg").read_text("utf-8")
    assert text == written, "run python -m scripts.tables.figures"
