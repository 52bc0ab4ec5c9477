"""The page's modules and style: modules import what others export, and colours can be distinguished."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import cutaway.page
from cutaway.page import bundle, report
from cutaway.page.charts import Axis, Plot, Series, spec

ROOT = Path(cutaway.page.__file__).parent
MODULES = sorted(str(file.relative_to(ROOT)) for file in ROOT.rglob("*.js"))
SERIES = [f"--series-{n}" for n in range(1, 7)]
TEXT = ("--ink", "--quiet", "--accent", "--good", "--bad", "--edit")
# Machado, Oliveira and Fernandes (2009): what is seen without one kind of cone, in linear RGB.
SIGHT = {
    "all cones": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_what_others_export_and_writes_no_markup(name: str) -> None:
    text = bundle.read_asset(name)
    assert len(re.findall(r"^import ", text, re.M)) == len(bundle.IMPORT.findall(text)), "one form of import"
    assert len(re.findall(r"^export ", text, re.M)) == len(bundle.EXPORT.findall(text)), "one form of export"
    for names, path in bundle.IMPORT.findall(text):
        given = {
            one[1]
            for one in bundle.EXPORT.finditer((ROOT / name).parent.joinpath(path).resolve().read_text())
        }
        assert set(names.replace(",", " ").split()) <= given, path
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|</script", text
    )


def test_modules_that_import_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"a.js": 'import { b } from "./b.js";\n', "b.js": 'import { a } from "./a.js";\n'}
    monkeypatch.setattr(bundle, "read_asset", texts.__getitem__)
    with pytest.raises(ValueError, match=r"a\.js -> b\.js -> a\.js"):
        bundle.script("a.js")


def test_numbers_that_json_has_not_are_gaps() -> None:
    line = Series("a", [1, 2], [float("nan"), float("inf")])
    assert spec(Plot("t", Axis("x"), Axis("y"), [line]))["series"][0]["y"] == [None, None]


def test_markdown_of_a_report_has_no_html_or_style_of_its_own() -> None:
    document = report.html("t", [report.Text("<i id=owned>\n\n| a |\n|---:|\n| <b> |")])
    assert "<i id" not in document and "<b>" not in document and 'class="number"' in document
    assert "style=" not in document


def themes() -> dict[str, dict[str, np.ndarray]]:
    """The colours of each theme, in linear RGB."""
    pairs = re.findall(r"(--[\w-]+): light-dark\((#\w{6}), (#\w{6})\);", bundle.read_asset("style.css"))
    return {
        theme: {name: linear(both[i]) for name, *both in pairs} for i, theme in enumerate(("light", "dark"))
    }


def linear(hex_: str) -> np.ndarray:
    c = np.array([int(hex_[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(a: np.ndarray, b: np.ndarray) -> float:
    """WCAG's ratio."""
    low, high = sorted(float(c @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def oklab(c: np.ndarray) -> np.ndarray:
    cones = [
        [0.4122215, 0.5363325, 0.0514460],
        [0.2119035, 0.6806995, 0.1073970],
        [0.0883025, 0.2817188, 0.6299787],
    ]
    out = [
        [0.2104543, 0.7936178, -0.0040720],
        [1.9779985, -2.4285922, 0.4505937],
        [0.0259040, 0.7827718, -0.8086758],
    ]
    return np.cbrt(np.clip(c, 0, 1) @ np.transpose(cones)) @ np.transpose(out)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_and_marks_stand_out_from_the_paper(theme: str) -> None:
    colours = themes()[theme]
    for name in TEXT:
        assert contrast(colours[name], colours["--paper"]) >= 4.5, name
        assert contrast(colours[name], colours["--raised"]) >= 4.5, name
    for name in (*SERIES, "--heat", "--cool"):
        assert contrast(colours[name], colours["--paper"]) >= 3, name


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everyone_can_distinguish_the_series(theme: str, sight: str) -> None:
    seen = {name: oklab(themes()[theme][name] @ np.transpose(SIGHT[sight])) for name in SERIES}
    apart = {
        pair: float(np.linalg.norm(seen[pair[0]] - seen[pair[1]]))
        for pair in itertools.combinations(SERIES, 2)
    }
    assert min(apart.values()) > 0.06, min(apart, key=apart.__getitem__)
