"""Every view of the page on other architectures: a mixture of experts, and a model like Gemma."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cutaway
from cutaway.lm import LanguageModel
from cutaway.quantization import formats
from cutaway.weights.named_tensors import Tensors
from tests import serving, small
from tests.browser.conftest import ask

CHAPTERS = ("tokenizers", "vectors", "qkv", "mechanisms", "architecture", "plan", "sampler")


def model(shape: str, folder: Path) -> LanguageModel:
    """A random model of this shape that writes bytes, with a chat template."""
    base = cutaway.load(small.model_file(folder / "base.gguf"))
    config = replace(small.SHAPES[shape](), vocab=base.config.vocab, context=512)
    draw = np.random.default_rng(0)
    values = {name: draw.standard_normal(size, np.float32) / 2 for name, size in config.weights().items()}
    tensors = Tensors({name: formats.pack(value, "F32") for name, value in values.items()})
    return LanguageModel(replace(base.checkpoint, config=config, tensors=tensors, family=None))


@pytest.mark.parametrize("shape", ["mixture", "gemma"])
def test_every_view_shows_the_models_own_numbers(app: Callable[..., Any], tmp_path: Path, shape: str) -> None:
    lm = model(shape, tmp_path)
    with serving.running(lm) as server:
        tab = app(at=server)
        ask(tab, "the", longest=16)
        ids = lm.chat_ids([{"role": "user", "content": "the"}])
        made = lm.generate(ids, max_tokens=16, temperature=0.3, seed=1).ids
        assert tab.locator(".answer .t").count() == len(made)
        tab.locator(".answer .t").nth(2).click()
        for name, seen in (("Attention", "attends to"), ("Lens", "Logit lens"), ("Why", "Causal check")):
            tab.get_by_role("tab", name=name).click()
            tab.locator("#panel h3").get_by_text(seen).wait_for()
        trace = lm.trace([*ids, *made[:2]])
        logit = float(trace["logits"][-1][made[2]])
        assert f"is {logit:.2f}".replace("-", "−") in tab.locator("#panel").inner_text()
        tab.get_by_role("link", name="Inside").click()
        tab.get_by_label("Text").fill("the other, the same")
        tab.get_by_role("button", name="Trace").click()
        tab.wait_for_function(
            "n => document.querySelectorAll('#strip .chip').length === n",
            arg=len(lm.ids("the other, the same")),
        )
        best = lm.trace("the other, the same").top(1)[0]
        shown = tab.locator("#next td:nth-child(4)").first.inner_text().strip("%<")
        assert float(shown) == pytest.approx(100 * best.probability, abs=0.06)
        assert tab.locator("#views section").count() == 12
        for chapter in CHAPTERS:
            tab.evaluate("at => { location.hash = at; }", f"#how/{chapter}/the%20other")
            tab.locator(f".chapter[data-ready={chapter}]").wait_for()
            problems = tab.locator(".chapter [role=alert]").all_inner_texts()
            assert not [one for one in problems if one], chapter
        tab.evaluate("() => { location.hash = '#safety'; }")
        tab.get_by_role("button", name="Answer", exact=True).click()
        tab.get_by_text("mean of 7 draws").wait_for()
        tab.context.close()
