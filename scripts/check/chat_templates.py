"""The whole check of chat rendering: every template, tokenizer, benign shape, hostile content and resource
attack.

    python -m scripts.check.chat_templates [--every N] [--tokenizers NAME ...] [--templates NAME ...]

`transformers` is the judge: benign conversations must come to its text and its ids; in hostile ones the
control tokens must be those of the harmless conversation of the same shape. To give every template its own
control tokens, each tokenizer gets all the markers of all the templates as added tokens, those with a bar or
in brackets as special ones. Prints each difference and the counts that docs/chat.md reports; `--every N`
takes one hostile conversation in N.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from cutaway.errors import UserError
from cutaway.tokenizer import chat
from cutaway.tokenizer.chat.sandbox import helper
from tests import chat_cases, inputs

VOCABULARIES = ("llama-bpe", "llama-spm", "phi-3", "qwen2", "gpt-2", "command-r", "gemma-4", "starcoder")
FINE = ("same", "neither renders", "only ours renders", "held", "steering refused", "nothing to compare with")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=1, help="take one hostile conversation in N")
    parser.add_argument("--tokenizers", nargs="*", default=["smollm2", "deepseek", *VOCABULARIES])
    parser.add_argument("--templates", nargs="*", help="only these")
    options = parser.parse_args()
    rendered = (
        attack()
    )  # first, while this process is small: a child's memory is reported with its parent's at the start
    every_template = chat_cases.templates()
    extra = chat_cases.markers(list(every_template.values()))
    chosen = {
        name: text
        for name, text in every_template.items()
        if not options.templates or name in options.templates
    }
    total: Counter[str] = Counter()
    for turn, name in enumerate(options.tokenizers):
        with tempfile.TemporaryDirectory() as folder:
            counts = sweep(name, Path(folder), chosen, extra, options.every, turn)
        print(f"{name}: {dict(counts)}", flush=True)
        total += counts
    print(f"all tokenizers: {dict(total)}")
    return rendered or any(not outcome.split(": ")[-1].startswith((*FINE, "fooled")) for outcome in total)


def source(name: str) -> Path:
    if name in ("smollm2", "deepseek"):
        return inputs.path(name)
    return inputs.path("llama-vocab") / f"ggml-vocab-{name}.gguf"


def sweep(name: str, folder: Path, templates: dict, extra: dict, every: int, turn: int) -> Counter[str]:
    """Every benign shape and the chosen hostile conversations of every template, with one tokenizer."""
    tokenizer, peer = chat_cases.pair(source(name), folder, extra)
    counts: Counter[str] = Counter()

    def note(kind: str, template: str, case: str, outcome: str) -> None:
        if not outcome.startswith(FINE):
            print(f"{name}, {template}, {case}: {outcome}", flush=True)
        counts[f"{kind}: {outcome.split(':')[0]}"] += 1

    for title, template in templates.items():
        for case, shape in chat_cases.benign().items():
            note("benign", title, case, chat_cases.compare_benign(tokenizer, peer, template, shape))
        control = chat_cases.control_ids(tokenizer, template, extra)
        tokens = list(chat_cases.markers([template])) or list(tokenizer.special)[:4]
        for number, (case, bad, harmless) in enumerate(chat_cases.hostile(tokens)):
            if (number + turn) % every:
                continue
            outcome, fooled = chat_cases.compare_hostile(tokenizer, peer, template, control, bad, harmless)
            note("hostile", title, case, outcome)
            counts["hostile: fooled transformers"] += fooled
    return counts


def attack() -> bool:
    """Every resource attack: prints the slowest and the most memory that a helper held; whether one was
    rendered.
    """
    took, rendered = {}, []
    for name, template in chat_cases.ATTACKS.items():
        helper.start()
        began = time.perf_counter()
        try:
            chat.text([chat_cases.user()], template)
            rendered.append(name)
        except UserError:
            took[name] = time.perf_counter() - began
    helper.close()
    slowest = max(took, key=took.__getitem__)
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(
        f"{len(took)} of {len(chat_cases.ATTACKS)} attacks refused; {slowest} last, in {took[slowest]:.2f} s"
    )
    print(f"no helper held more than {largest} MB; rendered: {', '.join(rendered) or 'none'}")
    return bool(rendered)


if __name__ == "__main__":
    sys.exit(main())
