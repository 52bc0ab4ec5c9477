"""Draw the figures of the course from the real model: docs/course/figures/*.svg; two minutes.

    python -m scripts.tables.figures                # all of them
    python -m scripts.tables.figures 6-pattern      # those named

SmolLM2 is asked; the loss curve is that of a model which is trained here. Chapters show them as images.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import cutaway
from cutaway.inspect import distance
from cutaway.page.charts import Axis, Bar, Bars, Heat, Labels, Plot, Series
from cutaway.page.svg import diagrams, render
from cutaway.position import rope

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/course/figures"
FRANCE = "The capital of France is"
MARY = "When Mary and John went to the store, John gave a drink to"
FIGURES: dict[str, Callable[[], str]] = {}


def figure(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register what draws docs/course/figures/NAME.svg: a chart, or an SVG."""

    def register(made: Callable[[], Any]) -> Callable[[], Any]:
        FIGURES[name] = made
        return made

    return register


@cache
def lm() -> Any:
    """The default model, on the packed weights."""
    return cutaway.load("smollm2")


def pieces(text: str) -> list[str]:
    """The tokens of a text, each as text."""
    return [lm().tokenizer.decode([id]) for id in lm().ids(text)]


@figure("1-next-token")
def next_token() -> Bars:
    top = lm().trace(FRANCE, names=["logits"]).top(8)
    chances = Bar("chance", [round(guess.probability, 3) for guess in top])
    return Bars(
        f"What SmolLM2 expects after “{FRANCE}”",
        Axis("chance", low=0),
        "token",
        [g.token for g in top],
        [chances],
    )


@figure("1-loss")
def loss() -> Plot:
    """The loss of a small model that is trained on the text of the course."""
    from cutaway.cli import main
    from cutaway.store.reading import json_lines

    with tempfile.TemporaryDirectory() as folder:
        text = "\n".join(page.read_text("utf-8") for page in sorted((ROOT / "docs").glob("*.md")))
        Path(folder, "text.txt").write_text(text, "utf-8")
        options = {"steps": 150, "batch-size": 2, "micro-batch-size": 2, "compile": "never"}
        given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        code = main(["pretrain", f"{folder}/text.txt", "--output", f"{folder}/run", *given])
        assert code == 0
        lines = list(json_lines(Path(folder, "run", "metrics.jsonl")))
    steps = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    return Plot(
        "Training: the surprise falls",
        Axis("step"),
        Axis("loss", "nats"),
        [Series("training", [s for s, _ in steps], [v for _, v in steps])],
        note="A small model of this library, 150 steps on the pages of this documentation.",
    )


@figure("2-tokens")
def tokens() -> str:
    texts = {
        "English": f"{FRANCE} Paris.",
        "German": "Die Hauptstadt von Frankreich ist Paris.",
        "Chinese": "法国的首都是巴黎。",
    }
    rows = []
    for language, text in texts.items():
        ids = lm().ids(text)
        shown = [piece if "�" not in piece else "·" for piece in pieces(text)]
        rows.append((f"{language}: {len(text)} characters, {len(ids)} tokens", shown, list(map(str, ids))))
    return diagrams.tokens("One sentence as tokens, with their ids; a dot is a part of a character", rows)


@figure("3-cuts")
def cuts() -> str:
    text = "unbelievable tokenizers"
    rows = [
        ("words: 2 pieces, and a vocabulary without end", text.split(), []),
        (f"SmolLM2's subwords: {len(pieces(text))} pieces of 49,152", pieces(text), []),
        (f"characters: {len(text)} pieces", list(text), []),
    ]
    return diagrams.tokens("Words, subwords, characters", rows)


