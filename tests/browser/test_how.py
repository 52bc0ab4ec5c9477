""" "How it works" in a real browser: every chapter of the recorded file by mouse and by keyboard, its numbers
against the package's, at two widths; the server's own on another sentence.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cutaway
from cutaway.cli import main
from cutaway.inspect.how import alignment, architecture, mechanisms, tokenizers, vectors
from tests import inputs
from tests.browser.conftest import frames
from tests.serving import Server
from tests.small import model_file

TEXT = "the tall thing thins"
CHAPTERS = (
    *("tokenizers", "vectors", "qkv", "positions", "mechanisms"),
    *("architecture", "plan", "sampler", "quantized"),
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chapters of a small model as a file, beside the model."""
    folder = tmp_path_factory.mktemp("how")
    model = model_file(folder / "small.gguf")
    words = [{"word": w, "written": w[::-1], "weights": np.eye(len(w))[::-1].tolist()} for w in TEXT.split()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "alignments", lambda text: {"steps": 1, "words": words})
        code = main(["explain", TEXT, "--model", str(model), "--how", "--html", str(folder / "how.html")])
    assert code == 0
    return folder


@pytest.fixture
def how(browser: Any, recorded: Path) -> Iterator[Callable[..., Any]]:
    """Opens the file at a chapter; whatever it complains of fails the test in the end."""
    problems: list[str] = []
    contexts: list[Any] = []

    def show(chapter: str, width: int = 1280) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(10_000)
        tab.on(
            "console", lambda line: problems.append(line.text) if line.type in ("error", "warning") else None
        )
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.goto(f"{(recorded / 'how.html').as_uri()}#{chapter}")
        tab.locator(f".chapter[data-ready='{chapter}']").wait_for()
        frames(tab)
        return tab

    yield show
    for context in contexts:
        context.close()
    assert not problems


def test_every_chapter_by_keyboard_fits_a_phone_and_axe_finds_no_serious_fault(how: Any) -> None:
    tab = how("tokenizers", 390)
    axe = inputs.path("axe-core").read_text(encoding="utf-8")
    tab.evaluate(axe)
    for chapter in CHAPTERS:
        tab.locator(f".chapters [data-chapter='{chapter}']").focus()
        tab.keyboard.press("Enter")
        tab.locator(f".chapter[data-ready='{chapter}']").wait_for()
        frames(tab)
        assert len(tab.locator(".chapter .about").inner_text()) > 60
        assert tab.locator(".chapters a[aria-current]").get_attribute("data-chapter") == chapter
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, chapter
        found = tab.evaluate("axe.run('.how')")["violations"]
        assert not [
            (chapter, one["id"], one["nodes"][0]["html"][:160])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]


def test_tokenizers_step_by_step(how: Any, recorded: Path) -> None:
    tab = how("tokenizers")
    found = tokenizers.tokenizers(cutaway.load(recorded / "small.gguf").tokenizer, TEXT)
    rows = tab.locator(".chapter table").first.locator("tbody tr")
    for row, one in zip(rows.all(), found["cuts"], strict=True):
        assert row.locator("td").nth(2).inner_text() == str(len(one["pieces"])), one["name"]
        assert row.locator(".piece").count() == len(one["pieces"])
    control = tab.locator("#bpe input")
    control.focus()
    tab.keyboard.press("ArrowRight")
    first = found["bpe"]["merges"][0]
    shown = tab.locator("#bpe p").inner_text()
    assert shown.startswith("Merge 1: ") and f"{first['count']} time" in shown
    tab.keyboard.press("End")
    learned = next(one["pieces"] for one in found["cuts"] if one["name"] == "BPE, learned here")
    words = tab.locator("#bpe tbody tr").all()
    assert sorted({p for row in words for p in row.locator(".piece").all_inner_texts()}) == sorted(
        {piece.replace(" ", "␣") for piece in learned}
    )
    tab.locator("#merging input").fill(str(len(found["own"][0]["joined"])))
    assert tab.locator("#merging .piece").first.inner_text().replace("␣", " ") in found["own"][0]["piece"]
    assert tab.locator("#merging .piece").count() < len(found["own"][0]["symbols"])
    tab.locator("#unigram input").focus()
    tab.keyboard.press("End")
    assert "Nothing is left to prune" in tab.locator("#unigram p").inner_text()
    best = [word for word in found["unigram"]["lattice"][0]["edges"] if word[3]]
    assert tab.locator("#lattice .cut-arc.best").count() == len(best)
    assert tab.locator("#lattice .cut-arc").count() == len(found["unigram"]["lattice"][0]["edges"])


