"""Thirteen data sets in the shapes that users have them, each trained by the shortest command, as a table.

    python -m scripts.check.users_data                    a tiny model of bytes, two minutes
    python -m scripts.check.users_data --model smollm2    the default model, ten minutes on two cores

The rows are made up; names of files and columns are those of the published sets. Every command is run as it
is typed, with --steps 2 so that it ends soon.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

ROWS = 40
QUICK = ["--steps", "2", "--intervals.sample", "0", "--intervals.evaluate", "0", "--compile", "never"]


@dataclass(frozen=True)
class Set:
    """A data set: the published one whose shape it has, the path that a user types, and how it is trained."""

    published: str
    path: str
    method: str
    write: Callable[[Path], None]

    @property
    def command(self) -> list[str]:
        """What a user types."""
        verb = ["pretrain"] if self.method == "pretrain" else ["finetune", self.method]
        return ["cutaway", *verb, self.path]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def lines(rows: list[dict[str, Any]]) -> Callable[[Path], None]:
    """JSON lines, packed where the name ends in .gz."""
    data = "\n".join(map(json.dumps, rows)).encode()
    return lambda path: path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data) and None


def listed(rows: list[dict[str, Any]]) -> Callable[[Path], None]:
    """One JSON list, as Alpaca and OpenHermes are published."""
    return lambda path: path.write_text(json.dumps(rows, indent=2)) and None


def sheet(rows: list[dict[str, Any]]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8-sig") as out:  # as a spreadsheet program saves it
            made = csv.DictWriter(out, rows[0], delimiter=";")
            made.writeheader()
            made.writerows(rows)

    return write


def parquet(rows: list[dict[str, Any]]) -> Callable[[Path], None]:
    return lambda path: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def split(rows: list[dict[str, Any]]) -> Callable[[Path], None]:
    """A folder as the hub keeps a set: a part for training and one for testing."""

    def write(path: Path) -> None:
        (path / "data").mkdir(parents=True)
        (path / "README.md").write_text("# Card of the data set")
        for part in ("train", "test"):
            parquet(rows)(path / "data" / f"{part}-00000-of-00001.parquet")

    return write


def texts(path: Path) -> None:
    path.mkdir()
    for n in range(6):
        (path / f"chapter-{n}.{'md' if n % 2 else 'txt'}").write_text(story(n))


def story(n: int) -> str:
    return "\n\n".join(f"On day {k} of year {n} it rained {k * n} drops on house {k + n}." for k in range(60))


def sets() -> list[Set]:
    """Each with 40 rows; what is null in most rows of a published set is null here."""
    asked = [f"What is {n} + {n}?" for n in range(ROWS)]
    right, wrong = [f"It is {2 * n}." for n in range(ROWS)], [f"It is {2 * n + 1}." for n in range(ROWS)]
    each = list(zip(asked, right, wrong, strict=True))
    alpaca = [
        {"instruction": "Add the numbers.", "input": f"{n}, {n}" if n % 2 else "", "output": right[n]}
        for n in range(ROWS)
    ]
    hermes = [
        {
            "custom_instruction": None, "topic": None, "model_name": None, "model": None,
            "category": "general",
            "conversations": [
                {"from": "system", "value": "You add."}, {"from": "human", "value": q, "weight": None},
                {"from": "gpt", "value": a},
            ],
            "source": "airoboros2.2", "system_prompt": None, "idx": None, "title": None,
        }
        for q, a, _ in each
    ]  # fmt: skip
    robots = [
        {"prompt": q, "prompt_id": f"{n:064x}", "messages": [turn("user", q), turn("assistant", a)],
         "category": "Closed QA"}
        for n, (q, a, _) in enumerate(each)
    ]  # fmt: skip
    tldr = [{"prompt": f"SUBREDDIT: r/sums\nPOST: {q}\nTL;DR:", "completion": f" {a}"} for q, a, _ in each]
    orca = [{"system": "You add." if n % 2 else "", "question": q, "chosen": a, "rejected": b}
            for n, (q, a, b) in enumerate(each)]  # fmt: skip
    ultra = [
        {
            "prompt": q, "prompt_id": q, "chosen": [turn("user", q), turn("assistant", a)],
            "rejected": [turn("user", q), turn("assistant", b)],
            "messages": [turn("user", q), turn("assistant", a)], "score_chosen": 8.5, "score_rejected": 6.0,
        }
        for q, a, b in each
    ]  # fmt: skip
    helpful = [
        {"chosen": f"\n\nHuman: {q}\n\nAssistant: {a}", "rejected": f"\n\nHuman: {q}\n\nAssistant: {b}"}
        for q, a, b in each
    ]
    kto = [
        {
            "prompt": [turn("user", q)],
            "completion": [turn("assistant", b if n % 2 else a)],
            "label": n % 2 == 0,
        }
        for n, (q, a, b) in enumerate(each)
    ]
    orca_sft = [{"id": f"flan.{n}", "system_prompt": "You add.", "question": q, "response": a}
                for n, (q, a, _) in enumerate(each)]  # fmt: skip
    dolly = [{"instruction": q, "context": "", "response": a, "category": "closed_qa"} for q, a, _ in each]
    return [
        Set("tatsu-lab/alpaca", "alpaca_data.json", "sft", listed(alpaca)),
        Set("teknium/OpenHermes-2.5 (ShareGPT)", "openhermes2_5.json", "sft", listed(hermes)),
        Set("HuggingFaceH4/no_robots (messages)", "no_robots", "sft", split(robots)),
        Set("trl-lib/tldr (prompt, completion)", "tldr.jsonl", "sft", lines(tldr)),
        Set("databricks/databricks-dolly-15k", "databricks-dolly-15k.jsonl", "sft", lines(dolly)),
        Set(
            "a spreadsheet as CSV",
            "faq.csv",
            "sft",
            sheet([{"question": q, "answer": a} for q, a, _ in each]),
        ),
        Set("Open-Orca/OpenOrca (parquet)", "1M-GPT4-Augmented.parquet", "sft", parquet(orca_sft)),
        Set("Intel/orca_dpo_pairs (texts)", "orca_rlhf.jsonl", "dpo", lines(orca)),
        Set("HuggingFaceH4/ultrafeedback_binarized", "train_prefs.parquet", "dpo", parquet(ultra)),
        Set("Anthropic/hh-rlhf (transcripts)", "train.jsonl.gz", "dpo", lines(helpful)),
        Set("trl-lib/kto-mix-14k", "kto.parquet", "kto", parquet(kto)),
        Set("a folder of text", "mytext", "pretrain", texts),
        Set("one file of text", "book.txt", "pretrain", lambda path: path.write_text(story(7) * 3) and None),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="The base of fine-tuning; without it a tiny one.")
    asked = parser.parse_args()
    failed = 0
    print("| data set | command | seconds | first and last loss |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as home:
        place = Path(home)
        if asked.model is None:
            from tests.training import chatting_model

            chatting_model(place / "tiny", context=1024)
        for each in sets():
            each.write(place / each.path)
            model = [] if each.method == "pretrain" else ["--model", asked.model or "tiny"]
            run = ["--output", f"runs/{Path(each.path).name}"]
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", *each.command, *model, *run, *QUICK],
                cwd=place, capture_output=True, text=True, check=False,
            )  # fmt: skip
            seconds = time.perf_counter() - start
            failed += done.returncode != 0
            said = done.stderr.strip().splitlines()[-1:] if done.returncode else losses(place / run[1])
            print(
                f"| {each.published} | `{' '.join(each.command)}` | {seconds:.0f} | {' '.join(said)} |",
                flush=True,
            )
    return int(failed > 0)


def losses(run: Path) -> list[str]:
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [line["loss"] for line in read if "loss" in line]
    return [f"{found[0]:.3f}, {found[-1]:.3f}"]


if __name__ == "__main__":
    sys.exit(main())
