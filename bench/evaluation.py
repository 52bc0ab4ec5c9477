"""Multiple choice beside lm-eval's hf backend: `python bench/evaluation.py`. Needs `pip install lm-eval`.

The same cases (HellaSwag, TruthfulQA, BIG-bench), the same weights (SmolLM2's, unpacked for transformers) and
the same threads. Prints seconds, and on how many cases each engine's answer is transformers'. `--scores` more
says how far the log-probabilities are apart, and that lm-eval's own batch size moves its results.
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
from cutaway.evaluate import likelihood, tasks

NAMES = ("hellaswag", "truthfulqa", "bigbench:hindu_knowledge", "bigbench:sports_understanding")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cases", type=int, default=500)
    options.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    items: list[Any] = [item for name in NAMES for item in tasks.find(name).items][: given.cases]
    print(f"{len(items)} cases of {', '.join(NAMES)}")
    found: dict[str, np.ndarray] = {}
    for engine in ("runtime", "definition"):
        lm = cutaway.load("smollm2", engine=engine)
        asked = [likelihood.likelihood(lm, item.prompt, item.choices) for item in items]
        likelihood.score(lm, asked[:2])
        start = time.perf_counter()
        scored = likelihood.score(lm, asked)
        print(f"cutaway, {engine:<22}{time.perf_counter() - start:8.1f} s", flush=True)
        found[engine] = np.array([each.log_probability for row in scored for each in row])
        if engine == "runtime":
            alone = [likelihood.score(lm, [one])[0] for one in asked[:50]]
            print(f"  batch 1 = batch N, to the bit: {alone == scored[:50]}")
    with tempfile.TemporaryDirectory() as folder:
        model, rows = Path(folder, "model"), Path(folder, "rows.jsonl")
        cutaway.load("smollm2").save(model, format="safetensors", type="F32")
        rows.write_text("".join(json.dumps(_row(item)) + "\n" for item in items))
        for size in given.batch:
            start = time.perf_counter()
            sums = peer(model, rows, size)
            print(f"lm-eval, hf, batch {size:<12}{time.perf_counter() - start:8.1f} s", flush=True)
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


def peer(model: Path, rows: Path, size: int) -> np.ndarray:
    """The log-probability of every choice by lm-eval's hf backend. The model's loading is not timed."""
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
    found: Any = lm_eval.simple_evaluate(model=judge, tasks=[task], bootstrap_iters=0)
    samples = sorted(found["samples"]["cases"], key=lambda sample: sample["doc_id"])
    return np.array([float(reply[0]) for sample in samples for reply in sample["filtered_resps"]])


if __name__ == "__main__":
    main()
