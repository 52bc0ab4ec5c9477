"""Chats with an edited head beside plain ones, on one server: tokens a second of each, in turns, two minutes.

    python -m scripts.served.edited_answers [--turns 3] [--tokens 48] [--beside 3]

SmolLM2 in this process. A turn asks for ``beside`` plain answers and one more: plain first, then with a head
ablated, then with an activation patched from another text. A line tells the median tokens a second of the one
more, and of those beside it, and the ratios to the plain turn: ratios hold on a busy machine, figures do not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests import serving

PROMPT = "Tell me about the capital of France."
EDITS: dict[str, list[dict[str, Any]]] = {
    "plain": [],
    "head ablated": [{"kind": "ablate", "layer": 23, "part": "head", "head": 4}],
    "patched": [
        {
            "kind": "patch",
            "layer": 12,
            "part": "head",
            "head": 3,
            "positions": [3],
            "text": "The capital of Spain is",
        }
    ],
}


def rate(server: serving.Server, tokens: int, edits: list[dict[str, Any]], number: int) -> float:
    """Tokens a second of one answer, its prompt included, which no other request has."""
    content = f"{number} {PROMPT}"
    body: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "max_tokens": tokens}
    body |= {"temperature": 0, "ignore_eos": True} | ({"edits": edits} if edits else {})
    began = time.perf_counter()
    answer = serving.httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=600)
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]["completion_tokens"] / (time.perf_counter() - began)


def main() -> None:
    """Print a line for each kind of answer."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--turns", type=int, default=3)
    asked.add_argument("--tokens", type=int, default=48)
    asked.add_argument("--beside", type=int, default=3)
    given = asked.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in EDITS}
    with serving.running(serving.model(None)) as server, ThreadPoolExecutor(given.beside + 1) as pool:
        for turn in range(given.turns + 1):
            for name, edits in EDITS.items():
                one = pool.submit(rate, server, given.tokens, edits, 0)
                beside = [pool.submit(rate, server, given.tokens, [], n) for n in range(1, given.beside + 1)]
                speeds = one.result(), statistics.median(each.result() for each in beside)
                if turn:  # the first builds what the others find
                    found[name].append(speeds)
    for name, speeds in found.items():
        ratios = [
            statistics.median(own[n] / plain[n] for own, plain in zip(speeds, found["plain"], strict=True))
            for n in (0, 1)
        ]
        own, beside = (statistics.median(each[n] for each in speeds) for n in (0, 1))
        print(
            f"{name:13} {own:6.1f} tokens/s ({ratios[0]:.2f} of plain), "
            f"beside it {beside:6.1f} ({ratios[1]:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
