"""The server's page in a real browser, against a server of this process: chat by mouse and keyboard, tokens
and their alternatives, a text and a conversation followed through the model, keys, failures, hostile text.
"""

import json
import math
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from tests import inputs, serving
from tests.browser.conftest import ask, frames
from tests.serving import AccessPolicy, Server

from cutaway.serve.operations.api_keys import KeyRing  # isort: skip

HOSTILE = "</script><b id=owned>"
Opened = Callable[..., Any]
VIEWS = 12  # of a text that is followed through the model


def test_an_answer_streams_in_as_tokens_that_open(app: Opened, server: Server) -> None:
    tab = app()
    ask(tab)
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 16,
        "seed": 1,
        "temperature": 0.3,
    }
    choice = server.post("/v1/chat/completions", body | {"logprobs": True, "top_logprobs": 8}).json()[
        "choices"
    ][0]
    expected = choice["logprobs"]["content"]
    spans = tab.locator(".answer .t")
    assert spans.count() == len(expected) == 16
    display = "all => [...new Set(all.map(one => getComputedStyle(one).display))]"
    assert spans.evaluate_all(display) == ["inline"], "tokens flow as one text"
    spans.nth(3).click()
    shown = tab.locator("#inspector")
    assert "Token 4 of 16" in shown.inner_text()
    chance = float(shown.locator("strong").inner_text().strip("%<"))
    assert chance == pytest.approx(100 * math.exp(expected[3]["logprob"]), abs=0.06)
    cells = [float(one.strip("%<")) for one in shown.locator("td:nth-child(2)").all_inner_texts()]
    tops = [100 * math.exp(one["logprob"]) for one in expected[3]["top_logprobs"]]
    assert cells == pytest.approx(tops, abs=0.06)
    spans.first.click()
    first = shown.locator("strong").first.inner_text()
    tab.get_by_role("tab", name="Lens").click()
    tab.get_by_text("Logit lens", exact=True).wait_for()
    lens = shown.locator("table").last.locator("tbody tr")
    assert lens.count() == 3, "of the embedding and two layers"
    assert lens.last.locator("td").nth(2).inner_text() == first, "the last block's is the model's"
    kinds = {
        kind for one in spans.all() for kind in one.get_attribute("class").split() if kind.startswith("p")
    }
    assert kinds <= {"p0", "p1", "p2", "p3", "p4", "picked"}
    assert tab.locator("#announce").inner_text().startswith("Answer: ")


def test_an_answer_goes_on_from_another_token(app: Opened, server: Server) -> None:
    tab = app()
    ask(tab)
    first = tab.locator(".answer").inner_text()
    tab.locator(".answer .t").nth(2).click()
    tab.get_by_role("button", name="Continue from").first.click()
    tab.get_by_text("2 of 2").wait_for()
    tab.get_by_role("button", name="Copy as curl").wait_for()
    frames(tab)
    assert tab.locator(".answer .given").count() == 3, "what was kept, and the other token"
    assert tab.locator(".answer .picked").inner_text() == tab.locator(".answer .given").last.inner_text()
    assert tab.locator(".answer").inner_text() != first
    tab.get_by_role("button", name="The version before").click()
    assert tab.locator(".answer").inner_text() == first and tab.get_by_text("1 of 2").is_visible()


def test_chat_by_keyboard(app: Opened) -> None:
    tab = app()
    ask(tab)
    tab.locator(".answer").focus()
    for key, says in (
        ("ArrowRight", "Token 1 of 16"),
        ("ArrowRight", "Token 2 of 16"),
        ("End", "Token 16 of 16"),
        ("Home", "Token 1 of 16"),
    ):
        tab.keyboard.press(key)
        assert says in tab.locator("#inspector").inner_text()
    tab.keyboard.press("Escape")
    assert not tab.locator("#inspector").is_visible()
    assert "answer" in tab.locator(":focus").get_attribute("class"), "the focus was lost"


def test_a_text_and_a_token_of_a_chat_are_followed_through_the_model(app: Opened, server: Server) -> None:
    tab = app("#inside/the%20same%20the")
    tab.locator("#views section").first.wait_for()
    assert tab.locator("#views section").count() == VIEWS
    lm = server.service.lm
    best = lm.trace("the same the").top(1)[0]
    assert float(tab.locator("#next td:nth-child(4)").first.inner_text().strip("%")) == pytest.approx(
        100 * best.probability, abs=0.06
    )
    tab.get_by_role("link", name="Chat").click()
    ask(tab)
    token = tab.locator(".answer .t").nth(2)
    before = tab.locator(".answer .t").nth(1).inner_text()
    token.click()
    tab.get_by_role("button", name="Look inside").click()
    tab.get_by_text("as the chat template writes it").wait_for()
    assert tab.locator("#strip .chip").last.inner_text().replace("␣", " ").strip() == before.strip()


def test_the_first_trace_is_preceded_by_a_recording(app: Opened) -> None:
    tab, held = app(), list[Any]()
    tab.get_by_label("Message", exact=True).wait_for()
    tab.route("**/v1/trace", lambda route: held.append(route))
    tab.get_by_role("link", name="Inside").click()
    tab.get_by_text("A recording of SmolLM2-135M").wait_for()
    assert tab.locator("#views section").count() == VIEWS
    lenses = ["Jacobian lens", "logit lens", "random rotation (control)"]
    assert tab.locator("#lens option").all_inner_texts() == lenses
    assert "␣Paris" in tab.locator("#next tbody tr").first.inner_text()
    held[0].continue_()
    tab.get_by_text("A recording of SmolLM2-135M").wait_for(state="detached")
    assert "␣Paris" not in tab.locator("#next tbody tr").first.inner_text(), "of two layers"


