"""Opened tokens, counterfactual answers and the tree of answers in a real browser, by mouse and keyboard."""

import itertools
import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cutaway
from cutaway.inspect.edits import Scale
from tests import serving
from tests.browser.conftest import ask, frames
from tests.serving import Server

from cutaway.serve.operations.metrics import Metrics  # isort: skip
from cutaway.serve.operations.models import Model  # isort: skip
from cutaway.serve.service import Limits, Service  # isort: skip

Opened = Callable[..., Any]
TEMPERATURE, SEED, LONGEST = 0.3, 1, 16
KEYS = ("End", "Home", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "Enter")  # to head 1.2
SOURCES = {"system": "system message", "user": "message of the user", "tool": "what a tool returned"}


def asked_ids(server: Server, text: str = "hello") -> list[int]:
    return server.service.lm.chat_ids([{"role": "user", "content": text}])


def generated(server: Server, edit: Any = None) -> Any:
    """What Python generates for the page's request."""
    lm = server.service.lm
    options: dict[str, Any] = {"max_tokens": LONGEST, "temperature": TEMPERATURE, "seed": SEED}
    return lm.generate(asked_ids(server), edit=edit, **options)


def open_token(tab: Any, at: int, panel: str) -> None:
    tab.locator(".answer .t").nth(at).click()
    tab.get_by_role("tab", name=panel).click()


def percents(cells: Any) -> list[float]:
    return [float(one.strip("%<")) for one in cells.all_inner_texts()]


# ---- an opened token ---------------------------------------------------------------------------------------


def test_where_the_heads_attended(app: Opened, server: Server) -> None:
    tab = app()
    ask(tab)
    open_token(tab, 5, "Attention")
    heading = tab.locator("#panel h3").nth(1)
    heading.wait_for()
    ids = [*asked_ids(server), *generated(server).ids[:5]]
    weights = server.service.lm.trace(ids).attention(1)
    map = tab.locator("#panel .heat").first
    map.focus()
    for key in KEYS:
        tab.keyboard.press(key)
    frames(tab)
    assert heading.inner_text() == "Layer 1, head 2 attends to"
    best = weights[2, -1].argsort()[::-1][:4]
    rows = tab.locator("#panel table tbody tr")
    assert [int(one) for one in rows.locator("td:nth-child(2)").all_inner_texts()] == best.tolist()
    shown = percents(rows.locator("td:nth-child(3)"))
    assert shown == pytest.approx([100 * float(weights[2, -1, at]) for at in best], abs=0.5)
    # and the other way: of all heads the one that attends most to a token
    at = int(best[0])
    tab.get_by_label("Heads that attend most to").select_option(str(at))
    every = server.service.lm.trace(ids)
    on = {(n, h): float(every.attention(n)[h, -1, at]) for n in range(2) for h in range(9)}
    layer, head = max(on, key=lambda one: on[one])
    first = tab.locator(".by-token button").first
    assert first.inner_text().startswith(f"{layer}.{head} ")
    first.click()
    assert heading.inner_text() == f"Layer {layer}, head {head} attends to"
    map.focus()
    for key in KEYS:
        tab.keyboard.press(key)
    tab.get_by_role("button", name="Whole map").click()
    tab.get_by_role("application", name="Attention map of layer 1, head 2").wait_for()
    tab.get_by_role("button", name="Switch this head off").click()
    assert tab.locator(".edit-chip").inner_text().startswith("head 1.2")


def test_why_a_token(app: Opened, server: Server) -> None:
    tab = app()
    ask(tab)
    open_token(tab, 4, "Why")
    tab.get_by_text("Causal check").wait_for()
    made = generated(server).ids
    body = {"prompt_token_ids": [*asked_ids(server), *made[:4]], "token": made[4], "check": 4, "samples": 5}
    found = server.post("/v1/attribution", body).json()
    panel = tab.locator("#panel")
    assert f"is {found['logit']:.2f}".replace("-", "−") in panel.inner_text()
    tables = panel.locator("table")
    parts = [
        float(one.replace("−", "-")) for one in tables.nth(0).locator("td:nth-child(2)").all_inner_texts()
    ]
    assert sum(parts[:-1]) == pytest.approx(parts[-1], abs=0.05), "the parts sum to the logit"
    check = percents(tables.nth(2).locator("td:nth-child(2)"))
    mean = sum(one["probability"] for one in found["check"]["random"]) / 5
    expected = [found["token"]["probability"], found["check"]["writers"]["probability"], mean]
    assert check == pytest.approx([100 * one for one in expected], abs=0.06)
    other = tab.get_by_label("Why this, and not")
    other.select_option(index=1)
    tab.get_by_text("by which it leads").wait_for()
    assert tab.locator(":focus").get_attribute("id") == "against", "the focus was lost"


