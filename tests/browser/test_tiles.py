"""Large maps as tiles: their pixels are those of cells drawn one by one, by the worker and without it."""

from collections.abc import Callable
from typing import Any

import pytest

from cutaway.page import bundle

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
    assert tab.evaluate(DRAW, [0, broken]) == cells
    assert len(tab.workers) == (0 if broken else 1), "one worker, where it runs"


def test_a_page_that_is_one_file_names_no_other(opened: Any, pages: Any) -> None:
    assert "import.meta" not in bundle.script("explain/main.js")
    tab = opened(pages())
    tab.locator("#attention .heat").last.wait_for()
    assert not tab.workers