@figure("3-zipf")
def zipf() -> Plot:
    text = "\n".join(page.read_text("utf-8") for page in sorted((ROOT / "docs").glob("**/[a-z0-9]*.md")))
    counts = [count for _, count in Counter(re.findall(r"[a-z]+", text.lower())).most_common(5000)]
    ranks = sorted({round(10 ** (k / 12)) for k in range(45)} & set(range(1, len(counts) + 1)))
    law = [counts[9] * 10 / rank for rank in ranks]
    return Plot(
        "Few words are frequent, most are rare",
        Axis("rank of the word", log=True),
        Axis("how often it occurs", log=True),
        [Series("this documentation", ranks, [counts[r - 1] for r in ranks]), Series("1 / rank", ranks, law)],
    )


@figure("4-merges")
def merges() -> str:
    from cutaway.tokenizer.pieces import pieces

    (piece,) = pieces(lm().tokenizer, "unbelievable")
    return diagrams.merges("SmolLM2 cuts “unbelievable”: merge by merge", piece.states())


@figure("4-training")
def training() -> Bars:
    from cutaway.course import chapter_4

    corpus = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
    spelt, counts = {tuple(word): times for word, times in corpus.items()}, []
    learned = chapter_4.learned(corpus, 9)
    for pair in learned:
        counts.append(chapter_4.pair_counts(spelt)[pair])
        spelt = {tuple(chapter_4.merged(list(word), pair)): times for word, times in spelt.items()}
    return Bars(
        "Training on low ×5, lower ×2, newest ×6, widest ×3",
        Axis("how often the pair occurs when it is merged", low=0),
        "merge",
        [f"{n}. {''.join(pair)}" for n, pair in enumerate(learned, 1)],
        [Bar("count", counts)],
    )


@figure("5-map")
def embedding_map() -> Plot:
    from cutaway.embedding.projection import project

    groups = {
        "countries": " France, Italy, Spain, Germany, Japan, China",
        "capitals": " Paris, Rome, Madrid, Berlin, Tokyo, Beijing",
        "animals": " dog, cat, horse, cow, bird, fish",
        "numbers": " one, two, three, four, five, six",
        "verbs": " run, walk, eat, sleep, read, write",
    }
    words = {name: [f" {word.strip()}" for word in listed.split(",")] for name, listed in groups.items()}
    rows = np.stack([lm().vectors.vector(word) for own in words.values() for word in own])
    points = project(rows / np.linalg.norm(rows, axis=1, keepdims=True)).points
    series = []
    for name, own in words.items():
        part, points = points[: len(own)], points[len(own) :]
        series.append(
            Series(
                name,
                part[:, 0].tolist(),
                part[:, 1].tolist(),
                labels=[w.strip() for w in own],
                line=False,
                points=True,
            )
        )
    return Plot(
        "Thirty rows of SmolLM2's embedding table on a plane",
        Axis("first direction of most variance"),
        Axis("second"),
        series,
    )


@cache
def head() -> tuple[Any, Any, Any]:
    """Queries, keys and the attention weights of head 16.0 on the sentence of chapter 6."""
    names = [f"blocks.16.attention.{name}" for name in ("q", "k", "pattern")]
    trace = lm().trace(MARY, names=names)
    q, k, pattern = (np.asarray(trace[name]) for name in names)
    return q[0], k[0], pattern[0]


@figure("6-score")
def score() -> Heat:
    q, k, _ = head()
    query, key = q[-1], k[12]
    products = query * key / np.sqrt(64)
    rows = [query / np.abs(query).max(), key / np.abs(key).max(), products / np.abs(products).max()]
    columns = [str(n) if n % 8 == 0 else "" for n in range(64)]
    return Heat(
        f"One score by hand: 64 products divided by 8, in sum {products.sum():.1f}",
        Labels("", ["query “to”", "key “drink”", "product / 8"]),
        Labels("number of the 64", columns),
        [row.tolist() for row in rows],
        "each row relative to its largest",
        high=1.0,
        signed=True,
        note="Where query and key have one sign, the product is positive and the score grows.",
    )