def test_what_is_no_longer_looked_at_is_cancelled_and_what_is_known_is_not_asked(app: Opened) -> None:
    tab, held, failed = app(), list[Any](), list[str]()
    ask(tab)
    tab.route("**/v1/attention", lambda route: held.append(route))
    tab.on("requestfailed", lambda request: failed.append(request.url))
    open_token(tab, 3, "Attention")
    tab.wait_for_timeout(200)
    tab.keyboard.press("Escape")
    frames(tab, 6)
    assert len(held) == 1 and [one.rpartition("/")[2] for one in failed] == ["attention"]
    tab.unroute("**/v1/attention")
    asked = list[str]()
    tab.on("request", lambda request: asked.append(request.url))
    for at in (3, 4, 3):
        tab.locator(".answer .t").nth(at).click()
        tab.locator("#panel h3").nth(1).wait_for()
        tab.wait_for_timeout(120)
    assert len(asked) == 2, "the third is known"


def test_panels_by_keyboard(app: Opened) -> None:
    tab = app()
    ask(tab)
    tab.locator(".answer").focus()
    tab.keyboard.press("ArrowRight")
    tab.get_by_role("tab", name="Alternatives").focus()
    for key, name in (
        ("ArrowRight", "Attention"),
        ("End", "Why"),
        ("ArrowLeft", "Features"),
        ("ArrowLeft", "Lens"),
        ("Home", "Alternatives"),
    ):
        tab.keyboard.press(key)
        chosen = tab.locator("[role=tab][aria-selected=true]")
        assert chosen.inner_text() == name and tab.locator(":focus").inner_text() == name


# ---- edits -------------------------------------------------------------------------------------------------


def test_edits_answer_again_beside(app: Opened, server: Server) -> None:
    tab = app()
    ask(tab)
    plain, edited = generated(server), generated(server, [Scale(1, "mlp", strength=0.0)])
    tab.get_by_label("switch off", exact=True).select_option("mlp")
    tab.get_by_label("layer", exact=True).fill("1")
    tab.get_by_role("button", name="Add", exact=True).click()
    tab.get_by_text("What the edits change").wait_for()
    tab.get_by_role("button", name="Copy as Python").nth(1).wait_for()  # both answers have ended
    frames(tab)
    columns = tab.locator(".column")
    assert columns.locator(".column-name").all_inner_texts() == ["Without edits", "MLP 1 off"]
    assert columns.locator(".answer").all_text_contents() == [plain.text, edited.text]
    pairs = enumerate(zip(plain.ids, edited.ids, strict=True))
    first = next(i for i, (one, other) in pairs if one != other)
    assert tab.get_by_text(f"They differ from token {first + 1} on.").is_visible()
    marked = columns.locator(".differs").evaluate_all("all => all.map(one => Number(one.dataset.i))")
    assert marked == [first, first]
    columns.nth(1).locator(".t").nth(first).click()
    ids = [*asked_ids(server), *plain.ids[:first]]
    body = {"prompt_token_ids": ids, "positions": [-1]}
    body["edits"] = [{"kind": "scale", "layer": 1, "part": "mlp", "strength": 0}]
    (kl,) = server.post("/v1/divergence", body).json()["kl"]
    assert f"{kl:.3f} nats" in tab.locator("#inspector").inner_text()
    # a strength between, off by its switch, and back
    tab.get_by_label("Strength of MLP 1").fill("0.5")
    tab.keyboard.press("Tab")
    tab.get_by_text("MLP 1 × 0.5").wait_for()
    half = generated(server, [Scale(1, "mlp", strength=0.5)])
    tab.wait_for_function(
        "text => document.querySelectorAll('.column .answer')[1]?.textContent === text", arg=half.text
    )
    tab.locator(".edit-chip input[type=checkbox]").uncheck()
    tab.locator(".pair").wait_for(state="detached")
    assert tab.locator(".answer").text_content() == plain.text
    for _ in range(3):
        tab.get_by_role("button", name="Undo").click()
    assert not tab.locator(".tray").is_visible(), "nothing is left to undo"


