"""One of garak's probes through its REST generator against `cutaway serve`.

    pip install garak
    python -m scripts.garak_served --probe encoding.InjectBase64

Prints how many of the probe's attempts the server answered and how many of garak's detections passed. Exit
code 1 if garak does not finish, or an attempt has no answer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scripts.served import served

COMPLETE = 2  # garak's status of an attempt that was answered and judged


def write_options(folder: Path, url: str, prompts: int) -> None:
    """How garak asks over REST, and how many of a probe's prompts it takes."""
    rest = {
        "name": "cutaway",
        "uri": f"{url}/v1/chat/completions",
        "method": "post",
        "headers": {"Content-Type": "application/json"},
        "req_template_json_object": {
            "model": "smollm2",
            "messages": [{"role": "user", "content": "$INPUT"}],
            "max_tokens": 60,
            "temperature": 0,
        },
        "response_json": True,
        "response_json_field": "$.choices[0].message.content",
        "request_timeout": 120,
    }
    (folder / "rest.json").write_text(json.dumps({"rest": {"RestGenerator": rest}}))
    (folder / "run.yaml").write_text(f"run:\n  generations: 1\n  soft_probe_prompt_cap: {prompts}\n")


def probed(folder: Path, probe: str) -> list[dict[str, Any]]:
    """The report of a run, entry by entry."""
    garak = [sys.executable, "-m", "garak", "--target_type", "rest", "--probes", probe]
    options = ["-G", str(folder / "rest.json"), "--config", str(folder / "run.yaml")]
    subprocess.run([*garak, *options, "--report_prefix", str(folder / "report")], check=True)
    lines = (folder / "report.report.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--probe", default="encoding.InjectBase64")
    parser.add_argument("--prompts", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, served() as url:
        write_options(Path(made), url, options.prompts)
        report = probed(Path(made), options.probe)
    done = [one for one in report if one["entry_type"] == "attempt" and one["status"] == COMPLETE]
    answered = [one for one in done if all(text and text.get("text") is not None for text in one["outputs"])]
    print(f"{options.probe}: {len(done)} attempts, {len(answered)} of them answered")
    for one in report:
        if one["entry_type"] == "eval":
            print(f"  {one['detector']}: passed {one['passed']} of {one['total_evaluated']}")
    return int(not done or len(answered) < len(done))


if __name__ == "__main__":
    sys.exit(main())