@figure("6-pattern")
def pattern() -> Heat:
    words = pieces(MARY)
    cells = [[float(w) if c <= r else 0.0 for c, w in enumerate(row)] for r, row in enumerate(head()[2])]
    return Heat(
        "The attention weights of head 16.0",
        Labels("token that looks", words),
        Labels("token that is looked at", words),
        cells,
        "attention weight",
        high=1.0,
    )


@figure("7-masks")
def masks() -> str:
    from cutaway.attention.common import mask_plot, registry, usual

    def mask(kind: str, **options: Any) -> Any:
        found = registry.kind(kind)
        return mask_plot.draw(found.like(usual.SMALL, usual.to_scale(found, 16, options) | options), 16).mask

    kinds = {
        "bidirectional": mask("bidirectional"),
        "causal": mask("mha"),
        "local, window 4": mask("local", window=4),
        "streaming": mask("streaming", window=4),
        "strided": mask("strided"),
        "longformer": mask("longformer"),
        "bigbird": mask("bigbird"),
        "sparse (dsa)": mask("dsa", top_k=4),
    }
    return diagrams.masks("Who sees whom: rows look, columns are looked at", list(kinds.items()))


@figure("7-sharing")
def shared_heads() -> str:
    kinds = [
        diagrams.Sharing("multi-head", 8, 8, "8 keys + 8 values a token"),
        diagrams.Sharing("grouped-query", 8, 2, "2 keys + 2 values a token"),
        diagrams.Sharing("multi-query", 8, 1, "1 key + 1 value a token"),
        diagrams.Sharing("latent (MLA)", 8, 8, "1 short vector a token, for all heads", latent=512),
    ]
    return diagrams.sharing("What is kept of each token, for 8 query heads", kinds)


@figure("7-alignment")
def alignment() -> Heat:
    from cutaway.inspect import reports
    from cutaway.inspect.how.alignment import alignments

    return reports.alignment(alignments("letters")["words"][0])


@figure("8-block")
def block() -> str:
    from cutaway.inspect.block_diagram import drawn

    return drawn(lm().config, "One of SmolLM2's 30 blocks, with its true sizes")


@figure("8-lens")
def lens() -> Plot:
    seen = lm().trace(FRANCE, names=["embed", "blocks.*.out"]).lens()
    final = seen.final[1:, -1]  # without the embedding, where no block has run
    best = [lm().tokenizer.decode([int(id)]) for id in seen.ids[1:, -1]]
    words = [f"“{word.strip()}”" if word.strip() else "" for word in best]  # a bare point is easily missed
    changed = [word if n == 0 or words[n - 1] != word else "" for n, word in enumerate(words)]
    layers = list(range(len(best)))
    return Plot(
        "When does SmolLM2 know “Paris”?",
        Axis("after block", whole=True),
        Axis("chance of Paris, if the model stopped here", log=True),
        [Series("Paris", layers, final.tolist(), points=True, labels=changed)],
        note="A label is the likeliest token where it changes; a space has none.",
    )


@figure("9-angles")
def angles() -> Plot:
    turns = rope.Config(64, 100_000.0).frequencies()
    positions = np.arange(0, 129)
    series = [
        Series(f"pair {pair}", positions.tolist(), np.cos(positions * turns[pair]).round(3).tolist())
        for pair in (0, 4, 8, 16)
    ]
    return Plot(
        "How far each pair of numbers has turned",
        Axis("position"),
        Axis("cosine of the angle", low=-1, high=1),
        series,
    )


@figure("9-distance")
def by_distance() -> Plot:
    found = distance.with_bases(lm().config, (10_000.0, 100_000.0))
    return distance.plot([curve for one in found for curve in one.curves(10_000)], added=False)


def main() -> int:
    """Write the figures, or those named."""
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or FIGURES:
        made = FIGURES[name]()
        text = made if isinstance(made, str) else render.chart(made)
        assert text is not None, f"{name} is a table"
        (FOLDER / f"{name}.svg").write_text(text, "utf-8")
        print(f"{name}.svg: {len(text.encode()):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