def test_a_direction_between_two_texts_is_added(app: Opened, server: Server) -> None:
    tab = app()
    ask(tab)
    tab.get_by_label("switch off", exact=True).select_option("direction")
    tab.get_by_label("layer", exact=True).fill("0")
    tab.get_by_label("towards").fill("one two")
    tab.get_by_label("away from").fill("three")
    tab.get_by_role("button", name="Add", exact=True).click()
    with tab.expect_request("**/v1/chat/completions") as sent:
        pass
    (edit,) = json.loads(sent.value.post_data)["edits"]
    lm = server.service.lm
    ends = [lm.trace(text)["blocks.0.out"][-1] for text in ("one two", "three")]
    assert edit["kind"] == "add" and edit["layer"] == 0 and edit["strength"] == 1
    assert edit["vector"] == pytest.approx((ends[0] - ends[1]).tolist(), abs=1e-3)
    tab.get_by_text("added 1 times").wait_for()


def test_two_pages_do_not_see_each_others_edits(app: Opened, server: Server) -> None:
    one, other = app(), app()
    ask(one)
    one.get_by_label("layer", exact=True).fill("1")
    one.get_by_role("button", name="Add", exact=True).click()
    one.locator(".pair").wait_for()
    ask(other)
    assert other.locator(".answer").text_content() == generated(server).text
    assert not other.locator(".tray").is_visible()


def test_two_models_answer_side_by_side(app: Opened) -> None:
    def first_layer() -> Service:
        lm, limits = serving.model(1), Limits()
        return Service(lm, "one-layer", limits.scheduler(lm.engine, lm.tokenizer), limits, Metrics())

    with serving.running(serving.model(), others=[Model("one-layer", first_layer)]) as both:
        tab = app(at=both)
        tab.get_by_label("answer beside").select_option("one-layer")
        ask(tab)
        tab.locator(".column").nth(1).get_by_role("button", name="Copy as curl").wait_for()
        names = tab.locator(".column-name").all_inner_texts()
        assert names == [serving.NAME, "one-layer"]
        tab.locator(".differs").nth(1).wait_for(
            state="attached"
        )  # each answer is marked in a frame of its own
        answers = tab.locator(".column .answer").all_text_contents()
        assert answers[0] != answers[1] and tab.locator(".differs").count() == 2
        tab.get_by_text("They are models of their own").wait_for()
        tab.context.close()
        tab.problems[:] = [one for one in tab.problems if "404" not in one]  # the browser's own note of it


