"""Long texts: maps as tiles with the pixels of cells, answers whose parts are laid out where they are
seen, and work that ends with the tab that asked for it.
"""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from cutaway.page import bundle
from tests.browser.conftest import ask
from tests.waiting import wait_until

Opened = Callable[..., Any]

# Draws a map of 300 x 300 cells, scrolled into its tiles, and waits until the first cells in sight are there.
DRAW = """async ([many, broken]) => {
  const { heat, ALONE } = await import(`${location.origin}/page/heat.js`);
  if (broken) globalThis.Worker = class {
    constructor() { queueMicrotask(() => this.onerror()); }
    postMessage() {}
  };
  const frame = () => new Promise(done => requestAnimationFrame(done));
  const made = heat(ALONE, {
    name: 'A map', rows: 300, columns: 300, size: { left: 40, width: [2, 3], tall: 400 }, say: () => '', many,
    rowName: String, columnName: String, colour: (r, c) => (c > r ? null : 1 + (r * 7 + c * 13) % 512),
  });
  document.querySelector('#place').replaceChildren(made.whole);
  made.update();
  [made.box.scrollTop, made.box.scrollLeft] = [333, 41];
  const canvas = made.whole.querySelector('canvas');
  const sheet = new OffscreenCanvas(canvas.width, canvas.height);
  const copy = sheet.getContext('2d', { willReadFrequently: true });
  const pixels = (...box) => {
    copy.clearRect(0, 0, canvas.width, canvas.height);
    copy.drawImage(canvas, 0, 0);
    return copy.getImageData(...box).data;
  };
  const there = () => made.box.scrollTop === 333 && pixels(45, 5, 1, 1)[3] && pixels(45, 390, 1, 1)[3];
  let same = 0;
  for (let before = ''; same < 3;) {
    await frame();
    const now = pixels(0, 0, canvas.width, canvas.height).join();
    same = there() && now === before ? same + 1 : 0;
    before = now;
  }
  return pixels(0, 0, canvas.width, canvas.height).join();
}"""


@pytest.mark.parametrize("broken", [False, True])
def test_tiles_have_the_pixels_of_cells(app: Opened, broken: bool) -> None:
    tab = app("#tours")
    tab.get_by_role("button", name="Start").first.wait_for()
    cells = tab.evaluate(DRAW, [1e9, broken])
    assert not tab.workers
    pairs = zip(tab.evaluate(DRAW, [0, broken]).split(","), cells.split(","), strict=True)
    assert sum(one != other for one, other in pairs) == 0, "numbers of pixels that differ"
    assert len(tab.workers) == (0 if broken else 1), "one worker, where it runs"


def test_a_page_that_is_one_file_names_no_other(opened: Any, pages: Any) -> None:
    assert "import.meta" not in bundle.script("explain/main.js")
    tab = opened(pages())
    tab.locator("#attention .heat").last.wait_for()
    assert not tab.workers


# An answer of 4,000 tokens with a line break after every 140th, in the list of turns.
ANSWER = """async () => {
  const { Answer } = await import(`${location.origin}/page/app/answer.js`);
  const answer = new Answer('Answer', () => {});
  const turn = document.createElement('article');
  turn.className = 'turn';
  turn.append(answer.whole);
  document.querySelector('.turns').replaceChildren(turn);
  for (let i = 0; i < 4000; i++) {
    const text = i % 140 === 139 ? '\\n' : i === 700 ? ' needle' : ' word';
    answer.add({ id: i, text, token: text, logprob: -1, top: [], bytes: [] });
  }
  const frame = () => new Promise(done => requestAnimationFrame(done));
  for (let i = 0; i < 3; i++) await frame();
  document.querySelector('.turns').scrollTop = 0;
  for (let i = 0; i < 3; i++) await frame();
  globalThis.seen = () => [...answer.whole.querySelectorAll('.t')].filter(
    one => one.checkVisibility({ contentVisibilityAuto: true })).length;
}"""


def test_a_long_answer_is_laid_out_where_it_is_seen_and_all_of_it_is_reached(app: Opened) -> None:
    tab = app()
    tab.get_by_label("Message", exact=True).wait_for()
    tab.evaluate(ANSWER)
    assert tab.locator(".answer .t").count() == 4000
    assert 0 < tab.evaluate("() => seen()") < 2000, "the rest is not laid out"
    whole = tab.get_by_role("group", name="Answer")
    assert "needle" in whole.aria_snapshot(), "which is read out"
    whole.press("End")
    assert tab.locator(".picked").get_attribute("data-i") == "3999"
    assert tab.evaluate(
        "() => document.querySelector('.picked').checkVisibility({ contentVisibilityAuto: true })"
    )


def test_an_answer_whose_edits_are_undone_while_it_streams_goes_on(app: Opened) -> None:
    tab = app()
    tab.get_by_label("Message", exact=True).wait_for()
    assert tab.evaluate("""async () => {
      const { Turn } = await import(`${location.origin}/page/app/turn.js`);
      const turn = new Turn({ open() {}, copies: () => [] }, 'question', []);
      const [answer, beside] = [turn.begin({}), turn.begin({}, { edits: [{}] })];
      turn.add(answer);
      turn.pair(beside);
      turn.pair(null);
      answer.changed();
      return true;
    }""")


def test_a_closed_tab_ends_the_work_it_asked_for(
    app: Opened, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab = app()
    ask(tab)
    scheduler, held = server.service.decoder, threading.Event()
    deliver = scheduler.on_step

    def hold() -> None:
        deliver()
        if scheduler._running:
            held.wait(20)

    monkeypatch.setattr(scheduler, "on_step", hold)
    try:
        tab.locator(".answer .t").first.click()
        tab.get_by_role("tab", name="Attention").click()
        wait_until(lambda: scheduler.stats().running == 1, "the text is read")
        tab.close()
        wait_until(lambda: scheduler._running[0].stream.cancelled, "the server sees that the tab is closed")
    finally:
        held.set()
