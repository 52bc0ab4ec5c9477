"""lm-eval's local-completions against `cutaway serve`, and its task in this process: the scores must be one.

    pip install 'lm-eval[api]'
    python -m scripts.served.lm_eval --passages 200

The task is LAMBADA's (1606.06031): the last word of a passage, here of Jane Austen's novels, which need no
data set to be fetched from a hub. Exit code 1 if accuracy differs, or perplexity by more than 1 in 100,000.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import yaml
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

import cutaway
from cutaway.data import novels
from cutaway.generate.sample import log_softmax
from scripts.lib.serving import served

WORDS, CLOSE = 60, 1e-5


class InProcess(TemplateLM):
    """The model without a server: logits, and their log-softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.lm: Any = cutaway.load("smollm2")

    @property
    def eot_token_id(self) -> int:
        return self.lm.tokenizer.eos_ids[0]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.lm.tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        return [self._score(context, continuation) for _, context, continuation in requests]

    def _score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        rows = self.lm.logits([*context, *continuation][:-1])[len(context) - 1 :]
        scores = [log_softmax(row)[id] for row, id in zip(rows, continuation, strict=True)]
        greedy = all(int(row.argmax()) == id for row, id in zip(rows, continuation, strict=True))
        return float(np.sum(scores)), greedy

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError


def passages(count: int) -> list[dict[str, str]]:
    """Passages of sixty words, the last a word of letters that occurs before."""
    found: list[dict[str, str]] = []
    for chapter in sorted(novels.folder().rglob("*.txt")):
        words = chapter.read_text(encoding="utf-8").split()
        for start in range(0, len(words) - WORDS, WORDS):
            *before, last = words[start : start + WORDS]
            if re.fullmatch("[A-Za-z]{4,}", last) and last in before:
                found.append({"before": " ".join(before), "last": last})
    chosen = np.random.default_rng(0).permutation(len(found))[:count]
    return [found[int(i)] for i in chosen]


def write_task(folder: Path, count: int) -> None:
    """The task as lm-eval reads it, and the tokenizer as transformers does."""
    with (folder / "passages.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(one) + "\n" for one in passages(count))
    metrics = [
        {"metric": name, "aggregation": how, "higher_is_better": up}
        for name, how, up in (("acc", "mean", True), ("perplexity", "perplexity", False))
    ]
    task = {
        "task": "last_word",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "passages.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{before}}",
        "doc_to_target": " {{last}}",
        "metric_list": metrics,
    }
    (folder / "last_word.yaml").write_text(yaml.safe_dump(task))
    cutaway.Tokenizer.load("smollm2").save(folder / "tokenizer")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))


def score(model: Any, arguments: str, folder: Path) -> tuple[float, float]:
    """Accuracy and perplexity of the task."""
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    made = lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=["last_word"], task_manager=tasks, bootstrap_iters=0
    )
    assert made is not None
    found = made["results"]["last_word"]
    return found["acc,none"], found["perplexity,none"]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--passages", type=int, default=200)
    count = parser.parse_args().passages
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "tokenizer").mkdir()
        write_task(folder, count)
        with served() as url:
            arguments = f"model=smollm2,base_url={url}/v1/completions,num_concurrent=4,max_length=8192,"
            arguments += f"tokenizer_backend=huggingface,tokenizer={folder / 'tokenizer'}"
            over = score("local-completions", arguments, folder)
        alone = score(InProcess(), "", folder)
    print(f"served:     accuracy {over[0]:.4f}, perplexity {over[1]:.6f}")
    print(f"in process: accuracy {alone[0]:.4f}, perplexity {alone[1]:.6f}")
    return int(over[0] != alone[0] or abs(over[1] / alone[1] - 1) > CLOSE)


if __name__ == "__main__":
    sys.exit(main())
