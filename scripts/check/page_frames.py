"""How smooth the pages are: frames of an explanation under the pointer, and of a long chat that streams.

    python -m scripts.check.page_frames [--budget 17] [--only chat]

The explanation is of 200 tokens on the real model, and its median frame counts. The chat of 2,000 tokens, in
one answer, in eight, and in one paragraph without a line break, scrolls while it streams; a server of this
script streams it, without a model. There 95% of frames count, and no task of the page's own may take over 50
ms. Exits with 1 where one is over the budget (milliseconds). It wants an idle machine, Chromium and
Playwright. On a busy one the processor's time counts, which is printed below the times that pass: of all the
tasks of a frame on the page's main thread, and of the longest one, from Chromium's trace.
"""

import argparse
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

import cutaway
from cutaway.inspect import page_data
from cutaway.inspect.page import page
from cutaway.inspect.trace import Trace
from cutaway.page import bundle

TOKENS = 200
TEXT = (
    "The quick brown fox jumps over the lazy dog, and the lazy dog sleeps on in the sun by the river. " * 12
)
RECORD = """() => new Promise(done => {
  const times = [];
  const go = now => { times.push(now); now - times[0] < 2000 ? requestAnimationFrame(go) : done(times); };
  requestAnimationFrame(go);
})"""
# The pointer's way is made inside the page, so that no message between two processes is timed.
SWEEP = """([selector, steps]) => {
  const box = document.querySelector(selector);
  const bounds = box.getBoundingClientRect();
  const all = [...box.querySelectorAll('[data-t]')];
  let at = 0;
  const move = () => {
    at++;
    if (all.length) all[at % all.length].dispatchEvent(new PointerEvent('pointerover', { bubbles: true }));
    else box.dispatchEvent(new PointerEvent('pointermove', { bubbles: true,
      clientX: bounds.left + (0.15 + 0.8 * Math.abs(Math.sin(at / 40))) * bounds.width,
      clientY: bounds.top + (0.15 + 0.8 * Math.abs(Math.sin(at / 23))) * bounds.height }));
    if (at < steps) requestAnimationFrame(move);
  };
  requestAnimationFrame(move);
}"""


LONG = 50.0  # milliseconds of a task that a reader notices
RATE = 120  # tokens a second of the answer that is measured
# Scrolls to and fro while an answer streams, and records frames and long tasks until it ends.
WATCH = """() => new Promise(done => {
  const [times, tasks] = [[], []];
  const observer = new PerformanceObserver(list => tasks.push(...list.getEntries().map(one => one.duration)));
  observer.observe({ type: 'longtask' });
  const list = document.querySelector('.turns');
  const go = now => {
    times.push(now);
    list.scrollTop = (0.5 + 0.5 * Math.sin(times.length / 40)) * list.scrollHeight;
    if (document.querySelector('.composer button').textContent === 'Stop') requestAnimationFrame(go);
    else { observer.disconnect(); done([times, tasks]); }
  };
  requestAnimationFrame(go);
})"""


