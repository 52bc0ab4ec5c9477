"""A step of GRPO, side by side in one run: Cutaway, and trl's GRPOTrainer with transformers' generation, each
in a process of its own.

    python bench/grpo.py [--model smollm2] [--prompts 4] [--group 8] [--tokens 64] [--steps 3] [--threads 2]
                         [--rank 16] [--micro 4] [--only NAME ...] [--output results.json]

Both ask the same questions of reasoning-gym's chain_sum, through the model's template, with --group
completions of exactly --tokens tokens each (no end token ends one), score them with the task's own scorer,
and train LoRA beside every linear layer of the blocks in float32, with AdamW, in micro-batches of --micro
prompts with their completions: all of a step's at once, unless it says fewer, which bounds the memory.
trl's base is the packed file's weights, unpacked; Cutaway samples from the packed file and trains beside its
unpacked weights, or beside the packed ones. trl's activation checkpointing is off. The first step is not
counted; of the others the median counts. Prints a Markdown table: seconds a step, those of sampling (scores
included), and of training. About 3 minutes for 2 prompts with 4 completions of 12 tokens, one
counted step, on two busy cores.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

VARIANTS = ("trl", "Cutaway", "Cutaway packed")
TASK, RATE = "reasoning_gym:chain_sum", 1e-5
Seconds = list[tuple[float, float]]  # of each step, and of its sampling


def main() -> int:
    """Every variant, or, in a process of its own, one."""
    asked = _arguments()
    if asked.one:
        import torch

        torch.set_num_threads(asked.threads)
        with tempfile.TemporaryDirectory() as folder:
            steps = (_trl if asked.one == "trl" else _cutaway)(asked, Path(folder))[1:]
        step, sampling = (statistics.median(each) for each in zip(*steps, strict=True))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": step, "sampling_seconds": sampling, "peak_memory_mb": peak}))
        return 0
    found = {name: _measured(name) for name in asked.only or VARIANTS}
    if asked.output:
        asked.output.write_text(json.dumps({**vars(asked), "output": None, "found": found}, indent=1))
    print("| | seconds a step | sampling | training | of trl | peak MB |\n|---|---|---|---|---|---|")
    for name, one in found.items():
        seconds, sampling = one["seconds"], one["sampling_seconds"]
        share = f"{seconds / found['trl']['seconds']:.2f}" if "trl" in found else ""
        print(
            f"| {name} | {seconds:.2f} | {sampling:.2f} | {seconds - sampling:.2f} | {share} "
            f"| {one['peak_memory_mb']:.0f} |"
        )
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    numbers = {"prompts": 4, "group": 8, "tokens": 64, "steps": 3, "threads": 2, "rank": 16, "micro": 0}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", nargs="*", choices=VARIANTS)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.micro = asked.micro or asked.prompts
    return asked


def _measured(name: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--one", name], stdout=subprocess.PIPE, check=True
    )
    print(f"{name}: done", file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _cutaway(asked: argparse.Namespace, folder: Path) -> Seconds:
    from cutaway.train import rollouts
    from cutaway.train.recipes import rewards
    from cutaway.train.training import Training

    words = (
        f"--task={TASK} --options={{}} --prompts={asked.prompts * (asked.steps + 1)} --test=2 --resample=0"
    )
    words += f" --group-size={asked.group} --max-tokens={asked.tokens} --context={asked.tokens + 448}"
    words = words.replace("--", "--data.")
    words += f" --base={asked.model} --batch-size={asked.prompts} --micro-batch-size={asked.micro}"
    words += f" --adapter.rank={asked.rank} --threads={asked.threads} --precision=float32 --compile=never"
    words += f" --base-type={'packed' if 'packed' in asked.one else 'float32'}"
    words += f" --steps={asked.steps + 1} --optimizer.learning-rate={RATE}"
    run = rewards.read_rewards_config("grpo", words.split())
    data = rewards.ready(run, folder, lambda _: None)
    assert isinstance(data.train, rollouts.Sampled)
    data.train.settings = replace(data.train.settings, ignore_eos=True)
    training, found = Training(run, data, note=lambda _: None), []
    for _ in range(run.steps):
        start = time.perf_counter()
        numbers = training.advance()
        found.append((time.perf_counter() - start, numbers["sampling_seconds"]))
        assert numbers["completion_length"] == asked.tokens
    return found


def _trl(asked: argparse.Namespace, folder: Path) -> Seconds:
    import torch
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from peft import LoraConfig  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer, TrainerCallback  # pyright: ignore[reportMissingImports]
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore

    import cutaway
    from cutaway.data import tasks

    cutaway.load(asked.model).save(folder / "base", type="F32")
    task = tasks.load(TASK, asked.prompts * (asked.steps + 1), 2)
    problems = {problem.question: problem for problem in task.train}
    questions = [{"prompt": [{"role": "user", "content": question}]} for question in problems]

    def reward(prompts: Any, completions: Any, **_: Any) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        return [task.score(c[0]["content"], problems[p[-1]["content"]]) for p, c in pairs]

    settings = GRPOConfig(
        str(folder / "run"),
        per_device_train_batch_size=asked.micro * asked.group,
        gradient_accumulation_steps=asked.prompts // asked.micro,
        num_generations=asked.group,
        max_completion_length=asked.tokens,
        generation_kwargs={"min_new_tokens": asked.tokens},
        max_steps=asked.steps + 1,
        learning_rate=RATE,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        model_init_kwargs={"dtype": torch.float32},
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    sampling, ends = [], [0.0]

    class Timed(GRPOTrainer):
        def _generate_and_score_completions(self, *given: Any) -> Any:
            start = time.perf_counter()
            made = super()._generate_and_score_completions(*given)
            sampling.append(time.perf_counter() - start)
            assert (made["completion_mask"].sum(1) == asked.tokens).all()
            return made

    class Ends(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            ends[0] = ends[0] or time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    Timed(
        str(folder / "base"),
        reward,  # pyright: ignore
        settings,
        train_dataset=Dataset.from_list(questions),
        processing_class=AutoTokenizer.from_pretrained(folder / "base", padding_side="left"),
        peft_config=LoraConfig(r=asked.rank, lora_alpha=2 * asked.rank, target_modules="all-linear"),
        callbacks=[Ends()],
    ).train()
    return [(b - a, s) for a, b, s in zip(ends, ends[1:], sampling, strict=False)]


if __name__ == "__main__":
    sys.exit(main())
