"""A graph's page in a real browser: edges under the pointer, groups, and what clamping them predicts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway.inspect.graph import exported, page
from cutaway.inspect.graph.attribution_graph import Graph
from cutaway.inspect.graph.build import attribution_graph
from cutaway.inspect.graph.clamp import predicted
from cutaway.inspect.subject import Subject
from tests.small import Bytes, decoder

HOSTILE = "</script><b id=o>"


@pytest.fixture(scope="module")
def graphs() -> tuple[Subject, Graph, Graph]:
    subject = Subject.of(decoder(), Bytes())
    made = attribution_graph(subject, list(HOSTILE.encode()), neurons=6)
    return subject, made, made.pruned()


def shown(tab: Any) -> np.ndarray:
    """The predicted and the true change of each logit, as the table has them."""
    rows = tab.locator("section[aria-label=Groups] tbody tr").all_inner_texts()
    return np.array([[float(text.replace("−", "-")) for text in row.split("\t")[1:]] for row in rows])


def test_nodes_are_hovered_pinned_grouped_and_clamped(
    browser: Any, graphs: tuple[Subject, Graph, Graph], tmp_path: Path
) -> None:
    subject, made, kept = graphs
    pair = tuple(node.id for node in kept.nodes if node.kind == "head")[:2]
    kept = replace(kept, groups=[("two", pair)])
    checked = page.check(subject, made, kept)
    document = exported.to_json(kept, 0.8, 0.98, "1")
    file = tmp_path / "graph.html"
    file.write_text(page.page(subject, made, kept, checked, document), "utf-8")
    problems: list[str] = []
    context = browser.new_context(viewport={"width": 400, "height": 860}, accept_downloads=True)
    tab = context.new_page()
    tab.set_default_timeout(10_000)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    tab.goto(file.as_uri())
    tab.wait_for_selector("body[data-ready=yes]")
    assert tab.evaluate("document.documentElement.scrollWidth") == 400
    assert tab.locator("#o").count() == 0 and tab.locator("h1").inner_text() == HOSTILE
    assert tab.locator(".node").count() == len(kept.nodes)
    tab.get_by_role("checkbox").check()
    numbers = {made.number(id): 0.0 for id in pair}
    both = predicted(made, numbers)[made.logits]
    assert shown(tab) == pytest.approx(np.stack([both, checked["groups"]["two"]["0.0"]], 1), abs=0.006)
    tab.get_by_role("checkbox").uncheck()
    target = max(
        (n for n, node in enumerate(kept.nodes) if node.kind == "mlp"), key=lambda n: kept.influence[n]
    )
    own = [edge for edge in kept.edges() if target in edge[:2]]
    tab.locator(".node").nth(target).dispatch_event("click")
    assert tab.locator("path.edge").count() == min(len(own), 120)
    assert tab.locator(".panel h2").first.inner_text() == kept.nodes[target].name
    tab.get_by_role("button", name="Pin", exact=True).click()
    tab.get_by_role("button", name="New group of what is pinned").click()
    tab.get_by_label("Name of the group").last.fill("mine")
    tab.get_by_role("checkbox").last.check()
    id = kept.nodes[target].id
    changes = predicted(made, {made.number(id): 0.0})[made.logits]
    by_hand = np.stack([changes, checked["nodes"][id]], 1)
    assert shown(tab) == pytest.approx(by_hand, abs=0.006), "by all paths, and as the model made it"
    with tab.expect_download() as saved:
        tab.get_by_role("button", name="Save JSON").click()
    saved.value.save_as(tmp_path / "graph.json")
    assert exported.read_groups(tmp_path / "graph.json") == [("two", pair), ("mine", (id,))]
    with tab.expect_download() as saved:
        tab.get_by_role("button", name="Save SVG").click()
    saved.value.save_as(tmp_path / "graph.svg")
    assert "<svg" in (tmp_path / "graph.svg").read_text("utf-8")
    context.close()
    assert not problems
