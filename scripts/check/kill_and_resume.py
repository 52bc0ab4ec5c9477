"""A training run is killed with SIGKILL at random moments and resumed each time. Every tensor of its last
checkpoint, and every file of weights that it exports, equals, to the bit, that of a run that was never
interrupted. Pretraining takes about four minutes on two cores; fine-tuning (LoRA on conversations,
all weights by DPO, LoRA by GRPO on sampled answers) about five. A comparison has every run's weights, and
the same table, speeds aside. `activations` writes an activation dataset of 16 shards, in a minute.

    python -m scripts.check.kill_and_resume [--method pretrain|sft|dpo|grpo|activations] [--kills 20]
        [--steps 600] [--seed 0]
    python -m scripts.check.kill_and_resume --method compare --kills 5 --steps 60
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cutaway.data import run_tokenizer
from cutaway.train import checkpoint, config
from tests.small import model_file
from tests.training import chatting_model, conversations, folder_of_text, model, pairs, run

METHODS = ["pretrain", "sft", "dpo", "grpo", "compare", "activations"]
SCORER = """
def ascii(text, row):
    return sum(c.isascii() for c in text) / 8
"""


def main() -> int:
    """Prints each kill, and whether the ends are equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=METHODS, default="pretrain")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    moments = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        words = _prepared(home, asked.method, asked.steps)
        start = time.monotonic()
        assert _trained(home, words, "unbroken").wait() == 0
        whole = time.monotonic() - start
        print(f"unbroken: {whole:.1f} s", flush=True)
        done = 0
        while done < asked.kills:
            process = _trained(home, words, "killed")
            # Some fall before the first step, most into the steps, some into the writing of a checkpoint.
            wait = moments.uniform(0.1, 1.0) * whole * 0.6
            try:
                ended = process.wait(wait)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                done += 1
                found = checkpoint.all_in(home / "killed" / "checkpoints")
                left = list((home / "killed" / "checkpoints").glob(".*")) if found else []
                newest = found[-1].name if found else f"{len(list(home.glob('killed/*.safetensors')))} shards"
                print(
                    f"kill {done:2} after {wait:4.1f} s: {newest}" + (", one half written" if left else ""),
                    flush=True,
                )
            else:
                if ended:
                    sys.exit(f"the run ended by itself, with {ended}, after {done} kills")
                print(f"the run is at its end after {done} kills; it is begun anew", flush=True)
                whole *= 0.7  # the machine has more time for it than it had
                _compare(home, asked.steps)
                subprocess.run(["rm", "-r", str(home / "killed")], check=True)
        assert _trained(home, words, "killed").wait() == 0
        return _compare(home, asked.steps)


def _prepared(home: Path, method: str, steps: int) -> list[str]:
    """The words of the command that trains; what it reads is in ``home``."""
    every = config.Intervals(save=3, evaluate=10, sample=0, keep_checkpoints=2)
    if method == "pretrain":
        tiny = run(folder_of_text(home / "texts"), model=model(0), ema=0.99, steps=steps, intervals=every)
        (home / "tiny.yaml").write_text(config.run_config_text(tiny))
        return ["pretrain", "tiny.yaml", "--resume"]
    if method == "compare":
        words = f"compare --attention mha,linear --task copying --width 16 --steps {steps} --seeds 2"
        return [*words.split(), "--learning-rates", "0.003,0.01"]
    if method == "activations":
        model_file(home / "tiny.gguf")
        rows = [json.dumps({"text": f"{n} of all these texts adds up " * (1 + n % 40)}) for n in range(900)]
        (home / "texts.jsonl").write_text("\n".join(rows))
        return ["activations", "texts.jsonl", "--names", "blocks.*.out", "--model", "tiny.gguf"]
    chatting_model(home / "base", len(run_tokenizer.of_bytes()))
    words = f"finetune {method} --data data.jsonl --model base --data.context 64 --steps {steps} --threads 1"
    words += " --adapter.dropout 0.2" if method in ("sft", "grpo") else ""
    words += " --batch-size 2 --ema 0.99 --intervals.save 3 --intervals.evaluate 10 --intervals.sample 0"
    if method == "grpo":
        (home / "score.py").write_text(SCORER)
        rows = [json.dumps({"prompt": chr(97 + n % 26) * (1 + n // 26)}) for n in range(60)]
        (home / "data.jsonl").write_text("\n".join(rows))
        words += " --task score.py:ascii --data.test 10 --data.group-size 4 --data.max-tokens 8"
        words += " --micro-batch-size 1"
    else:
        (conversations if method == "sft" else pairs)(home / "data.jsonl")
    return [*words.split(), *(["--adapter", "null"] if method == "dpo" else []), "--resume"]


def _trained(home: Path, words: list[str], name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cutaway", *words, "--output", name]
    return subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _compare(home: Path, steps: int) -> int:
    kept = f"checkpoints/step-{steps:08}/*.safetensors", "*.safetensors", "model/*.safetensors"
    folders = [home / "unbroken", home / "killed"]
    if (tables := [folder / "results.json" for folder in folders])[0].is_file():
        kept = tuple(f"*/*/{pattern}" for pattern in kept)
        same = len({table(json.loads(file.read_text())) for file in tables}) == 1
        print(f"the tables are {'equal' if same else 'different'}")
        if not same:
            return 1
    found = [
        sorted(file for pattern in (*kept, "dataset.json") for file in folder.glob(pattern))
        for folder in folders
    ]
    equal = [a.name == b.name and a.read_bytes() == b.read_bytes() for a, b in zip(*found, strict=True)]
    print(f"{sum(equal)} of {len(equal)} files of the last checkpoint and of the model are equal to the bit")
    return 0 if equal and all(equal) else 1


def table(found: dict[str, Any]) -> str:
    """A comparison's results without its speeds and the folder that its command names."""
    found.pop("command", None)
    for arm in found["arms"].values():
        del arm["tokens_per_second"]
    return json.dumps(found)


if __name__ == "__main__":
    sys.exit(main())
