"""What attribution graphs predict beside what the model does: nodes and groups ablated, over many prompts.

    python -m scripts.study.graph_effects --output effects.jsonl
    python -m scripts.study.graph_effects --features transcoders --output features.jsonl

For each prompt: a graph of SmolLM2 in float32; nodes drawn at random from the pruned graph, each ablated
alone; Spearman's correlation of the predicted and the true change of the likeliest token's logit, less the
mean of all. Beside it the correlation of the direct edge alone, and of the same predictions dealt out to
other nodes. Then the group of the nodes with the most influence, beside groups of as many nodes of the same
kinds that pruning left out. Finished prompts are in the file, from which the same command goes on: four
seconds each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import cutaway
from cutaway.embedding.evaluate import spearman
from cutaway.evaluate.statistics import mean
from cutaway.inspect.graph.attribution_graph import Graph
from cutaway.inspect.graph.build import attribution_graph
from cutaway.inspect.graph.clamp import CLAMPED, measured, predicted, total_effects
from cutaway.inspect.sae_folders import load_set

NODES, GROUP, RANDOM = 20, 8, 3
FACTS = (
    "The capital of {} is",
    "The language that people speak in {} is",
    "The currency of {} is the",
    "If you visit {}, the largest city to see is",
)
PLACES = ("France", "Italy", "Japan", "Spain", "Germany", "Egypt", "Russia", "Greece")
OTHERS = (
    "When Mary and John went to the store, John gave a drink to",
    "The opposite of hot is",
    "Monday, Tuesday, Wednesday,",
    "one two three four five",
    "The sun rises in the east and sets in the",
    "She opened the window and switched on the",
    "2 + 2 = 4, 3 + 3 =",
    "The chemical symbol for gold is",
    "The doctor asked the patient to take the",
    "def add(a, b):\n    return a +",
    "Once upon a time, there was a little",
    "The keys to the cabinet are on the",
    "Romeo and",
    "Water freezes at zero degrees",
    "A B C D A B C",
    "The author of Hamlet is William",
    "He was born in Paris, so he speaks",
    "The planet closest to the sun is",
)
PROMPTS = [form.format(place) for place in PLACES for form in FACTS] + list(OTHERS)


def study(lm: Any, prompt: str, features: Any, rng: np.random.Generator) -> dict[str, Any]:
    """The figures of one prompt."""
    graph = attribution_graph(lm, prompt, features=features)
    kept = {node.id for node in graph.pruned().nodes}
    inner = [n for n, node in enumerate(graph.nodes) if node.kind in CLAMPED]
    inside = [n for n in inner if graph.nodes[n].id in kept]
    chosen = sorted(rng.choice(inside, min(NODES, len(inside)), replace=False).tolist())
    true = measured(lm, graph, [{n: 0.0} for n in chosen])[:, 0]
    by_paths = total_effects(graph)[0, chosen]
    direct = -graph.effects[graph.logits[0], chosen]
    best = sorted(inside, key=lambda n: -graph.influence[n])[:GROUP]
    groups = [best, *(_like(graph, best, [n for n in inner if n not in inside], rng) for _ in range(RANDOM))]
    changes = measured(lm, graph, [dict.fromkeys(group, 0.0) for group in groups])[:, 0]
    return {
        "prompt": prompt,
        "paths": spearman(by_paths, true),
        "direct": spearman(direct, true),
        "dealt": spearman(rng.permutation(by_paths), true),
        "group": [float(predicted(graph, dict.fromkeys(best, 0.0))[graph.logits[0]]), float(changes[0])],
        "random": np.abs(changes[1:]).tolist(),
        "replacement": graph.facts["replacement"],
        "nodes": len(chosen),
    }


def _like(graph: Graph, group: list[int], others: list[int], rng: np.random.Generator) -> list[int]:
    """As many nodes of the same kinds that pruning left out."""
    found: list[int] = []
    for n in group:
        same = [m for m in others if graph.nodes[m].kind == graph.nodes[n].kind and m not in found]
        found += [int(rng.choice(same))] if same else []
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    asked = parser.parse_args()
    features = load_set(asked.features) if asked.features else ()
    done = (
        [json.loads(line) for line in asked.output.read_text().splitlines()] if asked.output.exists() else []
    )
    lm = cutaway.load("smollm2", engine="pytorch")
    order = np.random.default_rng(0).permutation(len(PROMPTS))[: asked.prompts]
    for at in order[len(done) :]:
        row = study(lm, PROMPTS[at], features, np.random.default_rng(int(at)))
        with asked.output.open("a") as out:
            out.write(json.dumps(row) + "\n")
        done.append(row)
        print(
            len(done),
            row["prompt"],
            {name: round(row[name], 2) for name in ("paths", "direct", "dealt")},
            flush=True,
        )
    for name in ("paths", "direct", "dealt", "replacement"):
        of = mean([row[name] for row in done])
        print(f"{name}: {of.value:.2f} ({of.between('.2f')}), n = {of.n}")
    for name, values in (
        ("group of most influence", [abs(row["group"][1]) for row in done]),
        ("random groups", [float(np.mean(row["random"])) for row in done]),
    ):
        of = mean(values)
        print(f"{name}: the logit moves by {of.value:.2f} ({of.between('.2f')})")
    both = np.array([row["group"] for row in done])
    print(f"groups, predicted and true: {spearman(both[:, 0], both[:, 1]):.2f}")


if __name__ == "__main__":
    main()
