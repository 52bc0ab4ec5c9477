"""Schemathesis over the server's OpenAPI document: right requests and wrong ones, every answer checked.

    python -m scripts.fuzz.openapi --examples 200      # some 10 minutes

No answer may be a 5xx, or refuse in another form than its API's. Two layers of SmolLM2 answer, at most 8
tokens. Exit code 1 if an answer is wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from random import Random
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests import serving


def fault(answer: Any, path: str) -> str | None:
    """What is wrong with an answer, if something is."""
    if answer.status_code >= 500:
        return f"{answer.status_code}: {answer.text[:300]}"
    if answer.status_code >= 400:
        body = answer.json() if "json" in answer.headers.get("content-type", [""])[0] else {}
        error = body.get("error") or {}
        if path.startswith("/api/"):
            right = isinstance(error, str)
        elif path.startswith("/v1/messages"):
            right = body.get("type") == "error" and {"type", "message"} <= set(error) and error["message"]
        else:
            right = set(error) == {"message", "type", "param", "code"} and error["message"]
        if not right:
            return f"refused in another form: {answer.text[:300]}"
    return None


def simpler(body: Any) -> Any:
    """Every other body with the served model and three of its optional fields at most, so that more than the
    gate is reached: a request of thirty random fields is mostly refused for the first.
    """
    if not isinstance(body, dict):
        return body
    random = Random(repr(body))
    if random.random() < 0.5:
        return body
    needed = {"messages", "max_tokens", "prompt", "input", "text", "ids", "values", "text_1", "text_2"}
    needed = (needed | {"input_prefix", "input_suffix"}) & body.keys()
    others = sorted(map(str, body.keys() - needed - {"model"}))
    kept = needed | set(random.sample(others, min(3, len(others))))
    return {name: value for name, value in body.items() if name in kept} | {"model": serving.NAME}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    statuses: Counter[tuple[str, int]] = Counter()
    faults: list[str] = []
    started = time.perf_counter()
    with serving.running(serving.model(), max_tokens=8, trace_tokens=64, request_seconds=30.0) as server:
        document = schemathesis.openapi.from_url(server.url + "/openapi.json")
        for found in document.get_all_operations():
            operation = found.ok()

            @seed(options.seed)
            @settings(
                max_examples=options.examples,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                database=None,
            )
            @given(case=operation.as_strategy())
            def ask(case: Any) -> None:
                case.body = simpler(case.body)
                answer, label = case.call(timeout=120), case.operation.label
                statuses[label, answer.status_code] += 1
                if (wrong := fault(answer, case.operation.path)) is not None:
                    faults.append(f"{label}: {wrong}\n  {case.as_curl_command()[:500]}")

            ask()
            print(operation.label, {s: n for (label, s), n in statuses.items() if label == operation.label})
    seconds = time.perf_counter() - started
    print(f"{sum(statuses.values())} requests in {seconds:.0f} s, {len(faults)} faults")
    for one in faults[:20]:
        print(one)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
