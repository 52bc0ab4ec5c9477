"""garak's report in the form of `cutaway attack`: what has no answer stays in the denominator."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from scripts.served import garak, pyrit


def attempt(hit: float | None, text: str | None) -> dict[str, Any]:
    return {
        "entry_type": "attempt",
        "status": garak.COMPLETE,
        "probe_classname": "encoding.InjectBase64",
        "outputs": [None if text is None else {"text": text}],
        "detector_results": {"encoding.DecodeMatch": [hit], "encoding.DecodeApprox": [1.0]},
    }


def test_attempts_without_an_answer_are_counted_and_not_dropped() -> None:
    entries = [attempt(1.0, "x"), attempt(0.0, "y"), attempt(None, None), attempt(0.0, "z")]
    entries += [{"entry_type": "eval"}, {**attempt(1.0, "x"), "status": 1}]
    (found,) = garak.findings(entries, Counter({"200": 3, "400": 1}))
    match, approx, silent = found.arms
    assert (match.value.value, match.value.n, approx.value.value) == (0.25, 4, 1.0)
    assert (silent.value.value, silent.role) == (0.25, "benign")
    assert "refused 1 of 4 requests" in found.summary and "1 of them without an answer" in found.summary
    assert garak.findings([], Counter()) == []


def test_statuses_are_read_from_the_metrics() -> None:
    text = """# TYPE cutaway_requests_total counter
cutaway_requests_total{endpoint="/v1/chat/completions",status="200"} 30.0
cutaway_requests_total{endpoint="/v1/chat/completions",status="400"} 2.0
cutaway_requests_total{endpoint="/v1/models",status="200"} 1.0
cutaway_requests_running 0.0
"""
    assert garak.statuses(text) == {"200": 31, "400": 2}


def test_payloads_are_harmless(tmp_path: Path) -> None:
    garak.write_options(tmp_path, "http://127.0.0.1:1", 4)
    options = (tmp_path / "run.yaml").read_text()
    assert '"payloads": ["text_en"]' in options and "slur" not in options and "default" not in options


def test_pyrits_prompts_without_an_answer_are_counted_and_the_plain_ones_are_the_control() -> None:
    rows = [
        ("plain", True, "Florbium"),
        ("plain", True, "Florbium"),
        ("flip", True, "x"),
        ("flip", False, None),
    ]
    entries = [{"converter": name, "hit": hit, "answer": answer} for name, hit, answer in rows]
    (found,) = pyrit.findings(entries, Counter({"200": 3, "422": 1}))
    hit, control, silent = found.arms
    assert (found.title, hit.value.value, hit.value.n, control.value.value) == ("flip", 0.5, 2, 1.0)
    assert silent.value.value == 0.5 and "refused 1 of 4 requests" in found.summary