def test_a_key_is_asked_for_and_kept_in_memory_alone(app: Opened) -> None:
    with serving.running(serving.model(), AccessPolicy(keys=KeyRing(("the-key-of-this-test",)))) as locked:
        tab = app(at=locked)
        tab.get_by_label("API key").fill("wrong")
        tab.keyboard.press("Enter")
        tab.get_by_text("This API key is wrong").wait_for()
        tab.get_by_label("API key").fill("the-key-of-this-test")
        tab.keyboard.press("Enter")
        ask(tab)
        assert (
            "the-key-of-this-test" not in tab.url
            and tab.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        )
        tab.problems[:] = [
            one for one in tab.problems if "401" not in one
        ]  # the browser's own note of a refusal
        tab.context.close()


def test_a_server_that_is_gone_is_looked_for(app: Opened) -> None:
    tab = app()
    tab.get_by_label("Message", exact=True).wait_for()
    tab.route("**/v1/**", lambda route: route.abort())
    tab.route("**/health", lambda route: route.abort())
    tab.get_by_label("Message", exact=True).fill("hello")
    tab.keyboard.press("Enter")
    tab.get_by_text("It is tried again until it does").wait_for()
    tab.unroute("**/v1/**")
    tab.unroute("**/health")
    tab.locator(".banner").wait_for(state="hidden")
    ask(tab)
    tab.problems[:] = [one for one in tab.problems if "ERR_FAILED" not in one]


def test_text_stays_text(app: Opened) -> None:
    tab = app(f"#inside/{HOSTILE}%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    assert tab.get_by_label("Text").input_value() == f"{HOSTILE}<img src=x onerror=alert(1)>"
    tab.get_by_role("link", name="Chat").click()
    ask(tab, HOSTILE)
    assert tab.locator(".user").inner_text() == HOSTILE
    assert tab.locator("#owned, img").count() == 0


def test_hostile_tokens_names_and_addresses_stay_text_in_their_place(app: Opened, server: Server) -> None:
    """Tokens of a model, its name, and an address: no markup, no reversed text, nothing over other lines."""
    texts = [
        "<b id=owned>",
        "\u202eevil",
        "a\u200bb\0",
        "o" + "\u0301" * 10_000,
        "</script><img src=x onerror=alert(1)>",
    ]
    spans = [
        "<b id=owned>",
        "\\u202eevil",
        "a\\u200bb\\x00",
        "o" + "\u0301" * 6 + "[9994 more marks]",
        texts[4],
    ]
    logprobs = [
        {"id": 3, "token": one, "logprob": -1.0, "bytes": list(one.encode()), "top_logprobs":
         [{"id": 3, "token": one, "logprob": -1.0, "bytes": list(one.encode())}]}
        for one in texts
    ]  # fmt: skip
    choice = {"index": 0, "delta": {"content": "".join(texts)}, "logprobs": {"content": logprobs}}
    events = [{"prompt_token_ids": [1], "choices": [choice | {"finish_reason": "stop"}]}]
    tab = app()
    tab.goto("about:blank")
    name = HOSTILE + "\u202e"
    tab.route(
        "**/v1/models", lambda route: route.fulfill(json={"data": [{"id": name, "max_model_len": 9}] * 2})
    )
    body = "".join(f"data: {json.dumps(one)}\n\n" for one in events) + "data: [DONE]\n\n"
    tab.route(
        "**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream")
    )
    given = quote(json.dumps({"message": "<b id=owned>\u202e\0"}))
    tab.goto(f"{server.url}/#chat/{given}")
    message = tab.get_by_label("Message", exact=True)
    assert message.input_value().startswith("<b id=owned>")
    ask(tab, "<b id=owned>\u202e")
    assert tab.locator(".user").inner_text() == "<b id=owned>\\u202e"
    assert tab.locator(".answer .t").all_text_contents() == spans
    tab.locator(".answer .t").nth(3).click()
    assert tab.locator("#inspector .big").inner_text() == spans[3]
    for place in (
        "#tree/<img>",
        "#training/%00<b id=owned>",
        "#how/<b id=owned>/<b id=owned>",
        "#safety/\u202e",
    ):
        tab.evaluate("to => { location.hash = to; }", place)
        tab.locator("#place > *").first.wait_for()
    assert tab.locator("#owned, img, b").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1280
    tab.context.close()  # from here on no answer comes: a model that is not there was asked
    tab.problems[:] = [one for one in tab.problems if "404" not in one]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_the_page_is_accessible_and_fits(app: Opened, width: int, scheme: str) -> None:
    tab = app(width=width, color_scheme=scheme, reduced_motion="reduce", bypass_csp=True)
    ask(tab)
    tab.locator(".answer .t").nth(1).click()
    tab.evaluate(inputs.path("axe-core").read_text(encoding="utf-8"))

    def check(what: str) -> None:
        found = tab.evaluate("axe.run()")["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert not [(what, one["id"], one["nodes"][0]["html"][:160]) for one in serious]
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, what

    check("alternatives")
    for name, seen in (("Attention", "attends to"), ("Lens", "Logit lens"), ("Why", "Causal check")):
        tab.get_by_role("tab", name=name).click()
        tab.locator("#panel h3").get_by_text(seen).wait_for()
        check(name)
    tab.get_by_role("button", name="Switch off MLP 1").click()
    tab.get_by_text("What the edits change").wait_for()
    check("pair")
    tab.get_by_role("link", name="Tree").click()
    tab.get_by_role("treeitem").first.wait_for()
    check("tree")
    tab.get_by_role("link", name="Inside").click()
    tab.locator("#views section").first.wait_for()
    check("inside")
