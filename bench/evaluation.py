"""Multiple choice beside lm-eval's hf backend: `python bench/evaluation.py`. Needs `pip install lm-eval`.

The same cases (HellaSwag, TruthfulQA, BIG-bench), the same weights (SmolLM2's, unpacked for transformers) and
the same threads. Prints seconds by the clock and of the processor (which other work on the machine does not
stretch), on how many cases each engine's answer is transformers', and how far log-probabilities are apart.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cutaway
from cutaway.evaluate import likelihood, task_registry

NAMES = ("hellaswag", "truthfulqa", "bigbench:hindu_knowledge", "bigbench:sports_understanding")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cases", type=int, default=500)
    options.add_argument("--each", type=int, default=500, help="cases of a task at most")
    options.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    options.add_argument("--engine", nargs="+", default=["runtime", "pytorch"])
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    every: list[Any] = [item for name in NAMES for item in task_registry.find(name, given.each).items]
    items = every[: given.cases]
    print(f"{len(items)} cases of {', '.join(NAMES)}")
    found: dict[str, np.ndarray] = {}
    for engine in given.engine:
        lm = cutaway.load("smollm2", engine=engine)
        asked = [likelihood.likelihood(lm, item.prompt, item.choices) for item in items]
        likelihood.score(lm, asked[:2])
        start = time.perf_counter(), time.process_time()
        scored = likelihood.score(lm, asked)
        print(f"cutaway, {engine:<22}{_since(start)}", flush=True)
        found[engine] = np.array([each.log_probability for row in scored for each in row])
        if engine == "runtime":
            some = list(range(0, len(asked), max(1, len(asked) // 50)))
            alone = [likelihood.score(lm, [asked[n]])[0] for n in some]
            print(
                f"  {len(some)} cases alone = among others, to the bit: {alone == [scored[n] for n in some]}"
            )
            sixteen = [row for n in range(0, 48, 16) for row in likelihood.score(lm, asked[n : n + 16])]
            print(f"  48 cases 16 at a time = all at once, to the bit: {sixteen == scored[:48]}")
    with tempfile.TemporaryDirectory() as folder:
        model, rows = Path(folder, "model"), Path(folder, "rows.jsonl")
        cutaway.load("smollm2").save(model, format="safetensors", type="F32")
        rows.write_text("".join(json.dumps(_row(item)) + "\n" for item in items))
        for size in given.batch:
            sums, seconds = peer(model, rows, size)
            print(f"lm-eval, hf, batch {size:<12}{seconds}", flush=True)
            found[f"hf, batch {size}"] = sums
    judge = found[f"hf, batch {given.batch[0]}"]
    cuts = np.cumsum([len(item.choices) for item in items])[:-1]
    best = [int(row.argmax()) for row in np.split(judge, cuts)]
    right = [item.answer for item in items]
    for name, sums in found.items():
        own = [int(row.argmax()) for row in np.split(sums, cuts)]
        same = sum(a == b for a, b in zip(own, best, strict=True))
        accuracy = np.mean([a == b for a, b in zip(own, right, strict=True)])
        print(
            f"{name:<24}acc {accuracy:.4f}; {same} of {len(items)} answers are transformers'; "
            f"furthest log-probability {np.abs(sums - judge).max():.2e}"
        )


def _row(item: Any) -> dict[str, Any]:
    return {"prompt": item.prompt, "choices": item.choices, "gold": item.answer}


def _since(start: tuple[float, float]) -> str:
    clock, processor = time.perf_counter() - start[0], time.process_time() - start[1]
    return f"{clock:8.1f} s, {processor:8.1f} s of the processor"


def peer(model: Path, rows: Path, size: int) -> tuple[np.ndarray, str]:
    """The log-probability of every choice by lm-eval's hf backend, and seconds without loading."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    task = {
        "task": "cases",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    judge = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=size)
    start = time.perf_counter(), time.process_time()
    found: Any = lm_eval.simple_evaluate(model=judge, tasks=[task], bootstrap_iters=0)
    seconds = _since(start)
    samples = sorted(found["samples"]["cases"], key=lambda sample: sample["doc_id"])
    return np.array([float(reply[0]) for sample in samples for reply in sample["filtered_resps"]]), seconds


if __name__ == "__main__":
    main()
