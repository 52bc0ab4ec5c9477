"""Training in a real browser: curves, a sentence over checkpoints, a checkpoint that answers."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cutaway
from tests import inputs, serving, training
from tests.browser.conftest import ask

from cutaway.commands.serve import Loader  # isort: skip
from cutaway.commands.serve_options import Loading, Several  # isort: skip
from cutaway.serve.runs.folder import Runs  # isort: skip
from cutaway.serve.service import Limits  # isort: skip

Opened = Callable[..., Any]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one of which has answered held-out questions."""
    folder = tmp_path_factory.mktemp("runs")
    training.saved(folder / "one")
    (folder / "two").mkdir()
    for name in ("run.yaml", "metrics.jsonl"):
        shutil.copy(folder / "one" / name, folder / "two" / name)
    line = '{"step": 4, "question": "<b>1 + 1</b>", "answer": "2", "completion": "3", "score": 0.0}\n'
    (folder / "two" / "samples.jsonl").write_text(line)
    return folder


@pytest.fixture(scope="module")
def trained(runs: Path) -> Iterator[Any]:
    with serving.running(serving.model(1), runs=Runs(runs)) as made:
        options = (Loading(), Several(), Limits(max_sequences=2))
        loader = Loader(("one",), *options, first=made.service, plain=True)
        made.server.models.load_checkpoint = lambda name, path: loader._service(name, path, ())
        yield made


def test_runs_are_followed_and_a_checkpoint_answers(app: Opened, trained: Any, runs: Path) -> None:
    tab = app("#training/one/4/the%20same%20tea", at=trained, bypass_csp=True, reduced_motion="reduce")
    place = tab.locator(".training")
    place.get_by_text("Surprisal of each token").wait_for()
    found = trained.post(
        "/v1/runs/checkpoint", {"run": "one", "step": 4, "text": "the same tea", "reference": 6}
    ).json()
    assert f"Mean surprisal {found['mean']:.3f} nats" in place.inner_text()
    assert place.locator(".read").inner_text() == "the same tea"
    assert place.get_by_text(" sample of 4").is_visible(), "what was written up to the chosen step"
    titles = set(place.locator("figure h3").all_inner_texts())
    assert titles >= {"Loss", "Surprisal of the sentence", "Induction", "Embeddings of the sentence’s tokens"}
    # by keyboard to the last checkpoint: its own numbers, and an address that shows it again
    place.get_by_label("checkpoint", exact=True).focus()
    tab.keyboard.press("End")
    place.get_by_text(" sample of 6").wait_for()
    assert tab.url.endswith("#training/one/6/the%20same%20tea")
    tab.evaluate(inputs.path("axe-core").read_text(encoding="utf-8"))
    for width in (1280, 400):
        tab.set_viewport_size({"width": width, "height": 900})
        problems = tab.evaluate("axe.run()")["violations"]
        assert not [
            (one["id"], one["nodes"][0]["html"][:160]) for one in problems if one["impact"] != "minor"
        ]
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    # two runs side by side; what a run wrote is text
    tab.get_by_role("checkbox", name="Draw two").check()
    place.get_by_text("one, held out").first.wait_for(state="attached")
    tab.get_by_role("button", name="two", exact=True).click()
    place.get_by_text("<b>1 + 1</b>").click()
    assert place.locator("dd").all_inner_texts() == ["2", "3"]
    # a checkpoint answers in the chat, as the model that was saved
    tab.get_by_role("button", name="one", exact=True).click()
    place.get_by_role("button", name="Chat with it").click()
    ask(tab, "the")
    assert tab.locator("#bar select").input_value() == "one@6"
    own = cutaway.load(runs / "one" / "checkpoints" / "step-00000006")
    expected = own.generate("the", max_tokens=15, temperature=0.3, seed=1).text
    assert tab.locator(".answer").text_content() == expected.replace("\x0b", "\\x0b"), "as an escape"


def test_a_server_without_runs_says_how_to_show_them(app: Opened, server: Any) -> None:
    tab = app("#training", at=server)
    tab.get_by_text("cutaway serve --runs runs").wait_for()
