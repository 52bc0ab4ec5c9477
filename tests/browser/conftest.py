"""A real Chromium for the page's tests. Where there is none they are skipped, except in CI, where that is a
failure.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway.inspect import page_data
from cutaway.inspect.dictionaries import Contexts, Dictionary
from cutaway.inspect.page import page as page_of
from cutaway.inspect.sae import SAE, Card
from cutaway.inspect.subject import instrumented
from cutaway.inspect.trace import Trace
from tests.small import Bytes, decoder

CI = os.environ.get("CI") == "true"
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ACTIONS = {
    "Locator": "check click dblclick dispatch_event drag_to fill focus hover press press_sequentially "
    "select_option set_checked set_input_files uncheck",
    "Keyboard": "down insert_text press type up",
    "Mouse": "click dblclick down move up wheel",
    "Page": "emulate_media go_back go_forward goto reload set_viewport_size",
}
TEXT = "the same the same"
LABEL = "<img src=x onerror=alert(1)> \u202eo\u0301" + "\u0301" * 5_000 + "\0"
SIZE = 32  # features of a dictionary


def dictionaries() -> list[Dictionary]:
    """Two of random directions, the second's features with hostile labels and a text."""
    draw, found = np.random.default_rng(0), []
    for kind, names in (
        ("transcoder", ("blocks.0.mlp_norm", "blocks.0.mlp.down")),
        ("sae", ("blocks.1.out",) * 2),
    ):
        card = Card(kind, "topk", names[:1], names[1:], (576, 576), "model", SIZE, 4)  # type: ignore[arg-type]
        of = {name: draw.standard_normal((SIZE, 576), np.float32) for name in ("W_enc", "W_dec")}
        found.append(SAE(card, of | {"b_enc": np.zeros(SIZE, "f4"), "b_dec": np.zeros(576, "f4")}))
    ids = np.full((SIZE, 1, 3), -1, np.int32)
    ids[:, 0, :2] = 504, 44
    numbers, one = np.full(SIZE, 0.25, np.float32), np.ones((SIZE, 1), np.int32)
    kept = Contexts(numbers, 40 * numbers, ids, one, one.astype(np.float32))
    return [Dictionary(found[0], {}, None), Dictionary(found[1], dict.fromkeys(range(SIZE), LABEL), kept)]


def frames(tab: Any, count: int = 3) -> None:
    """Waits until the browser has drawn so many frames."""
    tab.evaluate(
        "n => new Promise(done => { const go = () => n-- ? requestAnimationFrame(go) : done(); go(); })",
        count,
    )


def drawn_after_each_action(browser: Any, patch: pytest.MonkeyPatch) -> None:
    """Lets the page draw after each action of a test, as it redraws in the next frame: while other programs
    compute, the test's next line may come first. A page that loads another, or whose dialog waits, is not
    waited for.
    """
    from playwright import sync_api

    def drawn() -> None:
        for tab in [tab for context in browser.contexts for tab in context.pages]:
            with contextlib.suppress(sync_api.Error):
                tab.evaluate(
                    """() => Promise.race([
                        new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))),
                        new Promise(done => setTimeout(done, 2000)),
                    ])"""
                )

    for of, names in ACTIONS.items():
        for name in names.split():
            action = getattr(getattr(sync_api, of), name)

            def act(self: Any, *given: Any, action: Any = action, **named: Any) -> Any:
                result = action(self, *given, **named)
                drawn()
                return result

            patch.setattr(getattr(sync_api, of), name, act)


def _missing(what: str) -> None:
    if CI:
        pytest.fail(f"{what}, and in CI the page must be opened", pytrace=False)
    pytest.skip(what)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        _missing("no Chromium was found")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("Playwright is not installed")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=found, args=FLAGS)
        with pytest.MonkeyPatch.context() as patch:
            drawn_after_each_action(made, patch)
            yield made
        made.close()


@pytest.fixture(scope="session")
def pages() -> Callable[..., page_data.PageData]:
    """The data of a small random model, by its shape and the text."""
    made: dict[tuple, page_data.PageData] = {}
    models: dict[str, Any] = {}

    def of(shape: str = "llama", text: str = TEXT, tokenizer: Bytes | None = None) -> page_data.PageData:
        known = (shape, text, type(tokenizer))
        if known not in made:
            reader = tokenizer or Bytes()
            model = models.setdefault(shape, instrumented(decoder(shape)))
            trace = Trace.of(model, reader, reader.encode(text), page_data.names(model.config))
            made[known] = page_data.build(trace, f"small {shape}")
        return made[known]

    return of


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page of some pages; whatever it complains of, or asks of a network, fails the test in the
    end.
    """
    problems: list[str] = []
    contexts: list[Any] = []

    def show(*shown: page_data.PageData, width: int = 1280, height: int = 900, **context: Any) -> Any:
        file = tmp_path / f"page-{len(contexts)}.html"
        file.write_text(page_of(shown), encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **context))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(10_000)
        tab.on(
            "console",
            lambda line: problems.append(line.text) if line.type in ("error", "warning") else None,
        )
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda asked: None if asked.url == file.as_uri() else problems.append(asked.url))
        tab.goto(file.as_uri())
        tab.wait_for_selector("section")
        return tab

    yield show
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture(scope="session")
def server() -> Iterator[Any]:
    """A server of two layers, for the tests of its page."""
    from tests import serving  # which skips without what serving needs

    with serving.running(serving.model(), dictionaries=dictionaries()) as made:
        yield made


@pytest.fixture
def app(browser: Any, server: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page; what it complains of, or asks of another address, fails the test in the end."""
    problems: list[str] = []
    contexts: list[Any] = []

    def show(path: str = "", at: Any = server, width: int = 1280, **context: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **context))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(20_000)
        tab.problems = problems
        tab.on(
            "console", lambda line: problems.append(line.text) if line.type in ("error", "warning") else None
        )
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on(
            "request",
            lambda asked: None if asked.url.startswith((at.url, "data:")) else problems.append(asked.url),
        )
        tab.goto(f"{at.url}/{path}")
        return tab

    yield show
    for context in contexts:
        context.close()
    assert not problems


def ask(tab: Any, text: str = "hello", longest: int = 16, seed: int = 1) -> None:
    """Asks by hand, and waits for the answer's end."""
    if not tab.locator("#seed").is_visible():
        tab.get_by_text("Settings, edits and colours").click()
    tab.get_by_label("seed").fill(str(seed))
    tab.get_by_label("longest answer").fill(str(longest))
    tab.get_by_label("Message", exact=True).fill(text)
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="Copy as curl").last.wait_for()
    frames(tab)
