"""Where guessing ahead pays: tokens a second with and without, on texts that repeat themselves or do not.

    python bench/speculative.py [--layers 4 15] [--tokens 96]

Greedy, by the runtime, one text at a time; best of two rounds, plain and guessed in turn. "held": fraction
of guesses that the model agreed with. `first n layers` is self-speculation by early exit: the model's own
first layers with its last norm and head write ahead."""

from __future__ import annotations

import argparse

import cutaway

FUNCTION = '''def area(width, height):
    """Return the area of a rectangle."""
    return width * height

'''
PROMPTS = {
    "rewrite code": (
        "Here is a file:\n\n"
        + FUNCTION
        + FUNCTION.replace("area", "surface")
        + "Here is the same file again:\n\n"
        + FUNCTION
    ),
    "a list": "".join(f"- item {n}: the quick brown fox number {n}\n" for n in range(1, 9)),
    "a story": "Once upon a time, in a village by the sea, there lived",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, nargs="*", default=[4, 15])
    parser.add_argument("--tokens", type=int, default=96)
    asked = parser.parse_args()
    lm = cutaway.load("smollm2", engine="runtime")
    guessers = {"plain": None, "lookup": "lookup"}
    guessers |= {f"first {n} layers": lm.first_layers(n) for n in asked.layers}
    print(f"{'':<14}" + "".join(f"{name:>24}" for name in guessers))
    for name, prompt in PROMPTS.items():
        best = dict.fromkeys(guessers, 0.0)
        held = dict.fromkeys(guessers, "")
        texts = set()
        for _ in range(2):
            for way, speculate in guessers.items():
                done = lm.generate(prompt, max_tokens=asked.tokens, ignore_eos=True, speculate=speculate)
                times = done.timings
                best[way] = max(best[way], times.decode_tokens_per_second)
                if times.drafted_tokens:
                    held[way] = f" ({100 * times.acceptance:.0f}% of {times.drafted_tokens} held)"
                texts.add(done.ids)
        assert len(texts) == 1, "the text is the same, however it was guessed"
        print(f"{name:<14}" + "".join(f"{best[way]:>8.1f}{held[way]:>16}" for way in guessers), flush=True)


if __name__ == "__main__":
    main()