def test_words_on_a_map_and_their_neighbours(how: Any, recorded: Path) -> None:
    tab = how("vectors")
    found = vectors.vectors(cutaway.load(recorded / "small.gguf").subject)
    tab.locator("#neighbours select").select_option("2")
    near = tab.locator("#neighbours td.number").all_inner_texts()
    assert near == [f"{one['cosine']:.3f}".replace("-", "−") for one in found["words"][2]["neighbours"]]
    assert tab.locator("#analogies h3").inner_text() == "Paris − France + Italy"
    chart = tab.locator(".chapter .plot")
    chart.focus()
    tab.keyboard.press("Home")
    assert "component" in tab.locator(".chapter .tools .readout").first.inner_text()
    assert tab.locator(".chapter .ask").count() == 0, "a recording answers nothing else"


def test_scores_positions_and_the_sampler_are_views_of_the_trace(how: Any) -> None:
    tab = how("qkv")
    assert tab.locator("#projection tr.sum").inner_text().startswith("q[0]")
    tab.locator("#score select").nth(3).select_option("1")
    frames(tab)
    assert tab.locator("#score .formula strong").inner_text().endswith("%")
    tab = how("positions")
    before = tab.locator("#distance p strong").inner_text()
    tab.locator("#distance").get_by_label("query at").fill("60")
    assert tab.locator("#distance p strong").inner_text() != before
    tab = how("sampler")
    tab.locator("#next").get_by_label("top-k").focus()
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
    assert tab.get_by_text("3 tokens can be sampled.").is_visible()
    cells = tab.locator("#next tbody td:nth-child(4)").all_inner_texts()
    assert sum(float(one.strip("<%")) for one in cells[:3]) == pytest.approx(100, abs=0.2)
    assert set(cells[3:]) == {"0.0%"}


def test_masks_costs_and_the_block(how: Any, recorded: Path) -> None:
    lm = cutaway.load(recorded / "small.gguf")
    tab = how("mechanisms")
    kinds = mechanisms.mechanisms(lm.config, len(lm.ids(TEXT)))["kinds"]
    names = [re.sub(r" \(.*", "", one) for one in tab.locator(".chapter option").all_inner_texts()]
    assert names == [one["kind"] for one in kinds]
    tab.locator(".chapter select").first.select_option(str(names.index("local")))
    frames(tab)
    mask = tab.locator(".chapter .heat").first
    mask.focus()
    for key in ("End", "PageDown", "Home"):
        tab.keyboard.press(key)
    assert "seen 0" in tab.locator(".chapter .readout").first.inner_text()
    assert tab.locator(".chapter > .stack > .charts figure").count() == 3
    titles = tab.locator("#alignments h3").all_inner_texts()
    assert [one.split(" → ")[0] for one in titles[1:]] == ["the", "tall", "thing", "thins"]
    tab = how("architecture")
    found = architecture.architecture(lm)["blocks"][0]["parts"][1]
    tab.locator(".part[aria-pressed='true']").focus()
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    shown = tab.locator(".part-detail")
    assert shown.locator("h3").inner_text() == "MLP"
    assert f"{found['weights'][0]['bytes']:,}" in shown.locator("table").first.inner_text()


def test_the_plan_and_the_types(how: Any) -> None:
    tab = how("plan")
    assert (
        tab.locator(".chapter tbody tr").count() == 6
        and "steps one after another" in tab.locator(".chapter").inner_text()
    )
    tab.locator(".chapter select").focus()
    tab.keyboard.press("ArrowDown")
    assert "1 token" in tab.locator(".chapter tbody").inner_text()
    tab = how("quantized")
    types = tab.locator(".chapter table").first.locator("tbody td:first-child").all_inner_texts()
    assert sorted(types) == ["Q2_K", "Q4_0", "Q4_K_M", "Q8_0"]
    tab.locator(".chapter .heat").focus()
    tab.keyboard.press("End")
    assert "KL, nats" in tab.locator(".chapter .readout").first.inner_text()


def test_the_servers_chapters_follow_the_sentence(app: Any, server: Server) -> None:
    tab = app()
    tab.locator("#to-how").click()
    tab.locator(".chapter[data-ready='tokenizers']").wait_for()
    tab.get_by_label("Sentence").fill("A </script><b id=owned>")
    tab.get_by_role("button", name="Use it").click()
    frames(tab)
    tab.locator("#bpe").wait_for()
    assert "owned" in tab.locator(".chapter table").first.inner_text() and tab.locator("#owned").count() == 0
    tab.locator("[data-chapter='vectors']").click()
    tab.get_by_label("words", exact=True).fill("red, green, blue")
    tab.get_by_role("button", name="Draw").click()
    tab.locator("#neighbours option", has_text="green").wait_for(state="attached")
    body = {"words": ["red", "green", "blue"], "analogy": ["Paris", "France", "Italy"]}
    found = server.post("/v1/how/vectors", body).json()["words"][0]["neighbours"]
    assert tab.locator("#neighbours td.number").first.inner_text() == f"{found[0]['cosine']:.3f}"
    tab.locator("[data-chapter='quantized']").click()
    tab.locator(".chapter[data-ready='quantized']").wait_for()
    tab.get_by_role("button", name="Q4_0").click()
    tab.locator(".chapter tbody td", has_text="Q4_0").wait_for()