def test_answers_and_numbers_are_copied_as_commands(
    app: Opened, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tab = app(permissions=["clipboard-read", "clipboard-write"])
    ask(tab)
    tab.get_by_label("switch off", exact=True).select_option("mlp")
    tab.get_by_role("button", name="Add", exact=True).click()
    tab.get_by_role("button", name="Copy as Python").nth(1).wait_for()  # both answers have ended
    frames(tab)
    monkeypatch.setattr(cutaway, "load", lambda name: server.service.lm)
    for i, text in enumerate(tab.locator(".column .answer").all_text_contents()):
        tab.get_by_role("button", name="Copy as Python").nth(i).click()
        exec(tab.evaluate("() => navigator.clipboard.readText()"), {})
        assert capsys.readouterr().out == text + "\n"
    open_token(tab, 3, "Lens")
    tab.locator("#panel").get_by_role("button", name="Copy as curl").click()
    tab.locator("#panel").get_by_text("Copied").wait_for()
    command = tab.evaluate("() => navigator.clipboard.readText()")
    body = json.loads(command.partition("-d '")[2].removesuffix("'"))
    assert command.startswith(f"curl {server.url}/v1/lens ")
    found = server.post("/v1/lens", body).json()["logit_lens"][-1]["probability"]
    assert percents(tab.locator("#panel tr:last-child td:nth-child(3)"))[-1] == pytest.approx(
        100 * found, abs=0.06
    )


# ---- the tree ----------------------------------------------------------------------------------------------


def test_answers_are_a_tree(app: Opened, server: Server, tmp_path: Path) -> None:
    tab = app()
    ask(tab)
    tab.locator(".answer .t").nth(2).click()
    tab.get_by_role("button", name="Continue from").first.click()
    tab.get_by_text("2 of 2").wait_for()
    tab.get_by_role("button", name="Copy as curl").wait_for()  # the second answer has ended
    tab.get_by_role("button", name="Tree of answers").click()
    tree = tab.get_by_role("tree")
    items = tree.get_by_role("treeitem")
    items.nth(2).wait_for()
    assert items.count() == 3, "what both share, and two branches"
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": LONGEST, "seed": SEED}
    body |= {"temperature": TEMPERATURE, "logprobs": True, "top_logprobs": 8, "return_token_ids": True}
    tokens = server.post("/v1/chat/completions", body).json()["choices"][0]["logprobs"]["content"]
    shared = sum(one["logprob"] for one in tokens[:2])
    other = next(one for one in tokens[2]["top_logprobs"] if one["id"] != tokens[2]["id"])
    mass = math.exp(shared) * (math.exp(tokens[2]["logprob"]) + math.exp(other["logprob"]))
    with tab.expect_download() as saved:
        tab.get_by_role("button", name="Save as JSON").click()
    saved.value.save_as(tmp_path / "answers.json")
    root = json.loads((tmp_path / "answers.json").read_text("utf-8"))
    assert root["question"] == "hello" and len(root["token_ids"]) == 2
    assert root["joint_probability"] == pytest.approx(math.exp(shared), rel=1e-6)
    branches = {one["token_ids"][0]: one for one in root["children"]}
    assert branches.keys() == {tokens[2]["id"], other["id"]}
    assert branches[other["id"]]["probability_here"] == pytest.approx(math.exp(other["logprob"]), rel=1e-6)
    whole = branches[tokens[2]["id"]]
    assert whole["joint_logprob"] == pytest.approx(sum(one["logprob"] for one in tokens), abs=1e-6)
    if mass >= 0.001:
        assert f"{100 * mass:.1f}%: the explored mass" in tab.locator(".tree-place").inner_text()
    with tab.expect_download() as saved:
        tab.get_by_role("button", name="Save as SVG").click()
    saved.value.save_as(tmp_path / "answers.svg")
    drawn = ElementTree.parse(tmp_path / "answers.svg").getroot()
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg" and len(drawn.findall(".//{*}g")) == 3


def test_the_tree_by_keyboard(app: Opened) -> None:
    tab = app()
    ask(tab)
    tab.locator(".answer .t").nth(2).click()
    tab.get_by_role("button", name="Continue from").first.click()
    tab.get_by_text("2 of 2").wait_for()
    tab.get_by_role("button", name="Copy as curl").wait_for()  # the second answer has ended
    tab.get_by_role("button", name="Tree of answers").click()
    items = tab.get_by_role("treeitem")
    items.nth(2).wait_for()
    items.first.focus()
    at = "(one => one.getAttribute('aria-level') + (one.matches(':last-child') ? ' last' : ''))"
    steps = {"ArrowDown": "2", "End": "2 last", "ArrowLeft": "1 last", "ArrowRight": "2", "Home": "1 last"}
    for key, expected in steps.items():
        tab.keyboard.press(key)
        assert tab.evaluate(f"{at}(document.activeElement)") == expected, key
    tab.keyboard.press("ArrowLeft")
    assert items.first.get_attribute("aria-expanded") == "false" and items.count() == 1
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("End")
    tab.keyboard.press("Enter")
    assert "Token 3" in tab.locator("#inspector").inner_text()
    assert items.last.get_attribute("aria-selected") == "true"
    tab.keyboard.press("Escape")
    assert tab.locator(":focus").get_attribute("aria-level") == "2", "the focus was lost"
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="Continue from").last.click()
    tab.wait_for_function("() => document.querySelectorAll('[role=treeitem]').length === 4")


def test_a_branch_begins_while_another_is_answered(app: Opened) -> None:
    tab = app()
    ask(tab)
    held: list[Any] = []
    tab.route("**/v1/chat/completions", lambda route: held.append(route))
    tab.locator(".answer .t").nth(2).click()
    for count in (2, 3):
        tab.get_by_role("button", name="Continue from").first.click()
        tab.get_by_text(f"{count} of {count}").wait_for()
    for route in held:
        route.continue_()
    tab.get_by_role("button", name="Copy as curl").wait_for()
    tab.get_by_role("button", name="Tree of answers").click()
    tab.get_by_role("treeitem").first.wait_for()


