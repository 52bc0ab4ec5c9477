"""From nothing to an answer: seconds and peak memory of loading SmolLM2 and of its first tokens, on the
definition.

    python bench/start.py [MODEL]

Each row is a process of its own, so that its memory is its own: the library's import alone, loading, the
first token of a short prompt, 32 tokens; float32 and packed. Peak is the process's largest resident size,
mapped file pages included."""

import json
import resource
import subprocess
import sys
import time

PROMPT = "The capital of France is"


def measure(source: str, dtype: str) -> dict[str, float]:
    """One process's figures: seconds since its start of main, megabytes at its peak."""
    start = time.perf_counter()
    import cutaway

    lm = cutaway.load(source, dtype=dtype)
    lm.tokenizer.encode(PROMPT)
    opened = time.perf_counter() - start
    lm.model.eval()
    built = time.perf_counter() - start
    done = lm.generate(PROMPT, max_tokens=32, ignore_eos=True)
    return {
        "tokenizer ready": opened,
        "model ready": built,
        "first token": built + done.timings.first_token_seconds,
        "tokens/s": done.timings.decode_tokens_per_second,
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(source: str = "smollm2") -> None:
    for dtype in ("float32", "bfloat16", "packed"):
        command = [sys.executable, __file__, "--one", source, dtype]
        runs = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(3)]
        best = {name: (max if name == "tokens/s" else min)(run[name] for run in runs) for name in runs[0]}
        print(f"{dtype:>9}  " + "  ".join(f"{name} {value:.2f}" for name, value in best.items()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(*sys.argv[2:])))
    else:
        main(*sys.argv[1:])
