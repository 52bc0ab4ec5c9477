"""The page's lenses: the Jacobian lens first, the logit lens and the control to choose, all in the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cutaway.inspect import page_data
from cutaway.inspect.jacobian_lens import JacobianLens
from cutaway.inspect.lenses import with_control
from cutaway.inspect.subject import instrumented
from cutaway.inspect.trace import Trace
from tests.small import WIDTH, Bytes, decoder


def test_lenses_are_side_by_side(opened: Callable[..., Any]) -> None:
    draw = np.random.default_rng(0)
    matrices = {layer: draw.standard_normal((WIDTH, WIDTH), np.float32) for layer in (0, 1)}
    kinds = with_control(JacobianLens(matrices, 2, 1))
    model = instrumented(decoder())
    trace = Trace.of(model, Bytes(), list(b"all of it"), page_data.names(model.config))
    tab = opened(page_data.build(trace, "small", kinds))
    section = tab.locator("#lens")
    assert section.locator("option").all_inner_texts() == [
        "Jacobian lens",
        "logit lens",
        "random rotation (control)",
    ]
    rows = section.locator("table").last.locator("tbody tr")
    cells = rows.nth(1).locator("td, th").all_inner_texts()
    seen = [trace.lens(by) for by in (kinds["jacobian"], "logit", kinds["random"])]
    chances = [one.probabilities[one.names.index("blocks.0.out"), -1] for one in seen]
    shown = [float(cells[i].strip("%<")) for i in (2, 4, 6)]
    assert len(cells) == 8 and shown == pytest.approx([100 * chance for chance in chances], abs=0.06)
    first = rows.nth(0).locator("td, th").all_inner_texts()
    assert first[1] == first[2] == "", "the Jacobian lens is not of the embedding"
    section.locator("select").select_option("2")
    assert "chance" in section.locator("p.quiet").first.inner_text()