# ---- safety ------------------------------------------------------------------------------------------------


def test_who_wrote_a_line_and_which_heads_read_it(app: Opened, server: Server, tmp_path: Path) -> None:
    tab = app(reduced_motion="reduce")
    tab.set_default_timeout(60_000)
    tab.get_by_text("Settings, edits and colours").click()
    tab.get_by_label("longest answer").fill(str(LONGEST))
    tab.get_by_role("link", name="Safety").click()
    place = tab.locator(".safety")
    with tab.expect_request("**/v1/chat/completions") as sent:
        place.get_by_role("button", name="Answer", exact=True).click()
    seed = json.loads(sent.value.post_data)["seed"]
    place.get_by_text("others, mean of 7 draws").wait_for()
    request = {name: place.get_by_label(label).input_value() for name, label in SOURCES.items()}
    call = {"id": "call00000", "type": "function", "function": {"name": "open_page", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": request["system"]},
        {"role": "user", "content": request["user"]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": request["tool"], "tool_call_id": "call00000"},
    ]
    found = server.post("/v1/chat/sources", {"messages": messages}).json()
    shown = place.locator(".conversation .s")
    assert "".join(shown.all_text_contents()) == "".join(one["text"] for one in found["runs"])
    tools = place.locator(".conversation .s-tool").all_text_contents()
    assert "".join(tools) == request["tool"], "colour and line of the tool's characters"
    line = place.locator(".conversation [aria-pressed=true]")
    assert line.count() == 1 and line.inner_text().startswith("Ignore the question")
    # the table's first head: its mean attention to the line, by lm.trace
    row = place.locator(".heads table").first.locator("tbody tr").first
    layer, head = map(int, row.locator("td").first.inner_text().split("."))
    ids = [one["id"] for one in found["tokens"]]
    whole = "".join(one["text"] for one in found["runs"]).encode()
    ends = list(itertools.accumulate(one["bytes"] for one in found["tokens"]))
    start = whole.index(b"Ignore the question")
    stop = start + len(request["tool"].splitlines()[1].encode())
    read = [n for n, end in enumerate(ends) if end > start and end - found["tokens"][n]["bytes"] < stop]
    made = tab.locator(".safety .answer .t").count()
    answer = server.service.lm.generate(ids, max_tokens=LONGEST, temperature=TEMPERATURE, seed=seed).ids[
        :made
    ]
    weights = server.service.lm.trace([*ids, *answer[:7]]).attention(layer)[head]
    sent = (np.rint(255 * np.sqrt(weights[len(ids) - 1 :, read])) / 255) ** 2  # as bytes, by the API
    assert percents(row.locator("td:nth-child(2)")) == pytest.approx([100 * sent.sum(-1).mean()], abs=0.06)
    # heads that are switched off answer again beside
    place.get_by_role("button", name="Switch the first 4 off").click()
    place.locator(".pair").wait_for()
    assert tab.locator(".edit-chip").count() == 4
    # a report opens at its token
    look = {"ids": ids[:6], "position": 3, "note": "<i>here</i>", "layer": 1, "head": 2}
    arm = {"name": "a", "role": "attack", "unit": "rate", "rate": 0.5, "interval": [0.2, 0.8], "n": 9}
    finding = {"probe": "forgery", "title": "t", "verdict": "vulnerable", "arms": [arm], "look": [look]}
    report = tmp_path / "results.json"
    report.write_text(json.dumps({"model": "m", "probes": {"forgery": {"findings": [finding]}}}))
    place.get_by_label("results.json").set_input_files(report)
    assert "50.0% (20.0% to 80.0%, n 9)" in place.get_by_role("region", name="Findings").inner_text()
    place.get_by_role("button", name="Open the model at this token").click()
    tab.locator("#views section").first.wait_for()
    frames(tab)
    assert tab.locator("#strip [aria-pressed=true]").get_attribute("data-t") == "3"
    (tmp_path / "other.json").write_text("[]")
    tab.get_by_role("link", name="Safety").click()
    place.get_by_label("results.json").set_input_files(tmp_path / "other.json")
    place.get_by_text("other.json is no results.json of cutaway attack").wait_for()


def test_safety_answers_while_the_chat_does_and_its_last_question_alone(app: Opened) -> None:
    tab = app(reduced_motion="reduce")
    tab.set_default_timeout(60_000)
    asked: list[Any] = []  # the first two, of the chat and of Safety, are not answered

    def hold(route: Any) -> None:
        asked.append(route)
        if len(asked) > 2:
            route.continue_()

    tab.route("**/v1/chat/completions", hold)
    tab.get_by_text("Settings, edits and colours").click()
    tab.get_by_label("longest answer").fill(str(LONGEST))
    tab.locator("#message").fill("hello")
    tab.get_by_role("button", name="Send").click()
    tab.get_by_role("button", name="Stop").wait_for()
    tab.get_by_role("link", name="Safety").click()
    place = tab.locator(".safety")
    for _ in range(2):
        with tab.expect_request("**/v1/chat/completions"):
            place.get_by_role("button", name="Answer", exact=True).click()
    place.get_by_text("others, mean of 7 draws").wait_for()
    assert place.locator(".turn").count() == 1 and place.locator(".answer .t").count() > 0
    assert asked[1].request.failure == "net::ERR_ABORTED", "a question that is asked again has one answer"
    asked[0].continue_()
    tab.get_by_role("link", name="Chat").click()
    tab.get_by_role("button", name="Send").wait_for()
    assert tab.locator(".turns .turn").first.locator(".answer .t").count() > 0


# ---- share -------------------------------------------------------------------------------------------------


def test_a_view_is_shared(
    app: Opened, server: Server, browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tab = app("#inside/the%20same", permissions=["clipboard-read", "clipboard-write"])
    tab.locator("#views section").first.wait_for()
    share = tab.locator(".share")
    share.locator("summary").click()
    for name in ("Save view as HTML", "Save as interactive HTML"):
        with tab.expect_download() as saved:
            share.get_by_role("button", name=name, exact=True).click()
        saved.value.save_as(tmp_path / "saved.html")
        page = browser.new_page()
        problems: list[str] = []
        page.on("console", lambda line, problems=problems: problems.append(line.text))
        page.on("request", lambda asked, problems=problems: problems.append(asked.url))
        page.goto((tmp_path / "saved.html").as_uri())
        page.locator("#next, #views #next").first.wait_for()
        assert "the same" in page.locator("body").inner_text()
        assert [one for one in problems if not one.startswith(("file:", "data:"))] == [], name
        page.close()
    # the request of the view's numbers, as Python
    share.get_by_role("button", name="Python").first.click()
    code = tab.evaluate("() => navigator.clipboard.readText()")
    assert "/v1/trace" in code and "urllib.request" in code
    # a chat's link fills the form of another page, and asks nothing
    tab.get_by_role("link", name="Chat").click()
    ask(tab, "hello <b>")
    open_token(tab, 3, "Lens")
    tab.get_by_text("Logit lens", exact=True).wait_for()
    share.locator("summary").click()
    share.get_by_role("button", name="Python").first.click()
    exec(tab.evaluate("() => navigator.clipboard.readText()"), {})
    assert "logit_lens" in capsys.readouterr().out
    share.get_by_role("button", name="Copy link").click()
    link = tab.evaluate("() => navigator.clipboard.readText()")
    other = app(link.removeprefix(f"{server.url}/"))
    assert other.get_by_label("Message", exact=True).input_value() == "hello <b>"
    other.get_by_text("Settings, edits and colours").click()
    assert other.get_by_label("seed").input_value() == str(SEED) and other.locator(".answer").count() == 0
    for wrong in (
        "#chat/%7B",
        "#chat/[1]",
        "#chat/" + "x" * 9000,
        "#training/%E0%A4%A",
        "#how/../..",
        "#x/y",
    ):
        hostile = app(wrong)
        hostile.locator("#places a[aria-current]").wait_for()
        hostile.context.close()


def test_lenses_of_long_words_fit_the_inspector(app: Opened) -> None:
    tab = app()

    def longer(route: Any) -> None:
        found = route.fetch().json()
        for one in found["logit_lens"]:
            one["top"][0]["text"] = " incomprehensibilities"
        route.fulfill(json=found | dict.fromkeys(("jacobian_lens", "random_lens"), found["logit_lens"]))

    tab.route("**/v1/lens", longer)
    ask(tab)
    open_token(tab, 3, "Lens")
    tab.locator("#panel th").get_by_text("control").wait_for()
    assert tab.locator("#inspector").evaluate("one => one.scrollWidth <= one.clientWidth")
