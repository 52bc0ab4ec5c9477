"""What holds Python's lock while a chat of 2 MB, or of 100 tools, is checked and rendered. A minute.

    python -m scripts.served.lock_holds [--turns 8] [MODEL]

A thread works on the body as a server's thread does, and another wakes every 0.1 ms. What the first computed
(its processor time, which other jobs hardly lengthen) before the second could run again is how long another
thread may have to wait. A line for each place: the median over the turns of the longest such stretch of a
turn. Before them the processor time of a turn. As root the second thread comes before all other jobs.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import threading
import time
import traceback
from collections import defaultdict
from contextlib import suppress
from typing import Any

import cutaway
from cutaway.commands.serve import HANDOVER
from cutaway.errors import UserError
from cutaway.generate.batch.sequence import check_prompt
from cutaway.serve import prompts
from cutaway.serve.openai.schema import ChatCompletionRequest
from cutaway.serve.validation import parse_body
from scripts.served.hostile_tenants import bodies

LEAST = 0.0008  # seconds of a stretch that is shown
FRAMES = 3


def work(lm: Any, raw: bytes) -> None:
    """Check and render a body, as `serve/routes.py` has a thread do it."""
    body = parse_body(ChatCompletionRequest, raw)
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    with suppress(UserError):  # it fills the context
        ids = lm.chat_ids(prompts.messages(body.messages), tools=tools or None)
        check_prompt(ids, lm.tokenizer, lm.engine)


def measured(lm: Any, raw: bytes, turns: int) -> tuple[dict[str, dict[int, float]], list[float]]:
    """Of each place the longest stretch of each turn, and the processor time of the turns."""
    found: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    spent = list[float]()

    def run() -> None:
        for _ in range(turns):
            began = time.thread_time()
            work(lm, raw)
            spent.append(time.thread_time() - began)

    working = threading.Thread(target=run)
    with suppress(OSError, AttributeError):  # not root, or not Linux
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_FIFO, os.sched_param(1))
    working.start()
    with suppress(OSError, AttributeError):  # what starts a thread gives it its own priority
        os.sched_setscheduler(working.native_id or 0, os.SCHED_OTHER, os.sched_param(0))
    clock = time.pthread_getcpuclockid(working.ident or 0)
    with suppress(OSError):  # the thread has ended
        while working.is_alive():
            before = time.clock_gettime(clock)
            time.sleep(0.0001)
            held = time.clock_gettime(clock) - before
            if held > LEAST and (frame := sys._current_frames().get(working.ident or 0)) is not None:
                frames = reversed(traceback.extract_stack(frame)[-FRAMES:])
                place = " < ".join(f"{one.filename.rpartition('/')[2]}:{one.name}" for one in frames)
                found[place][len(spent)] = max(found[place][len(spent)], held)
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_OTHER, os.sched_param(0))
    working.join()
    return found, spent


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("model", nargs="?", default="smollm2")
    asked = parser.parse_args()
    lm = cutaway.load(asked.model, engine="runtime")
    work(lm, json.dumps({"messages": [{"role": "user", "content": "Hello " * 1000}]}).encode())
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(HANDOVER)
    for name, body in bodies()["/v1/chat/completions"]:
        if name in ("2 MB", "100 tools"):
            found, spent = measured(lm, json.dumps(body).encode(), asked.turns)
            print(f"{name}: {1000 * statistics.median(spent):.0f} ms of a processor")
            medians = {one: statistics.median(seen.values()) for one, seen in found.items() if len(seen) > 1}
            for place in sorted(medians, key=medians.__getitem__, reverse=True)[:8]:
                print(f"{1000 * medians[place]:6.1f} ms, {len(found[place])} turns  {place}")


if __name__ == "__main__":
    main()
