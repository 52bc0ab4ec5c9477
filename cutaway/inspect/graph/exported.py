"""A graph as JSON in Neuronpedia's schema, and the groups of such a file read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cutaway.errors import UserError
from cutaway.inspect.graph.attribution_graph import Graph, Node
from cutaway.store.reading import parsed

TYPES = {
    "embedding": "embedding",
    "head": "attention head",
    "mlp": "mlp",
    "neuron": "neuron",
    "feature": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "logit": "logit",
}
Groups = list[tuple[str, tuple[str, ...]]]
MOST = 200  # groups of a file


def to_json(graph: Graph, nodes: float, edges: float, version: str) -> dict[str, Any]:
    """The graph as JSON's own types, in Neuronpedia's schema, with more types of nodes."""
    probabilities = {n: graph.nodes[n].probability for n in graph.logits}
    likeliest = max(probabilities, key=probabilities.__getitem__, default=-1)
    every = [
        {
            "node_id": node.id,
            "feature": node.index,
            "layer": "E" if node.kind == "embedding" else str(node.layer),
            "ctx_idx": node.position,
            "feature_type": TYPES[node.kind],
            "jsNodeId": node.id,
            "clerp": _named(node),
            "influence": float(graph.influence[n]),
            "activation": float(node.value),
            "token_prob": probabilities.get(n, 0.0),
            "is_target_logit": n == likeliest,
            "run_idx": 0,
            "reverse_ctx_idx": len(graph.tokens) - 1 - node.position,
        }
        for n, node in enumerate(graph.nodes)
    ]
    ids = [node.id for node in graph.nodes]
    return {
        "metadata": {
            "slug": "graph",
            "scan": graph.model,
            "prompt_tokens": list(graph.tokens),
            "prompt": graph.prompt,
            "node_threshold": nodes,
            "schema_version": 1,
            "info": {"generator": {"name": "cutaway", "version": version}},
            "pruning_settings": {"node_threshold": nodes, "edge_threshold": edges},
            "generation_settings": dict(graph.facts),
        },
        "qParams": {
            "pinnedIds": [],
            "supernodes": [[name, *members] for name, members in graph.groups],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": every,
        "links": [{"source": ids[s], "target": ids[t], "weight": by} for s, t, by in graph.edges()],
    }


def _named(node: Node) -> str:
    if node.kind == "logit":
        return f"Output {node.name} (p={node.probability:.3f})"
    return node.name


def read_groups(path: Path) -> Groups:
    """The named groups of nodes of a graph's JSON file; UserError for a file without any."""
    if not path.exists():
        raise UserError(f"{path}: there is no such file: export it from a graph's page")
    found = parsed(path).get("qParams")
    listed = found.get("supernodes") if isinstance(found, dict) else None
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{path}: has no groups (qParams.supernodes): export it from a graph's page")
    if len(listed) > MOST:
        raise UserError(f"{path}: has {len(listed):,} groups, and at most {MOST} are read")
    groups: Groups = []
    for one in listed:
        if not isinstance(one, list) or len(one) < 2 or not all(isinstance(part, str) for part in one):
            raise UserError(f"{path}: a group is a list of its name and its nodes' ids")
        groups.append((one[0], tuple(dict.fromkeys(one[1:]))))
    return groups


def check_groups(graph: Graph, groups: Groups, path: Path) -> None:
    """UserError for a file of another text or other kinds of nodes, and for a node that is not there."""
    document = parsed(path)
    metadata, nodes = document.get("metadata"), document.get("nodes")
    prompt = metadata.get("prompt") if isinstance(metadata, dict) else None
    if isinstance(prompt, str) and prompt != graph.prompt:
        raise UserError(f"{path} is the graph of another text, {prompt!r:.80}: its groups are for that one")
    listed = [node for node in nodes if isinstance(node, dict)] if isinstance(nodes, list) else []
    types = [node.get("feature_type") for node in listed]
    features = any(node.kind in ("feature", "error") for node in graph.nodes)
    if features and TYPES["head"] in types:
        raise UserError(
            f"{path} is of a graph without --features, and this one has them: use the same options"
        )
    if not features and (TYPES["feature"] in types or TYPES["error"] in types):
        raise UserError(f"{path} is of a graph with --features: give the same --features")
    known = {node.id for node in graph.nodes}
    for name, members in groups:
        if wrong := next((id for id in members if id not in known), None):
            raise UserError(
                f"{path}: group {name!r:.60} names node {wrong!r:.60}, which this graph does not have: "
                "use the same text, model and options"
            )
