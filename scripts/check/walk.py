"""The files of the package that one request walks through, and how often it goes from one to another.

    python -m scripts.check.walk [--show]

Four walks on SmolLM2's first two layers: a prompt without a server, the same with an edit of the model, a
chat of one token, and a chat that a JSON schema holds. Each is walked twice before, so that nothing is
imported or built on the way. A switch is a call into another file than the last one in the same thread, or a
coroutine that goes on there. ``--show`` prints each way. A minute; exit code 1 where a walk is longer than
its limits.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import cutaway
from cutaway.inspect.edits import Ablate

PACKAGE = str(Path(cutaway.__file__).parent) + "/"
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "temperature": 0}
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
HELD = {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}}
LIMITS = {  # files and switches
    "a prompt": (16, 87),
    "an edit": (19, 127),
    "a chat": (35, 190),
    "a chat in form": (40, 242),
}
CLOCKS = ("serve/operations/lifecycle.py",)  # the server's own second, which is no request's
SETTLES = 0.2  # seconds in which the other threads end what the request began


class Walk:
    """The way through files of each thread that began after `watch`, while it is ``on``."""

    def __init__(self) -> None:
        self.on = False
        self.ways: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)

    def watch(self) -> None:
        """Watch this thread and each one that starts from now on."""
        threading.setprofile(self._event)
        sys.setprofile(self._event)

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        if not self.on or event != "call" or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        file = frame.f_code.co_filename.removeprefix(PACKAGE)
        if file in CLOCKS:
            return
        way = self.ways[threading.current_thread().name]
        if not way or way[-1][0] != file:
            way.append((file, []))
        way[-1][1].append(frame.f_code.co_name)

    def of(self, work: Callable[[], Any]) -> None:
        """Walk the work's third run."""
        for _ in range(3):
            self.ways.clear()
            self.on = True
            work()
            time.sleep(SETTLES)
            self.on = False

    @property
    def figures(self) -> tuple[int, int]:
        """How many files, and how many switches."""
        ways = self.ways.values()
        return len({file for way in ways for file, _ in way}), sum(map(len, ways))

    def show(self) -> None:
        """Print the way of each thread: a line for each file, with what is called there."""
        for thread, way in self.ways.items():
            print(f"  {thread}")
            for file, names in way:
                print(f"    {file}: {' '.join(dict.fromkeys(names))}")


def main() -> int:
    """Print the figures of each walk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--show", action="store_true")
    show = parser.parse_args().show
    walk, failed = Walk(), False
    walk.watch()
    from tests import serving

    def asked(more: dict[str, Any]) -> None:
        answer = server.post("/v1/chat/completions", CHAT | more)
        assert answer.status_code == 200, answer.text

    with serving.running(serving.model()) as server:
        alone = serving.model()
        walks: dict[str, Callable[[], Any]] = {
            "a prompt": lambda: alone.generate("Hello", max_tokens=4),
            "an edit": lambda: alone.generate("Hello", max_tokens=4, edit=Ablate(1, "head", 4)),
            "a chat": lambda: asked({}),
            "a chat in form": lambda: asked(HELD),
        }
        for name, work in walks.items():
            walk.of(work)
            (files, switches), (most_files, most) = walk.figures, LIMITS[name]
            failed |= files > most_files or switches > most
            print(f"{name}: {files} files (at most {most_files}), {switches} switches (at most {most})")
            if show:
                walk.show()
    threading.setprofile(None)  # pyright: ignore[reportArgumentType]
    sys.setprofile(None)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
