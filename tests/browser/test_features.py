"""A token's features in a real browser: listed, opened as a card, switched off and added in the chat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests import serving
from tests.browser.conftest import ask
from tests.browser.test_opened import asked_ids, generated, open_token
from tests.serving import Server

Opened = Callable[..., Any]


def test_features_of_a_token_their_cards_and_their_edits(app: Opened, server: Server) -> None:
    tab = app()
    ask(tab)
    plain = generated(server)
    open_token(tab, 4, "Features")
    rows = tab.locator("#panel table").last.locator("tbody tr")
    rows.first.wait_for()
    made = [one.made for one in server.service.dictionaries]
    for place, length in (("where it was chosen", 4), ("the token itself", 5)):
        tab.get_by_label("Features at").select_option(place)
        ids = [*asked_ids(server), *plain.ids[:length]]
        values = server.service.lm.trace(ids, names=[one.name for one in made])
        own = [each for one in made for each in one.top(values[one.name][-1:])[0]]
        shown = [f"{each.activation:.2f}" for each in own]
        cells = "[...document.querySelectorAll('#panel td:nth-child(3)')].map(one => one.textContent)"
        tab.wait_for_function(f"shown => {cells}.join() === shown.join()", arg=shown)
    assert rows.nth(0).locator("button").inner_text() == f"feature {own[0].feature}"
    label = rows.last.locator("button").inner_text()
    assert label.startswith(r"<img src=x onerror=alert(1)> \u202eo") and label.endswith(r"\x00")
    assert len(label) < 80 and not tab.locator("#panel img").count(), "its text is text, and short"
    # the card of the strongest feature of the second dictionary, by keyboard
    feature = made[1].top(values["blocks.1.out"][-1:])[0][0].feature
    rows.nth(len(made[0].top(values["blocks.0.mlp_norm"][-1:])[0])).locator("button").focus()
    tab.keyboard.press("Enter")
    tab.locator("#card").wait_for()
    card = tab.locator(".card")
    assert "It fires on 25.0% of tokens, at most 10.00." in card.inner_text()
    assert card.locator("mark").inner_text() == server.service.lm.tokenizer.decode([44])
    # the same seed without it, and with it added as strongly as where it is strongest
    card.get_by_role("button", name="Switch off").click()
    check(tab, generated(server, made[1].remove(feature)).text)
    card.get_by_role("button", name="Add").click()
    check(tab, generated(server, made[1].add(feature, 10.0)).text)
    assert tab.locator(".edit-chip").inner_text().startswith(f"feature {feature} of layer 1")


def check(tab: Any, text: str) -> None:
    """Waits until the answer beside is this text."""
    tab.wait_for_function(
        "text => document.querySelectorAll('.column .answer')[1]?.textContent === text", arg=text
    )


def test_without_features_the_commands_are_shown_that_make_them(app: Opened) -> None:
    tab = app()
    ask(tab)
    tab.route("**/v1/features", lambda route: route.fulfill(json={"dictionaries": []}))
    open_token(tab, 2, "Features")
    tab.locator("#panel pre").wait_for()
    assert f"cutaway serve {serving.NAME} --features transcoders" in tab.locator("#panel pre").inner_text()
