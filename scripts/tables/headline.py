"""Write docs/results/headline.md and README's table: ten figures beside peers, out of the pages of results.

    python -m scripts.tables.headline            # after a page of docs/results changed
    python -m scripts.tables.headline --check    # exits 1 where a page says otherwise

A figure is a pattern in a page: a page that no longer has it ends the script, so no figure outlives its
measurement.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
BEGIN, END = "<!-- headline: python -m scripts.tables.headline -->\n", "<!-- end of headline -->"
NUMBER = r"\**([\d,.]+)\**"
README = ("decode", "ids", "training")


@dataclass(frozen=True)
class Figure:
    """One figure: where ours and the peer's are in a page, and what they were measured with."""

    key: str
    what: str
    unit: str
    page: str
    ours: str
    theirs: str
    peer: str
    machine: str
    command: str
    less: bool = False  # is better


EMERALD, ZEN3, ZEN4 = "Intel Emerald Rapids, 2 cores", "Zen 3, 2 cores", "Zen 4, 2 cores"
FIGURES = (
    Figure("decode", "decoding SmolLM2 135M, Q4_0", "tokens/s", "runtime",
           r"^\| decode, ours / llama\.cpp \|[^|]*\| ([\d,]+) /",
           r"^\| decode, ours / llama\.cpp \|[^|]*\| [\d,]+ / ([\d,]+)",
           "llama.cpp", EMERALD, "python bench/runtime.py --llama-bench PATH"),
    Figure("server", "serving 16 clients", "tokens/s", "serving",
           r"^\| tokens a second, 16 clients \| ([\d,]+)",
           r"^\| tokens a second, 16 clients \| [\d,]+ \| ([\d,]+)",
           "llama-server", EMERALD, "python bench/serving.py"),
    Figure("rounding", "KL divergence from the float model, English, nats a token", "", "quantization",
           r"^\| English, 8 windows \|[^|]*\|[^|]*\| " + NUMBER, r"^\| English, 8 windows \| ([\d.]+)",
           "llama.cpp", ZEN4, "python bench/perplexity.py --llama-perplexity PATH", less=True),
    Figure("ids", "tokenizing a document of English for the first time, one processor", "MB/s", "tokenizer",
           r"^\| one processor: Cutaway \| " + NUMBER, r"^\| tiktoken 0\.14 \| (\d+)",
           "tiktoken", EMERALD, "python bench/tokenizer.py --texts prose"),
    Figure("ids_fastest", "the same, beside the fastest peer", "MB/s", "tokenizer",
           r"^\| one processor: Cutaway \| " + NUMBER, r"^\| fastokens 0\.3\.5 \| (\d+)",
           "fastokens", EMERALD, "python bench/tokenizer.py --texts prose"),
    Figure("merges", "training a vocabulary of 32,768 from 50 MB, one thread", "s", "tokenizer-training",
           r"^\| Cutaway \| " + NUMBER, r"^\| gigabpe 0\.1 \| ([\d.]+)",
           "gigabpe, the fastest peer", EMERALD, "python bench/tokenizer_training.py", less=True),
    Figure("words", "training word vectors", "words/s", "embedding",
           r"^\| \*\*Cutaway, mean\*\* \|[^|]*\| " + NUMBER, r"^\| gensim, mean \|[^|]*\| ([\d,]+)",
           "gensim", ZEN3, "python bench/embedding.py FOLDER"),
    Figure("vectors", "vectors of sentences, MiniLM in float32", "a second of processor", "sentences",
           r"^\| Cutaway, the runtime, F32 \| (\d+)",
           r"^\| sentence-transformers [\d.]+ \| (\d+)",
           "sentence-transformers", "Zen 5, 1 core", "python bench/sentences.py"),
    Figure("training", "training a model of 6 layers in bf16", "tokens/s", "training",
           r"^\| Cutaway compiled bf16 \| " + NUMBER, r"^\| nanoGPT compiled bf16 \| ([\d,]+)",
           "nanoGPT", ZEN4, "python bench/training.py --nanogpt CHECKOUT --bf16"),
    Figure("patching", "patching heads at positions, 20 pairs", "ms a patch of processor", "interpretability",
           r'^\| 20 "renamed"[^|]*\|[^|]*\|[^|]*\| ([\d.]+) ms',
           r'^\| 20 "renamed"[^|]*\|(?:[^|]*\|){4} ([\d.]+) ms',
           "TransformerLens", "AMD EPYC, 1 core", "python -m scripts.study.patching_sweep --peer", less=True),
)  # fmt: skip


def found(figure: Figure) -> tuple[str, str, float]:
    """Ours and the peer's as the page has them, and how many times better ours is."""
    text = (RESULTS / f"{figure.page}.md").read_text("utf-8")
    texts = []
    for pattern in (figure.ours, figure.theirs):
        match = re.search(pattern, text, re.M)
        assert match is not None, f"docs/results/{figure.page}.md has no figure of {figure.what}: {pattern}"
        texts.append(match[1])
    ours, theirs = (float(one.replace(",", "")) for one in texts)
    return texts[0], texts[1], theirs / ours if figure.less else ours / theirs


def page() -> str:
    """The page of all figures."""
    lines = [
        "# Results: ten figures beside peers",
        "",
        "Each is taken out of the page that it links to, which says how it was measured, and what is short.",
        "A ratio says how many times better; machines and hours differ from row to row, never within one.",
        "",
        "| what | Cutaway | peer | ratio | machine | command |",
        "|---|---|---|---|---|---|",
    ]
    for one in FIGURES:
        ours, theirs, ratio = found(one)
        cells = [f"[{one.what}]({one.page}.md)", f"{ours} {one.unit}".strip(), f"{theirs}, {one.peer}"]
        cells += [f"{ratio:.{0 if ratio >= 10 else 1}f}", one.machine, f"`{one.command}`"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "What is below its target is listed in the [roadmap](../roadmap.md).", ""]
    return "\n".join(lines)


def small() -> str:
    """README's table."""
    rows = ["| | Cutaway | peer |", "|---|---|---|"]
    for one in FIGURES:
        if one.key in README:
            ours, theirs, _ = found(one)
            rows.append(f"| {one.what} | **{ours}** {one.unit} | {theirs} ({one.peer}) |")
    return "\n".join(rows) + "\n"


def main() -> int:
    readme = ROOT / "README.md"
    before, rest = readme.read_text("utf-8").split(BEGIN)
    after = rest.split(END)[1]
    made = {RESULTS / "headline.md": page(), readme: before + BEGIN + small() + END + after}
    late = [path for path, text in made.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in late:
        if "--check" in sys.argv[1:]:
            print(f"{path.relative_to(ROOT)} says otherwise: run python -m scripts.tables.headline")
        else:
            path.write_text(made[path], "utf-8")
    return int("--check" in sys.argv[1:] and bool(late))


if __name__ == "__main__":
    sys.exit(main())
