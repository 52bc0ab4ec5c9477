"""Walk every verb on a terminal of 80 and of 40 columns, with real models, and keep what it shows.

    python -m scripts.check.terminal_walk --output screens       # all verbs, about 25 minutes of two cores
    python -m scripts.check.terminal_walk --only explain,verify --columns 40

Each command runs on a pseudo-terminal that an emulator (pyte) renders. The output folder gets a text file for
each command and width: the screen as it was at the end, then the lines that progress drew meanwhile. The
table has the exit code, the seconds, the longest silence and what no screen may have: literal escapes, lines
as wide as the screen, a bar that was left, a hidden cursor, a traceback. The exit code is 1 if there is any.

Commands that train get tiny settings; what they read and write lies in the output folder.
"""

import argparse
import json
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from cutaway import cli
from tests.pseudo_terminal import rendered, run, typist

ROOT = Path(__file__).resolve().parents[2]
TEXT = "\n\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
JUDGE = "def judge(prompt, first, second):\n    return float(len(first) > len(second))\n"
PROGRAM = "import os, sys; os.chdir(sys.argv[1]); from cutaway.cli import main; sys.exit(main(sys.argv[2:]))"
INTERRUPT = b"\x03"


@dataclass(frozen=True)
class Command:
    """A verb's words; what is typed when a text has been shown; the exit code that is right."""

    words: str
    typed: tuple[tuple[str, bytes], ...] = ()
    code: int = 0


def commands(folder: Path) -> dict[str, Command]:
    """Each verb with progress, by a name; later ones use what earlier ones wrote."""
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    for name in range(37):
        (folder / "texts" / f"{name}.txt").write_text(TEXT[name * 3000 : (name + 1) * 3000])
    (folder / "corpus.txt").write_text(TEXT[:100_000])
    (folder / "long.txt").write_text(TEXT[:9000])
    (folder / "judge.py").write_text(JUDGE)
    (folder / "prompts.txt").write_text("Name a color.\nWhat is two plus two?\nSay hello.\n")
    talk = [
        {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"{n}!"}]}
        for n in range(12)
    ]
    (folder / "talk.jsonl").write_text("".join(json.dumps(line) + "\n" for line in talk))
    pairs = [{"prompt": f"Say {n}.", "chosen": f"{n}!", "rejected": "No."} for n in range(12)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in pairs))
    ladder = {
        "task": {"kind": "language", "length": 64},
        "rungs": [{"width": w, "layers": 1, "steps": [s]} for w in (16, 32, 48) for s in (2, 3, 4)],
    }
    (folder / "ladder.yaml").write_text(json.dumps(ladder))
    asks = (("/help lists", b"Say hello.\n"), (r"(?s)Say hello.*\n> $", b"\x04"))
    return {
        "pull": Command("pull smollm2"),
        "models": Command("models"),
        "doctor": Command("doctor"),
        "course": Command("course list"),
        "info": Command("info smollm2"),
        "convert": Command("convert smollm2 model --type F16 --force"),
        "convert-mla": Command("convert smollm2 mla.gguf --attention mla --latent 128 --force"),
        "quantize": Command("quantize smollm2 --type Q4_0 --output q4.gguf --force"),
        "finetune-sft": Command("finetune sft --data talk.jsonl --output runs/talk --steps 6"),
        "finetune-dpo": Command("finetune dpo --data pairs.jsonl --output runs/pairs --steps 4"),
        "finetune-grpo": Command("finetune grpo --task reasoning_gym:chain_sum --output runs/sums --steps 2"),
        "merge": Command("merge runs/talk talk.gguf --force"),
        "tokenizer-train": Command("tokenizer train texts --size 600 --output tok.json --force"),
        "tokenizer-count": Command("tokenizer count-words texts --output words.counts"),
        "tokenizer-compare": Command("tokenizer compare smollm2 tok.json --file corpus.txt"),
        "verify": Command("verify smollm2"),
        "embed-train": Command("embed train corpus.txt --output words.vec --min-count 1 --epochs 30 --force"),
        "embed-text": Command("embed text --file long.txt --truncate"),
        "embed-search": Command("embed search texts attention --index index.db"),
        "bundle": Command("bundle smollm2 --adapter runs/talk --output talk.cutaway --force"),
        "generate": Command('generate "Once upon a time" --max-tokens 40'),
        "generate-long": Command("generate --file long.txt --max-tokens 4"),
        "chat": Command("chat smollm2", asks),
        "detect": Command("detect --file long.txt --watermark kgw:secret"),
        "explain": Command('explain "The capital of France is"'),
        "activations": Command(
            "activations texts --names blocks.15.out --output acts --max-tokens 6000 --force"
        ),
        "sae": Command("sae acts --output saes --steps 60 --features 512 --force"),
        "attention": Command("attention"),
        "run": Command("run talk.cutaway", asks),
        "serve": Command("serve smollm2 --port 8137", (("Ctrl-C stops it", INTERRUPT),), 130),
        "eval": Command("eval smollm2 --tasks reasoning_gym:chain_sum --limit 6 --max-tokens 16 --no-cache"),
        "arena": Command("arena smollm2 q4.gguf --prompts prompts.txt --judge judge.py --max-tokens 24"),
        "bench": Command("bench smollm2 --rounds 2"),
        "pretrain": Command("pretrain nano --output runs/nano --steps 12"),
        "pretrain-stop": Command(
            "pretrain nano --output runs/stopped --steps 100000", ((" left", INTERRUPT),), 130
        ),
        "compare": Command("compare --attention mha,mqa --task copying --steps 8 --seeds 2 --output runs/c"),
        "scale": Command("scale ladder.yaml --output runs/laws"),
        "plan": Command("plan nano"),
        "attack": Command("attack smollm2 --probe forgery --trials 8 --output runs/attack"),
        "audit": Command("audit smollm2"),
    }


def main() -> int:
    """Run the commands; 1 if a screen is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("screens"))
    parser.add_argument("--only", default="", help="names between commas")
    parser.add_argument("--columns", default="80,40")
    options = parser.parse_args()
    work = options.output.resolve() / "work"
    every = commands(work)
    missing = {verb for verbs in cli.VERBS.values() for verb in verbs} - {
        name.partition("-")[0] for name in every
    }
    assert not missing, f"no command for {missing}"
    bad = 0
    for columns in map(int, options.columns.split(",")):
        place = options.output / str(columns)
        place.mkdir(parents=True, exist_ok=True)
        if not options.only:
            shutil.rmtree(work / "runs", ignore_errors=True)
        for name, command in every.items():
            if options.only and name not in options.only.split(","):
                continue
            words = [sys.executable, "-c", PROGRAM, str(work), *shlex.split(command.words)]
            data, code, seconds, silence = run(words, columns, answer=typist(command.typed))
            shown = rendered(data, columns, code)
            faults = shown.faults() + ([] if code == command.code else [f"exit code {code}"])
            drawn = "\n".join(shown.frames)
            (place / f"{name}.txt").write_text(
                "\n".join(shown.lines) + f"\n\n=== drawn and erased ===\n{drawn}\n"
            )
            took = f"{seconds:6.1f} s  silent {silence:5.1f} s"
            print(f"{columns:3} {name:18} {code:4} {took}  {'; '.join(faults)[:200]}", flush=True)
            bad += bool(faults)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
