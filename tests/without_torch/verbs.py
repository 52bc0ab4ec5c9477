"""Every verb that runs without PyTorch, one after another, on one model; and what the others print.

python tests/without_torch/verbs.py MODEL FOLDER    # a model's name or file, and a folder to write in

It needs nothing but the plain installation. Exit code 1, with what a verb printed, where one fails.
"""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cutaway.extras import install

TEXT = "the cat sat on the mat and the dog sat on the log . " * 45
JUDGE = "def judge(prompt, first, second):\n    return float(len(first) - len(second))\n"
LONGEST = 60.0  # seconds until a server answers

# A command line, and what its answer has. MODEL is the model; later ones read what earlier ones have written.
RUNS = [
    ("--version", r"\d"),
    ("--help", "generate"),
    ("info MODEL", "parameters"),
    ("models", ""),
    ("doctor", r"core +ok"),
    ("course list", "Byte pair encoding"),
    ("generate the --model MODEL --max-tokens 4", ""),
    ("generate the --model MODEL --max-tokens 4 --think vote-2", ""),
    ("chat MODEL --max-tokens 4", "stopped at 4 tokens"),
    ("convert MODEL model.gguf --type Q8_0", "model.gguf: "),
    ("convert MODEL folder", "folder: "),
    ("info folder --json", '"family"'),
    ("quantize MODEL --type Q4_0 --output small.gguf --text text.txt", "KL divergence"),
    ("merge adapter merged.gguf --text text.txt", "merged.gguf: "),
    ("merge model.gguf folder soup.gguf --method average --text text.txt", "soup.gguf: "),
    ("generate the --model MODEL --adapter adapter --max-tokens 2", ""),
    ("bundle MODEL --whole --output talk.cutaway --max-tokens 4", "talk.cutaway: "),
    ("run talk.cutaway", "stopped at 4 tokens"),
    ("tokenizer encode the --tokenizer MODEL", r"\d"),
    ("tokenizer show the --tokenizer MODEL", "the"),
    ("tokenizer train text.txt --size 270 --output tokens.json", "270 tokens"),
    ("embed neighbors MODEL the", r"\d\.\d"),
    ("embed text the cat --model MODEL --pooling mean", r"1\.000"),
    ("embed train text.txt --output words.vec --min-count 1 --dim 8 --threads 1", "words.vec: "),
    ("explain the --model MODEL", "Logit lens"),
    ("explain the --model MODEL --ablate 0.1 --html page.html", ""),
    ("explain 1+1= --patch 1+2= --model MODEL --json", "{"),
    ("explain the --compare cat --model MODEL", "Logit lens"),
    ("explain the --model folder --against MODEL", ""),
    ("explain the --model MODEL --parallel", ""),
    ("activations text.txt --names blocks.0.out --output acts --model MODEL --max-tokens 200", "200 tokens"),
    ("attention", "mamba2"),
    ("attention show dsa --top-k 3", "An example"),
    ("attention distance MODEL", "tokens of a turn"),
    ("eval MODEL --tasks text:text.txt --no-cache", "bits_per_byte"),
    ("arena MODEL folder --prompts prompts.txt --judge judge.py --max-tokens 2", "Elo"),
    ("bench MODEL -p 4 -n 2 --texts 1 -r 1 -t 1", "tokens/s"),
    ("detect --file text.txt --watermark kgw:secret --model MODEL", "tokens scored"),
    ("attack MODEL --probe forgery --trials 1", "forgery"),
    ("audit folder", "llama"),
    ("plan nano", "step"),
    ("pipeline list", "laptop"),
]
# What needs an extra names it, before it reads a file.
REFUSED = [
    ("pretrain nano", "train"),
    ("finetune sft talk.jsonl", "train"),
    ("compare --attention mha,gqa --task copying", "train"),
    ("scale --preset small", "train"),
    ("pipeline tiny", "train"),
    ("sae acts --output saes", "train"),
    ("generate the --model MODEL --engine pytorch", "train"),
    ("chat MODEL --tools calculator", "agent"),
    ("attention align", "train"),
]


def main(model: str, folder: Path) -> int:
    """Run them all in FOLDER; 1 where one fails."""
    model = str(Path(model).resolve()) if Path(model).is_file() else model
    os.chdir(folder)
    prepare(model)
    cases = [(words, 0, expected) for words, expected in RUNS]
    cases += [(words, 2, re.escape(install(extra))) for words, extra in REFUSED]
    wrong = 0
    for words, wanted, expected in [*cases, ("serve MODEL", 0, "assistant")]:
        started, arguments = (
            time.perf_counter(),
            [model if word == "MODEL" else word for word in words.split()],
        )
        code, shown = served(model) if arguments[0] == "serve" else ran(arguments)
        fits = code == wanted and re.search(expected, shown) is not None
        seconds = time.perf_counter() - started
        print(f"{'ok   ' if fits else 'WRONG'} {seconds:5.2f} s  cutaway {words}", flush=True)
        if not fits:
            wrong = 1
            print(f"exit code {code} and not {wanted}, or no {expected!r} in:\n{shown}")
    if "torch" in sys.modules:
        print("WRONG: torch was imported")
    return wrong or int("torch" in sys.modules)


def prepare(model: str) -> None:
    """What the verbs read: texts, a judge, and a LoRA adapter in PEFT's form."""
    import cutaway
    from cutaway.quantization import formats
    from cutaway.weights import safetensors

    Path("text.txt").write_text(TEXT)
    Path("prompts.txt").write_text("the\n")
    Path("judge.py").write_text(JUDGE)
    lm, random = cutaway.load(model), np.random.default_rng(0)
    rows, columns = lm.config.weights()["blocks.0.attention.query.weight"]
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    pair = {name.format("A"): (2, columns), name.format("B"): (rows, 2)}
    drawn = {one: random.standard_normal(shape).astype(np.float32) for one, shape in pair.items()}
    Path("adapter").mkdir()
    packed = {one: formats.pack(array, "F32") for one, array in drawn.items()}
    safetensors.write_safetensors(Path("adapter/adapter_model.safetensors"), packed)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "target_modules": ["q_proj"]}
    Path("adapter/adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": model}))


def ran(arguments: list[str]) -> tuple[int, str]:
    """The exit code of a verb, and all that it printed; a chat is asked one question."""
    from cutaway import cli

    out, before = io.StringIO(), sys.stdin
    sys.stdin = io.StringIO("hi\n")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = cli.main(arguments)
    finally:
        sys.stdin = before
    return code, out.getvalue()


def served(model: str) -> tuple[int, str]:
    """The exit code of a server that answered one chat and was stopped, and its answer."""
    with serving(model) as (url, process):
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        answer = asked(f"{url}/v1/chat/completions", body)
    return int(process.returncode not in (0, 130)), answer


@contextlib.contextmanager
def serving(model: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of `cutaway serve MODEL`, which runs meanwhile."""
    command = [sys.executable, "-m", "cutaway", "serve", model, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        printed = ""
        while (line := process.stderr.readline()) and "Ctrl-C stops it" not in line:
            printed += line
        found = re.search(r"on (http://\S+)", printed)
        if found is None:
            raise SystemExit(f"the server did not start:\n{printed}")
        yield found[1], process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LONGEST)


def asked(url: str, body: object) -> str:
    """The answer to a POST; the server may take a moment to listen."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    end = time.monotonic() + LONGEST
    while True:
        try:
            with urllib.request.urlopen(request, timeout=LONGEST) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.read().decode()
        except urllib.error.URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
