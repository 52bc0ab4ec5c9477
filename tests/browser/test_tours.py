"""The nine tours in a real browser: each step's address opens its view, and is done by doing what it says."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from cutaway.page import bundle
from tests import inputs

Opened = Callable[..., Any]
TOURS = json.loads(bundle.read_asset("app/tours.json"))
OTHERS = {  # steps that no control of one label does
    "names": lambda tab: (
        tab.get_by_label("Sentence").fill("Ask Ada"),
        tab.get_by_role("button", name="Use it").click(),
    ),
    "analogies": lambda tab: (
        tab.get_by_label("a, b, c of a − b + c").fill("king, man, woman"),
        tab.get_by_role("button", name="Draw").click(),
    ),
    "block": lambda tab: tab.get_by_role("button", name="MLP").click(),
}


def do(tab: Any, id: str, done: dict[str, Any]) -> None:
    """What a step asks for: the control of its condition is moved, by keyboard where it is a slider."""
    if "label" not in done:
        OTHERS[id](tab)
        return
    control = tab.locator(done.get("within", "#place")).get_by_label(done["label"], exact=True).first
    if control.evaluate("one => one.tagName") == "SELECT":
        names = control.locator("option").all_inner_texts()
        now = control.evaluate("one => one.selectedOptions[0].textContent")
        wanted = next(name for name in names if re.search(done.get("is", "."), name) and name != now)
        control.select_option(label=wanted)
        return
    control.focus()
    tab.keyboard.press("Home" if "below" in done else "End")


def test_tours_are_of_each_chapter_and_their_steps_are_data() -> None:
    assert [one["chapter"] for one in TOURS] == [*range(1, 10)]
    for tour in TOURS:
        guess, task, see = tour["steps"]
        assert guess["view"].startswith("#") and 0 <= guess["right"] < len(guess["choices"]), tour["id"]
        assert task["say"].endswith(".") and task["done"] and set(see) == {"say"}, tour["id"]
        assert set(task["done"]) <= {
            *("label", "within", "above", "below", "is", "changed", "atEnd", "address", "shown", "matches")
        }


def test_every_tour_is_taken(app: Opened) -> None:
    tab = app("#tours", bypass_csp=True, reduced_motion="reduce")
    bar = tab.locator("#tour")
    tab.locator(".tour-list li").first.wait_for()
    assert tab.locator(".tour-list li").count() == 9
    for tour in TOURS:
        guess, task, see = tour["steps"]
        tab.get_by_role("button", name=f"Start: {tour['title']}").click()
        bar.get_by_text(guess["say"]).wait_for()
        assert tab.evaluate("location.hash") == guess["view"], tour["id"]
        following = bar.get_by_role("button", name="Next")
        assert following.is_disabled(), "before the guess"
        wrong = (guess["right"] + 1) % len(guess["choices"])
        bar.get_by_role("button", name=guess["choices"][wrong], exact=True).click()
        assert f"It is: {guess['choices'][guess['right']]}." in bar.inner_text()
        tab.keyboard.press("Enter")  # the focus is on Next
        bar.get_by_text(task["say"]).wait_for()
        tab.locator(".chapter[data-ready]").wait_for()
        assert following.is_disabled(), (tour["id"], "it was done before it was begun")
        if "label" in task["done"]:
            where = tab.locator(task["done"].get("within", "#place"))
            where.get_by_label(task["done"]["label"], exact=True).first.wait_for()
            tab.wait_for_timeout(300)  # the tour has looked at the control
            assert following.is_disabled(), (tour["id"], "it was done before it was begun")
        do(tab, tour["id"], task["done"])
        tab.wait_for_function("() => !document.querySelector('#tour .primary').disabled")
        following.click()
        bar.get_by_text(see["say"]).wait_for()
        assert f"cutaway course start {tour['chapter']}" in bar.inner_text()
        if tour["chapter"] == 1:
            tab.evaluate(inputs.path("axe-core").read_text(encoding="utf-8"))
            found = tab.evaluate("axe.run()")["violations"]
            assert not [(one["id"], one["nodes"][0]["html"][:160]) for one in found if one["impact"] in BAD]
        bar.get_by_role("button", name="All tours").click()
        tab.get_by_text("✓ taken").nth(tour["chapter"] - 1).wait_for()
    assert not bar.is_visible()


BAD = ("serious", "critical")


@pytest.mark.parametrize("width", [1280, 400])
def test_a_tour_is_left_and_goes_back(app: Opened, width: int) -> None:
    tab = app("#tours", width=width)
    tab.get_by_role("button", name=f"Start: {TOURS[3]['title']}").click()
    bar = tab.locator("#tour")
    bar.get_by_role("button", name="u + g").click()
    bar.get_by_role("button", name="Next").click()
    bar.get_by_role("button", name="Back").click()
    bar.get_by_text(TOURS[3]["steps"][0]["say"]).wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    bar.get_by_role("button", name="Leave the tour").click()
    assert not bar.is_visible()


FOCUSED = """() => {
    const at = document.activeElement;
    return at.labels?.[0]?.textContent ?? at.ariaLabel ?? at.textContent;
}"""
ASKED = """say => document.activeElement.matches(".tour-say")
    && document.activeElement.textContent.endsWith(say)"""
DONE = """() => !document.querySelector("#tour .primary").disabled"""
STEPS = 150  # keys from one control to another
BY_KEYBOARD = {  # the controls of a tour's task, the key that goes there, and the keys pressed on it
    "probability": [("temperature", "Shift+Tab", ["ArrowRight"] * 15)],
    "names": [("Sentence", "Shift+Tab", ["Control+a", *"Ada"]), ("Use it", "Tab", ["Enter"])],
    "block": [("Embedding", "Shift+Tab", ["ArrowDown", "ArrowDown", "Enter"])],
}


def reach(tab: Any, name: str, key: str = "Tab") -> None:
    """Moves the focus by one key until it is on what begins with a name."""
    passed = []
    for _ in range(STEPS):
        tab.keyboard.press(key)
        passed.append(tab.evaluate(FOCUSED))
        if passed[-1].startswith(name):
            return
    pytest.fail(f"{key} does not reach {name!r}: {[one[:24] for one in passed]}")


@pytest.mark.parametrize("id", BY_KEYBOARD)
def test_a_whole_tour_is_taken_by_keyboard(app: Opened, id: str) -> None:
    tab = app("#tours", reduced_motion="reduce")
    tour = next(one for one in TOURS if one["id"] == id)
    guess, task, see = tour["steps"]
    tab.locator(".tour-list li").first.wait_for()
    reach(tab, f"Start: {tour['title']}")
    tab.keyboard.press("Enter")
    tab.wait_for_function(ASKED, arg=guess["say"])
    reach(tab, guess["choices"][guess["right"]])
    tab.keyboard.press("Space")
    assert tab.get_by_text("That is right.").is_visible()
    assert tab.evaluate(FOCUSED) == "Next", "the focus goes on"
    tab.keyboard.press("Enter")
    tab.wait_for_function(ASKED, arg=task["say"])
    tab.locator(".chapter[data-ready]").wait_for()
    for name, way, keys in BY_KEYBOARD[id]:
        reach(tab, name, way)
        for key in keys:
            tab.keyboard.press(key)
    tab.wait_for_function(DONE)
    reach(tab, "Next")
    tab.keyboard.press("Enter")
    tab.wait_for_function(ASKED, arg=see["say"])
    reach(tab, "All tours")
    tab.keyboard.press("Enter")
    tab.get_by_text("✓ taken").wait_for()
    assert tab.evaluate("document.activeElement.id") == "place", "the focus is kept when the tour's bar goes"