class Stream(BaseHTTPRequestHandler):
    """The page's files, and answers of as many tokens as a message asks for, at a rate or at once."""

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/v1/models":
            return self._answer("application/json", json.dumps({"data": [{"id": "stream"}]}).encode())
        name = "app/shell.html" if path == "/" else path.removeprefix("/page/")
        kinds = {"js": "text/javascript", "css": "text/css", "html": "text/html"}
        return self._answer(
            kinds.get(name.rpartition(".")[2], "application/octet-stream"), bundle.read_bytes(name)
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        count, rate, *paragraph = body["messages"][-1]["content"].split()
        count, rate = int(count), int(rate)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        began = time.perf_counter()
        for i in range(count):
            text = " word" if i % 7 else "\n\n" if i % 140 == 0 and i and not paragraph else " another"
            token = {"token": text, "id": i, "logprob": -(i % 5) / 2, "bytes": list(text.encode())}
            content = [token | {"top_logprobs": [token] * 8}]
            choice = {"delta": {"content": text}, "logprobs": {"content": content}, "finish_reason": None}
            self._event({"choices": [choice]})
            if rate:
                time.sleep(max(0.0, began + i / rate - time.perf_counter()))
        self._event({"choices": [{"delta": {}, "finish_reason": "length"}]})

    def _event(self, event: Any) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def _answer(self, kind: str, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> int:
    """Times the explanation's strip and maps, then the chat."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=17.0)
    parser.add_argument("--only", choices=("explain", "chat"))
    asked = parser.parse_args()
    worst: list[float] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=["--headless", "--no-sandbox", "--disable-gpu"],
        )
        if asked.only != "chat":
            worst += _explanation(browser)
        if asked.only != "explain":
            worst += _chat(browser, "one answer", [(1800, 0), (200, RATE)])
            worst += _chat(browser, "eight answers", [(250, 0)] * 7 + [(250, RATE)])
            worst += _chat(browser, "one of 2,000", [(2000, 400)])
            worst += _chat(browser, "one paragraph", [(1800, 0), (200, RATE)], paragraph=True)
        browser.close()
    return int(max(worst) > asked.budget)


def _explanation(browser: Any) -> list[float]:
    """The median frames of an explanation, while the pointer moves over its parts."""
    lm = cutaway.load("smollm2", engine="pytorch")
    ids = lm.ids(TEXT)[:TOKENS]
    trace = Trace.of(lm.model, lm.tokenizer, ids, page_data.names(lm.model))
    document = page([page_data.build(trace, "smollm2")])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(document, encoding="utf-8")
        tab = browser.new_page(viewport={"width": 1360, "height": 900})
        tab.goto(file.as_uri())
        tab.wait_for_selector("section")
        parts = {"strip": "#strip .chips", "every head": "#attention .heat", "lens": "#lens .heat"}
        return [_timed(tab, name, selector) for name, selector in parts.items()]


def _chat(browser: Any, name: str, answers: list[tuple[int, int]], paragraph: bool = False) -> list[float]:
    """The frame under which 95% are while the last answer streams and the chat scrolls; infinite where a task
    was too long.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tab = browser.new_page(viewport={"width": 1360, "height": 900})
    tab.goto(f"http://127.0.0.1:{server.server_port}/")
    for i, (count, rate) in enumerate(answers[:-1], 1):
        _ask(tab, count, rate, paragraph)
        tab.wait_for_function("n => document.querySelectorAll('.under-answer span').length === n", arg=i)
    tab.wait_for_timeout(500)
    browser.start_tracing(page=tab, categories=["toplevel"])
    _ask(tab, *answers[-1], paragraph)
    tab.wait_for_function("document.querySelector('.composer button').textContent === 'Stop'")
    times, tasks = tab.evaluate(WATCH)
    busy = _processor_time(json.loads(browser.stop_tracing()))
    server.shutdown()
    tab.close()
    deltas = sorted(after - before for before, after in itertools.pairwise(times))
    median, slow = statistics.median(deltas), deltas[int(0.95 * len(deltas))]
    longest = max(tasks, default=0.0)
    frames = f"{len(deltas)} frames, median {median:.1f} ms, 95% under {slow:.1f} ms"
    print(f"{name:<14} {frames}, {len(tasks)} tasks over {LONG:.0f} ms, the longest {longest:.0f} ms")
    each = f"{sum(busy) / len(deltas):.1f} ms a frame, the longest task {max(busy):.0f} ms"
    print(f"{'':<14} of the processor: {each}")
    return [float("inf") if longest > LONG else slow]


def _processor_time(trace: Any) -> list[float]:
    """Milliseconds of the processor of each task on the page's main thread, from Chromium's trace."""
    events = trace["traceEvents"]
    main = {
        (one["pid"], one["tid"])
        for one in events
        if one["name"] == "thread_name" and one["args"]["name"] == "CrRendererMain"
    }
    tasks: dict[Any, list[float]] = {}
    for one in events:
        thread = (one["pid"], one["tid"])
        if thread in main and one["ph"] == "X" and one["name"].endswith("RunTask") and "tdur" in one:
            tasks.setdefault(thread, []).append(one["tdur"] / 1000)
    return max(tasks.values(), key=sum)  # other pages of the browser are idle


def _ask(tab: Page, count: int, rate: int, paragraph: bool = False) -> None:
    tab.get_by_label("Message", exact=True).fill(f"{count} {rate}{' paragraph' if paragraph else ''}")
    tab.keyboard.press("Enter")


def _timed(tab: Page, name: str, selector: str) -> float:
    tab.locator(selector).first.scroll_into_view_if_needed()
    tab.wait_for_timeout(500)
    tab.evaluate(SWEEP, [selector, 200])
    times = tab.evaluate(RECORD)
    deltas = sorted(after - before for before, after in itertools.pairwise(times))
    median, slow = statistics.median(deltas), deltas[int(0.95 * len(deltas))]
    print(f"{name:<12} {len(deltas)} frames, median {median:.1f} ms, 95% under {slow:.1f} ms")
    return median


if __name__ == "__main__":
    sys.exit(main())
