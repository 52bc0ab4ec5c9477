"""Ids over 100 MB of mixed text and the naughty strings, against tiktoken and tokenizers: the differences,
which
must be none.

    python -m scripts.check.tokenizer_parity [--megabytes 105] [--judge tiktoken|tokenizers|reference ...]

Prose, code, help pages in five scripts and law in 532 languages (bench/corpus.py), in documents of 20,000
characters. tiktoken judges gpt2, cl100k and o200k; tokenizers SmolLM2's, DeepSeek's and cl100k's
tokenizer.json on
a tenth of it, being slow; the reference in Python a hundredth, with every vocabulary that llama.cpp
ships. Takes
about ten minutes on one core.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import corpus
from cutaway.tokenizer import Tokenizer
from tests import inputs

PIECE = 20_000
ENCODERS = ("gpt2", "cl100k_base", "o200k_base")
GGUF = """command-r deepseek-coder deepseek-llm falcon gemma-4 gpt-2 llama-bpe llama-spm mpt phi-3 qwen2
qwen35 refact starcoder"""

Judge = tuple[str, Tokenizer, Callable[[str], list[int]], float]


def documents(size: int) -> list[str]:
    """About `size` bytes, a third of each kind first, until there are enough."""
    kinds = [corpus.prose(), "\n".join(corpus.law()), "\n".join(corpus.code())]
    kinds += ["\n".join(corpus.pages(package)) for package in corpus.HELP]
    total = sum(len(kind.encode()) for kind in kinds)
    fraction = min(1.0, size / total)
    parts = [kind[: int(len(kind) * fraction)] for kind in kinds]
    return [part[i : i + PIECE] for part in parts for i in range(0, len(part), PIECE)]


def by_tiktoken() -> Iterator[Judge]:
    """OpenAI's three encodings."""
    import tiktoken

    for name in ENCODERS:
        path = inputs.path("tiktoken") / f"{name}.json"
        tok = Tokenizer.load(path)
        ranks = {tok.token_bytes(id): id for id in tok.spec.vocabulary.values()}
        pattern = json.loads(path.read_text())["pat_str"]
        judge = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        yield f"tiktoken {name}", tok, judge.encode_ordinary, 1.0


def by_tokenizers() -> Iterator[Judge]:
    """tokenizer.json files: one of Hugging Face's own making, and two that Cutaway writes."""
    import tokenizers

    files = [("DeepSeek", inputs.path("deepseek"))]
    with tempfile.TemporaryDirectory() as scratch:
        for name, source in (
            ("SmolLM2", "smollm2"),
            ("cl100k", inputs.path("tiktoken") / "cl100k_base.json"),
        ):
            path = Path(scratch) / f"{name}.json"
            Tokenizer.load(source).save(path)
            files.append((name, path))
        for name, path in files:
            judge = tokenizers.Tokenizer.from_file(str(path))
            judge.encode_special_tokens = True

            def encode(text: str, judge: tokenizers.Tokenizer = judge) -> list[int]:
                return judge.encode(text, add_special_tokens=False).ids

            yield f"tokenizers {name}", Tokenizer.load(path), encode, 0.1


def by_reference() -> Iterator[Judge]:
    """The reference in Python, over every vocabulary of llama.cpp's."""
    for name in GGUF.split():
        tok = Tokenizer.load(inputs.path("llama-vocab") / f"ggml-vocab-{name}.gguf")
        reference = Tokenizer(tok.spec)
        vars(reference)["_path"] = "judging"
        yield f"reference {name}", tok, reference.encode, 0.01


JUDGES = {"tiktoken": by_tiktoken, "tokenizers": by_tokenizers, "reference": by_reference}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=105)
    parser.add_argument("--judge", nargs="*", choices=JUDGES, default=tuple(JUDGES))
    asked = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # of bytes that a vocabulary lacks
    texts = documents(int(asked.megabytes * 1e6))
    naughty = json.loads(inputs.path("naughty-strings").read_text())
    wrong = 0
    for kind in asked.judge:
        for name, tok, judge, fraction in JUDGES[kind]():
            some = [*naughty, *texts[:: round(1 / fraction)]]
            ids, offsets = tok.encode_batch(some, threads=1)
            differing = []
            for i, text in enumerate(some):
                if ids[offsets[i] : offsets[i + 1]].tolist() != judge(text):
                    differing.append(text[:60])
            wrong += len(differing)
            size = sum(len(text.encode()) for text in some) / 1e6
            print(
                f"{name}: {len(differing)} of {len(some):,} texts differ, {size:.1f} MB, {len(ids):,} ids",
                f"({tok.path})",
                *map(repr, differing[:3]),
                flush=True,
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
