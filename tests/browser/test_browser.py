"""The page in a real browser: every view by mouse and by keyboard, its numbers against the model's, nothing
on the console, nothing asked of a network, and no fault that axe-core calls serious.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cutaway.inspect import page_data
from cutaway.inspect.page import VIEWS
from cutaway.inspect.trace import Trace
from tests import inputs
from tests.browser.conftest import TEXT, frames
from tests.small import SHAPES, Bytes, decoder

Opened = Callable[..., Any]
LAST = len(TEXT) - 1


class Hostile(Bytes):
    """Its tokens spell markup, bidirectional overrides and control characters."""

    def token_bytes(self, id: int) -> bytes:
        spelt = {
            ord("t"): b"</script><b id=owned>",
            ord("h"): "\u202eolleh".encode(),
            ord("e"): b"\x00\x1b[31m{{data}}",
        }
        return spelt.get(id, super().token_bytes(id))


def chip(tab: Any, t: int) -> Any:
    return tab.locator(f"#strip .chip[data-t='{t}']")


def selected(tab: Any) -> int:
    return int(tab.locator("#strip .chip[aria-pressed]").first.get_attribute("data-t"))


def value(tab: Any, view: str, label: str) -> str:
    return tab.locator(f"#{view}").get_by_label(label, exact=True).first.input_value()


def heat(tab: Any, view: str, number: int = 0) -> Any:
    return tab.locator(f"#{view} .heat").nth(number)


def readout(tab: Any, view: str, number: int = 0) -> str:
    return tab.locator(f"#{view} .heat-whole .readout").nth(number).inner_text()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_model_is_shown(opened: Opened, pages: Any, shape: str) -> None:
    tab = opened(pages(shape))
    assert [part.get_attribute("id") for part in tab.locator("section").all()] == list(VIEWS)
    for view in VIEWS:
        tab.locator(f"#{view}").scroll_into_view_if_needed()
        assert len(tab.locator(f"#{view} .about").inner_text()) > 40
    assert tab.locator(".chip").count() == len(TEXT)


def test_hovering_a_token_lights_it_everywhere(opened: Opened, pages: Any) -> None:
    tab = opened(pages())
    chip(tab, 3).hover()
    frames(tab)
    lit = tab.eval_on_selector_all(".lit", "all => all.map(one => one.dataset.t)")
    assert len(lit) >= 3 and set(lit) == {"3"}
    drawn = "() => [...document.querySelectorAll('.layer canvas:last-child')].map(one => one.toDataURL())"
    with_it = tab.evaluate(drawn)
    tab.locator("h1").hover()
    frames(tab)
    assert tab.locator(".lit").count() == 0
    assert with_it != tab.evaluate(drawn), "the maps did not follow"


def test_each_view_by_mouse(opened: Opened, pages: Any) -> None:
    tab = opened(pages())
    chip(tab, 5).click()
    frames(tab)
    assert selected(tab) == 5
    assert tab.locator("#tokens .big").inner_text() == TEXT[5]
    assert TEXT[5] in tab.locator("#embeddings h3").inner_text()

    heat(tab, "embeddings").hover(position={"x": 200, "y": 50})
    assert re.search(r"number \d+: about", readout(tab, "embeddings"))

    heat(tab, "attention").click(position={"x": 44 + 5, "y": 26 + 5})
    frames(tab)
    assert value(tab, "attention", "layer") == "0" and value(tab, "score", "head") == "0"
    large = heat(tab, "attention", 1)
    side = (large.bounding_box()["width"] - 96) // len(TEXT)
    large.click(position={"x": 96 + side * 2.5, "y": 74 + side * 7.5})
    frames(tab)
    assert (selected(tab), value(tab, "score", "key")) == (7, "2")
    assert "Attention weight" in readout(tab, "attention", 1)

    heat(tab, "score").hover(position={"x": 100, "y": 60})
    assert "q × k[" in readout(tab, "score")

    before = tab.locator("#rope .stack p").last.inner_text()
    tab.locator("#rope .clocks button").nth(3).click()
    frames(tab)
    assert tab.locator("#rope .clocks button").nth(3).get_attribute("aria-pressed") == "true"
    assert tab.locator("#rope").get_by_text("Dimensions 3 and 7").is_visible() and before

    tab.locator("#mlp").get_by_label("layer").select_option("2")
    frames(tab)
    assert "Layer 2" in tab.locator("#mlp p").nth(1).inner_text()
    assert value(tab, "attention", "layer") == "2"

    heat(tab, "residual", 1).hover(position={"x": 50, "y": 30})
    assert re.search(r"Layer 0, head 0: contribution [+−]\d", readout(tab, "residual", 1))
    tab.locator("#residual td button").first.click()
    frames(tab)
    name = tab.locator("#residual td button").first.inner_text()
    assert f"{value(tab, 'score', 'layer')}.{value(tab, 'score', 'head')}" == name

    heat(tab, "lens").evaluate("box => { box.scrollLeft = 0; }")  # it had followed the chosen column
    frames(tab)
    heat(tab, "lens").click(position={"x": 100, "y": 28 + 22 * 2.5})
    frames(tab)
    assert selected(tab) == 0 and value(tab, "mlp", "layer") == "1"
    tab.locator("#lens summary").click()
    assert tab.locator("#lens tbody tr").count() == 4

    tab.locator("#next").get_by_label("temperature").fill("0")
    assert tab.locator("#next").get_by_text("One token can be sampled.").is_visible()
    tab.locator("#next button").click()
    first = tab.locator("#next tbody tr .word").first.inner_text()
    assert tab.locator("#next p .word").inner_text() == first


def test_each_view_by_keyboard(opened: Opened, pages: Any) -> None:
    tab = opened(pages())
    tab.keyboard.press("Tab")
    assert tab.locator(":focus").inner_text() == "Skip to the explanation"
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    assert tab.locator("html").get_attribute("data-theme") == "dark"
    tab.keyboard.press("Tab")
    assert tab.locator(":focus").get_attribute("data-t") == str(LAST)
    tab.keyboard.press("Home")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    frames(tab)
    assert selected(tab) == 1 and tab.locator("#tokens .lit").count() >= 1
    chip(tab, LAST).click()

    for view, number, text in (
        ("embeddings", 0, "number"),
        ("attention", 0, "Layer"), ("attention", 1, "Attention weight"), ("score", 0, "["),
        ("residual", 0, "output norm"), ("residual", 1, "contribution"), ("lens", 0, "After"),
    ):  # fmt: skip
        map_ = heat(tab, view, number)
        map_.focus()
        for key in ("End", "Home", "ArrowRight", "PageUp", "ArrowDown"):
            tab.keyboard.press(key)
        assert text in readout(tab, view, number), (view, number)
    heat(tab, "attention", 1).focus()
    for key in ("PageDown", "Home", "ArrowRight", "Enter"):
        tab.keyboard.press(key)
    frames(tab)
    assert (selected(tab), value(tab, "score", "key")) == (LAST, "1")

    pair = tab.locator("#rope input")
    pair.focus()
    tab.keyboard.press("Home")
    frames(tab)
    assert tab.locator("#rope").get_by_text("Dimensions 0 and 4").is_visible()
    tab.locator("#rope .clocks button[tabindex='0']").focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    frames(tab)
    assert tab.locator("#rope").get_by_text("Dimensions 1 and 5").is_visible()
    assert tab.locator(":focus").get_attribute("aria-pressed") == "true", "the focus was lost"

    tab.locator("#mlp select").focus()
    tab.keyboard.press("Home")
    frames(tab)
    assert "Layer 0" in tab.locator("#mlp p").nth(1).inner_text()
    tab.locator("#lens summary").focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#lens table").is_visible()
    tab.locator("#next").get_by_label("top-p").focus()
    for _ in range(20):
        tab.keyboard.press("ArrowLeft")
    assert tab.locator("#next output").nth(2).inner_text() == "0.05"


@pytest.mark.parametrize("shape", ["llama", "gemma", "sandwich"])
def test_the_numbers_are_the_models(opened: Opened, pages: Any, shape: str) -> None:
    model = decoder(shape)
    trace = Trace.of(model, Bytes(), Bytes().encode(TEXT))
    tab = opened(pages(shape))
    layer, head, source = pages(shape).facts["chosen"]
    pattern = trace.attention(layer)[head, -1]
    score = float(trace[f"blocks.{layer}.attention.scores"][head, -1, source])
    cells = tab.locator("#score table").first.locator("tr.sum td:last-child").all_inner_texts()
    assert float(cells[-1].replace("−", "-")) == pytest.approx(score, abs=1e-3)
    shown = tab.locator("#score .formula strong").inner_text()
    assert float(shown.strip("%")) == pytest.approx(100 * float(pattern[source]), abs=0.06)
    best = trace.top(14)
    chances = [cell.strip("<%") for cell in tab.locator("#next tbody td:nth-child(4)").all_inner_texts()]
    assert list(map(float, chances)) == pytest.approx([100 * one.probability for one in best], abs=0.06)
    logit = tab.locator("#residual tr.sum td.number").first.inner_text()
    assert float(logit.replace("−", "-")) == pytest.approx(float(trace.logits[-1].max()), abs=0.006)


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_a_number_of_a_query_is_the_sum_of_its_products(opened: Opened, pages: Any, shape: str) -> None:
    facts = pages(shape).facts
    layer, head, _ = facts["chosen"]
    model = decoder(shape)
    trace = Trace.of(model, Bytes(), Bytes().encode(TEXT), page_data.names(model.config))
    x = trace[f"blocks.{layer}.attention_norm"][-1].astype(np.float64)
    tab = opened(pages(shape))
    for matrix, name in (("k", "key"), ("q", "query")):
        tab.locator(f"#projection [data-matrix='{matrix}']").click()
        frames(tab)
        own = head // facts["attention"][layer]["group_size"] if matrix == "k" else head
        weight = trace.instrumented.weight(f"blocks.{layer}.attention.{name}.weight")[own * 8]
        bias = 0.0
        if trace.config.blocks[layer].attention.bias:
            bias = float(trace.instrumented.weight(f"blocks.{layer}.attention.{name}.bias")[own * 8])
        cells = tab.locator("#projection tbody td:last-child").all_inner_texts()
        *parts, whole = [float(one.replace("−", "-")) for one in cells]
        assert whole == pytest.approx(float(weight @ x) + bias, abs=1e-3)
        assert sum(parts) == pytest.approx(whole, abs=4e-3) and len(parts) == 4 + (bias != 0)
        products = weight * x
        assert parts[0] == pytest.approx(float(products[np.abs(products).argmax()]), abs=1e-3)
    outputs = heat(tab, "projection")
    outputs.focus()
    for key in ("Home", "ArrowRight", "ArrowDown", "Enter"):
        tab.keyboard.press(key)
    frames(tab)
    assert tab.locator("#projection tr.sum").inner_text().startswith("k[1]")


def test_query_heads_and_the_heads_that_they_read(opened: Opened, pages: Any) -> None:
    tab = opened(pages())
    tab.locator("#sharing [data-head='3']").click()
    frames(tab)
    assert tab.locator("#sharing .head-key.chosen").inner_text() == "1" and value(tab, "score", "head") == "3"
    assert "GQA" in tab.locator("#sharing h3").first.inner_text()
    tab.locator("#sharing [data-head='3']").focus()
    tab.keyboard.press("Home")
    tab.keyboard.press("Enter")
    frames(tab)
    assert tab.locator("#sharing .head-key.chosen").inner_text() == "0"
    assert tab.locator("#sharing tr.chosen td").nth(1).inner_text() == "64", "2 heads of 8 + 8 numbers"


def test_a_score_by_distance_is_the_models_and_follows_the_base(opened: Opened, pages: Any) -> None:
    layer, head, source = pages().facts["chosen"]
    trace = Trace.of(decoder(), Bytes(), Bytes().encode(TEXT))
    tab = opened(pages())
    shown = tab.locator("#distance p strong")
    score = float(trace[f"blocks.{layer}.attention.scores"][head, -1, source])
    assert float(shown.inner_text().replace("−", "-")) == pytest.approx(score, abs=1e-3)
    tab.locator("#distance").get_by_label("query at").fill(str(LAST + 7))
    tab.locator("#distance").get_by_label("key at").fill(str(source + 7))
    assert float(shown.inner_text().replace("−", "-")) == pytest.approx(score, abs=1e-3), "both moved alike"
    tab.locator("#distance").get_by_label("scaling").select_option("1")
    tab.locator("#distance").get_by_label("factor").focus()
    tab.keyboard.press("End")
    assert tab.locator("#distance").get_by_text("16", exact=True).is_visible()
    assert tab.locator("#distance path.line").count() == 2, "the model's, and the one that is set"


def test_every_number_says_how_sure_it_is(opened: Opened, pages: Any) -> None:
    tab = opened(pages())
    assert [one.split(":")[0] for one in tab.locator(".tags li").all_inner_texts()] == [
        "exact", "rounded for this page", "derived from exact numbers", "an estimate",
    ]  # fmt: skip
    for view, words in (
        ("embeddings", "rounded, to 1/127"), ("attention", "derived, from queries"),
        ("mlp", "estimate, of the direct"), ("score", "exact"), ("next", "derived"),
    ):  # fmt: skip
        marks = tab.locator(f"#{view} .tag").all_inner_texts()
        assert any(words in one for one in marks), (view, marks)
    for row in tab.locator("section thead tr").all():
        numbers = [head for head in row.locator("th.number").all() if head.inner_text().strip()]
        assert all(head.locator(".tag").count() for head in numbers if head.inner_text() != "neuron"), (
            row.inner_text()
        )


def test_topics_by_mouse_and_keyboard(opened: Opened, pages: Any) -> None:
    """A patch, features and a training beside the views, each in a panel over the whole width."""
    patched = [
        {"position": t, "text": "a", "other_text": other, "recovered": [0.2, 0.9, -0.1]}
        for t, other in ((3, "b"), (LAST, "a"))
    ]
    kl = [[0.0, 0.1, 0.2, 0.3]] * len(TEXT)
    parts = [{"layer": i, "head": h, "norm": 2.0, "change": 0.25} for i in range(3) for h in range(4)]
    ends = {"singular_value": 1.0, "share": 0.5, "promotes": ["up"], "opposite": ["down"]}
    topics = {
        "patch": {"other": "another", "here": "x", "there": "y", "tokens": patched},
        "features": {
            "activation": "blocks.1.out", "count": 20, "sinks": [0], "mapped": [7, 11],
            "promotes": [["p"], ["q"]],
            "tokens": [[[7, 2.0], [11, 1.0]]] * len(TEXT), "active": [[2.0] * len(TEXT), [1.0] * len(TEXT)],
        },
        "changed": {
            "names": ["base", "tuned"], "tokens": list(TEXT), "stages": ["embed", "0", "1", "2"], "kl": kl,
            "next": [{"id": 1, "text": "n", "before": 0.1, "after": 0.4}], "heads": parts,
            "mlps": [{"layer": 0, "head": None, "norm": 1.0, "change": 0.5}],
            "written": [{"weight": "blocks.2.mlp.down.weight", "change": 0.1, "directions": [ends]}],
        },
    }  # fmt: skip
    tab = opened(replace(pages(), facts=pages().facts | topics), pages("llama", "the same the sane"))
    assert [one.get_attribute("id") for one in tab.locator("section").all()][:3] == list(topics)
    assert tab.locator("#patch .panel").count() == 1 and tab.locator("#tokens .panel").count() == 2
    heat(tab, "patch").focus()
    for key in ("Home", "PageUp", "Home", "ArrowRight", "Enter"):
        tab.keyboard.press(key)
    frames(tab)
    assert "0.900 of the way from x to y" in readout(tab, "patch") and selected(tab) == 3
    assert (
        "p" in tab.locator("#features tbody tr").first.inner_text()
        and "2.000" in tab.locator("#features").inner_text()
    )
    heat(tab, "features").click(position={"x": 64 + 5, "y": 74 + 5})
    frames(tab)
    assert selected(tab) == 0 and "attention sink" in tab.locator("#features").inner_text()
    heat(tab, "changed", 1).focus()
    for key in ("Home", "PageDown"):
        tab.keyboard.press(key)
    assert "Layer 0, MLP: moved 50.0%" in readout(tab, "changed", 1)
    assert "2.mlp.down" in tab.locator("#changed table").last.inner_text()


def test_temperature_and_top_p(opened: Opened, pages: Any) -> None:
    logits = Trace.of(decoder(), Bytes(), Bytes().encode(TEXT)).logits[-1]
    shares = np.exp((logits - logits.max()).astype(np.float64) / 0.5)
    chances = np.sort(shares / shares.sum())[::-1]
    kept = int((chances.cumsum() < 0.9).sum()) + 1
    tab = opened(pages())
    tab.locator("#next").get_by_label("temperature").fill("0.5")
    tab.locator("#next").get_by_label("top-p").fill("0.9")
    assert (
        tab.locator("#next")
        .get_by_text(f"{kept} tokens can be sampled." if kept > 1 else "One token")
        .is_visible()
    )
    first = float(tab.locator("#next tbody td:nth-child(4)").first.inner_text().strip("%"))
    assert first == pytest.approx(100 * float(chances[0] / chances[:kept].sum()), abs=0.06)


def test_what_a_token_spells_is_shown_and_never_obeyed(opened: Opened, pages: Any) -> None:
    tab = opened(pages("llama", TEXT, Hostile()))
    assert tab.locator("#owned").count() == 0
    assert chip(tab, 0).inner_text() == "</script><b␣id=owned>"
    assert chip(tab, 1).inner_text() == "\\u202eolleh"
    assert chip(tab, 2).inner_text() == "\\x00\\x1b[31m{{data}}"


def test_two_stories_are_linked(opened: Opened, pages: Any) -> None:
    tab = opened(pages(), pages("gemma", "then the same"))
    assert tab.locator("section .panel").count() == 2 * len(VIEWS)
    tab.locator(
        "[data-explanation='0'] .chip[data-t='13']"
    ).hover()  # the last s of one is where the other's is
    frames(tab)
    assert set(
        tab.eval_on_selector_all("[data-explanation='1'] .lit", "all => all.map(one => one.dataset.t)")
    ) == {"9"}
    tab.locator("[data-explanation='1'] .chip[data-t='9']").click()
    frames(tab)
    assert selected(tab) == 13


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(opened: Opened, pages: Any, width: int, scheme: str) -> None:
    tab = opened(pages(), width=width, color_scheme=scheme, reduced_motion="reduce")
    tab.locator("#lens summary").click()
    tab.evaluate(inputs.path("axe-core").read_text(encoding="utf-8"))
    found = tab.evaluate("axe.run()")["violations"]
    serious = [
        (one["id"], one["help"], one["nodes"][0]["html"][:160])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert not serious


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_wider_than_the_screen(opened: Opened, pages: Any, width: int) -> None:
    tab = opened(pages(), width=width)
    for view in VIEWS:
        tab.locator(f"#{view}").scroll_into_view_if_needed()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_the_dial_sweeps_unless_motion_is_reduced(opened: Opened, pages: Any) -> None:
    hand = "document.querySelector('.dial .hand.query').getAttribute('x2')"
    calm = opened(pages(), reduced_motion="reduce")
    calm.get_by_role("button", name="Rotate again").click()
    before = calm.evaluate(hand)
    frames(calm, 4)
    assert calm.evaluate(hand) == before
    moving = opened(pages(), reduced_motion="no-preference")
    moving.get_by_role("button", name="Rotate again").click()
    seen = []
    for _ in range(6):
        frames(moving, 4)
        seen.append(moving.evaluate(hand))
    assert len(set(seen)) > 1


def test_a_long_text_keeps_its_strongest_heads(
    opened: Opened, pages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cutaway.inspect.page_data.DETAIL_BYTES", 1)
    tab = opened(pages("llama", "the same, again"))
    [[layer, head]] = pages("llama", "the same, again").facts["detailed"]
    tab.locator("#score").get_by_label("layer").select_option(str((layer + 1) % 3))
    frames(tab)
    assert "keeps queries" in tab.locator("#score").inner_text()
    assert "≈" in tab.locator("#attention table").inner_text()
    tab.locator("#score button").click()
    frames(tab)
    assert value(tab, "score", "layer") == str(layer) and value(tab, "score", "head") == str(head)
    assert tab.locator("#score table").first.is_visible()


def test_the_selected_row_is_in_sight(opened: Opened, pages: Any) -> None:
    tab = opened(pages("llama", "thirteen tokens and many more of them"))
    tab.locator("#tokens").scroll_into_view_if_needed()
    frames(tab)
    seen = """() => {
        const box = document.querySelector('#tokens .scroll').getBoundingClientRect();
        const row = document.querySelector('#tokens tr.chosen').getBoundingClientRect();
        return row.top >= box.top - 1 && row.bottom <= box.bottom + 1;
    }"""
    assert tab.evaluate(seen)


def test_a_phone_sees_a_pair_before_and_after(opened: Opened, pages: Any) -> None:
    tab = opened(pages(), width=390)
    for name in ("before", "after"):
        box = tab.locator("#rope tr", has_text=name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_a_phone_sees_the_chosen_column_and_what_neurons_promote(opened: Opened, pages: Any) -> None:
    tab = opened(pages(), width=390)
    for words in tab.query_selector_all("td > .words"):
        box = words.bounding_box()
        assert box is None or box["x"] + box["width"] <= 390
    section = tab.query_selector("section:has-text('Logit lens')")
    map = section.query_selector(".heat")
    assert map.evaluate("box => box.scrollWidth > box.clientWidth")  # more columns than are seen
    assert map.evaluate(
        "box => box.scrollLeft + box.clientWidth >= box.scrollWidth - 1"
    )  # the last is chosen


def test_a_predicted_space_is_shown(opened: Opened, pages: Any) -> None:
    tab = opened(pages("llama", TEXT, Blank()))
    assert tab.locator(".answer").inner_text() == "␣"


class Blank(Bytes):
    def token_bytes(self, id: int) -> bytes:
        return b" "


def test_two_sides_of_one_model_show_the_same_pair_and_two_models_choose_alone(
    opened: Opened, pages: Any
) -> None:
    same = opened(pages(), pages("llama", "not the same"))
    heads = same.locator("#attention .selects").all_inner_texts()
    at = [
        [one.input_value() for one in same.locator(f"#score [data-explanation='{i}'] select").all()[:2]]
        for i in (0, 1)
    ]
    assert at[0] == at[1] and len(heads) == 2, "both sides open at one head"
    dimensions = same.locator("#rope .slider output").all_inner_texts()
    assert len(dimensions) == 2 and dimensions[0] == dimensions[1]
    other = opened(pages(), pages("gemma"))
    before = other.locator("#attention [data-explanation='1']").locator("select").first.input_value()
    other.locator("#attention [data-explanation='0'] select").first.select_option(
        "0" if before != "0" else "1"
    )
    frames(other)
    assert other.locator("#attention [data-explanation='1']").locator("select").first.input_value() == before
    assert "do not correspond" in other.locator("#head").inner_text()
