"""Attribution graphs: effects sum to what a node is, equal autograd's on the frozen model, and are pruned."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cutaway.attention import gated, gqa, mha, mla
from cutaway.commands import graph as graph_command
from cutaway.errors import UserError
from cutaway.hooks import tracing
from cutaway.inspect.edits import Add
from cutaway.inspect.graph import drawn, exported
from cutaway.inspect.graph.attribution_graph import Graph, Node, influences, normalised, scores
from cutaway.inspect.graph.build import attribution_graph
from cutaway.inspect.graph.clamp import measured, passed_on, predicted, reduced, total_effects
from cutaway.inspect.graph.layout import layout
from cutaway.inspect.graph.logits import spaced
from cutaway.inspect.graph.parts import Parts
from cutaway.inspect.inputs import has_gate, mlp_input
from cutaway.inspect.pairs import token_id
from cutaway.inspect.sae import SAE, Card
from cutaway.inspect.subject import Subject
from cutaway.layers.config import MLP, MoE, Norm, Router
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder as Config
from cutaway.model.decoder import Decoder
from cutaway.position import rope
from tests.small import CONTEXT, SHAPES, VOCAB, WIDTH, Bytes, decoder

TEXT = list(b"all of it adds")


def _parallel() -> Config:
    """One norm before both halves, biases everywhere, a residual factor, and no norm after."""
    heads = mha.Config(heads=4, key_size=8, bias=True, position=rope.Config(8))
    block = Block(heads, MLP(48, gated=False, bias=True), Norm("layer"), parallel="shared", residual=0.5)
    return Config(VOCAB, WIDTH, CONTEXT, (block,) * 2, Norm("layer"))


def _gated() -> Config:
    """Gates after attention, norms only after both halves (OLMo 2), a factor on the MLP's output."""
    heads = gated.Config(heads=4, kv_heads=2, key_size=8, position=rope.Config(8))
    return Config(
        VOCAB, WIDTH, CONTEXT, (Block(heads, MLP(48, out_scale=0.5), pre_norm=False, post_norm=True),) * 2
    )


def _olmo2() -> Config:
    """Norms only after both halves, one norm over all queries; the MLP reads the residual stream itself."""
    heads = gqa.Config(
        heads=4, kv_heads=2, key_size=8, position=rope.Config(8), qk_norm=Norm(), qk_norm_over="width"
    )
    return Config(VOCAB, WIDTH, CONTEXT, (Block(heads, MLP(48), pre_norm=False, post_norm=True),) * 2)


def _latent() -> Config:
    """Latent attention, gated, its queries from a latent too; experts behind matrices that they share, with
    biases; experts whose weights are on their inputs.
    """
    heads = mla.Config(
        heads=4, key_size=8, rope_dim=4, latent=12, query_latent=16, gated=True, position=rope.Config(4)
    )
    experts = MoE(4, 2, 20, bias=True, latent=16, shared=12, shared_gate=True, out_scale=0.5)
    weighed = MoE(3, 1, 16, router=Router(score="sigmoid", on_input=True), normalised=False, shared=8)
    return Config(VOCAB, WIDTH, CONTEXT, tuple(Block(heads, mlp) for mlp in (experts, MLP(48), weighed)))


MORE = {"parallel": _parallel, "gated": _gated, "olmo2": _olmo2, "latent": _latent}
FAMILIES = [*SHAPES, *MORE]


def model_of(family: str) -> Decoder:
    return perturbed(MORE[family]()) if family in MORE else decoder(family)


def perturbed(config: Config) -> Decoder:
    """A decoder with every weight moved off the value it starts at."""
    torch.manual_seed(0)
    model = Decoder(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return model


def whole(family: str, neurons: int = 12) -> tuple[Decoder, Graph]:
    """A small model and the graph of all of its nodes."""
    model = model_of(family)
    return model, attribution_graph(Subject.of(model, Bytes()), TEXT, neurons=neurons, least=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_reaches_a_node_sums_to_what_it_is(family: str) -> None:
    _, graph = whole(family)
    kinds = {node.kind for node in graph.nodes}
    assert kinds == {"embedding", "head", "mlp", "neuron", "logit"}
    missed = {
        node.id: abs(node.value - node.constant - effects.sum(dtype=np.float64))
        for node, effects in zip(graph.nodes, graph.effects, strict=True)
        if node.expanded
    }
    assert max(missed.values()) < 1e-4, max(missed, key=missed.__getitem__)
    assert len(missed) > 90 and graph.facts["rest"] < 1e-5
    assert np.array_equal(graph.effects, np.tril(graph.effects, -1)), (
        "a part reads what was computed before it"
    )


def frozen_run(model: Decoder) -> tuple[torch.Tensor, dict[str, Any], dict[str, torch.Tensor]]:
    """The logits [t v] of a pass whose attention weights and norms are frozen, the leaves that its parts
    wrote, and what each was before it became one.
    """
    leaves: dict[str, Any] = {}
    before: dict[str, torch.Tensor] = {}

    def leaf(name: str) -> Any:
        def of(value: torch.Tensor) -> torch.Tensor:
            before[name] = value
            leaves[name] = value.detach().requires_grad_()
            return leaves[name]

        return of

    blocks = range(len(model.config.blocks))
    parts = [f"blocks.{i}.attention.z" for i in blocks] + [site(model, i) for i in blocks]
    frozen = [f"blocks.{i}.attention.gate" for i in blocks if has_gate(model.config.blocks[i].attention)]
    dense = [i for i in blocks if isinstance(model.config.blocks[i].mlp, MLP)]
    inner = [f"blocks.{i}.mlp.{part}" for i in dense for part in ("gate", "up", "hidden")]
    inner = [name for name in inner if not name.endswith("gate") or model.config.blocks[0].mlp.gated]
    edit = {name: leaf(name) for name in ("embed", *parts)}
    edit |= dict.fromkeys(["*.pattern", "*.scale", "norm.scale", *frozen], torch.Tensor.detach)
    with (
        tracing(
            model, *inner, *(f"blocks.{i}.{half}" for i in blocks for half in ("middle", "out")), edit=edit
        ) as seen,
        torch.enable_grad(),
    ):
        logits = model(torch.tensor([TEXT]), torch.arange(len(TEXT))[None])[0]
    return logits, leaves, before | dict(seen)


def site(model: Decoder, layer: int) -> str:
    """The activation that a layer's neurons add up to."""
    mlp = model.config.blocks[layer].mlp
    return f"blocks.{layer}.mlp.{'down' if isinstance(mlp, MLP) else 'out'}"


def effects_of(number: torch.Tensor, leaves: dict[str, Any], graph: Graph) -> dict[str, float]:
    """By autograd: each leaf times its gradient, at the nodes that they are."""
    grads = dict(
        zip(
            leaves,
            torch.autograd.grad(number, list(leaves.values()), retain_graph=True, allow_unused=True),
            strict=True,
        )
    )
    found = {}
    for node in graph.nodes:
        path = f"blocks.{node.layer}"
        name = {
            "embedding": "embed",
            "head": f"{path}.attention.z",
            "mlp": next(one for one in (f"{path}.mlp.down", f"{path}.mlp.out", "embed") if one in leaves),
        }
        if node.kind not in name or grads[name[node.kind]] is None:
            continue
        at = (0, node.index, node.position) if node.kind == "head" else (0, node.position)
        found[node.id] = float(grads[name[node.kind]][at] @ leaves[name[node.kind]][at].detach())
    return found


def along(out: torch.Tensor, leaf: torch.Tensor, at: tuple[int, ...], position: int) -> torch.Tensor:
    """A part's direction in the residual stream ``out``, as one of the numbers of its leaf at a place."""
    rows = [torch.autograd.grad(one, leaf, retain_graph=True)[0][at] for one in out[0, position]]
    matrix = torch.stack(rows)  # [d n]
    wrote = matrix @ leaf[at].detach()
    return wrote / wrote.norm() @ matrix


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "gated", "parallel", "latent"])
def test_effects_are_autograds_on_the_frozen_model(family: str) -> None:
    model, graph = whole(family, neurons=0)
    logits, leaves, before = frozen_run(model)
    cap = model.config.softcap
    plain = logits[-1] if cap is None else cap * torch.atanh(logits[-1] / cap)
    later = [
        [n for n, one in enumerate(graph.nodes) if one.kind == kind and one.layer] for kind in ("head", "mlp")
    ]
    later[1] = [n for n in later[1] if isinstance(model.config.blocks[graph.nodes[n].layer].mlp, MLP)]
    for target in [*graph.logits[:2], *later[0][::9], *later[1][::5]]:
        node = graph.nodes[target]
        path = f"blocks.{node.layer}"
        if node.kind == "logit":
            number = plain[node.index] - plain.mean()
        elif node.kind == "head":
            name, at = f"{path}.attention.z", (0, node.index, node.position)
            number = along(before[f"{path}.middle"], leaves[name], at, node.position) @ before[name][at]
        else:
            name, at = f"{path}.mlp.down", (0, node.position)
            by = (
                along(before[f"{path}.out"], leaves[name], at, node.position)
                @ model.blocks[node.layer].mlp.down.weight
            )
            inner = [
                before[f"{path}.mlp.{one}"][at] for one in ("gate", "up") if f"{path}.mlp.{one}" in before
            ]
            halves = [(by * before[f"{path}.mlp.hidden"][at] / x).detach() @ x for x in inner]
            number = sum(halves) / len(halves)
        found = effects_of(number, leaves, graph)
        for n, source in enumerate(graph.nodes):
            if source.id in found:
                assert graph.effects[target, n] == pytest.approx(found[source.id], abs=5e-5), (node, source)


def test_a_neuron_takes_its_part_from_its_mlp() -> None:
    """MLP and neurons together are the MLP alone; the chosen neurons are those with the largest effects."""
    _, without = whole("llama", neurons=0)
    _, graph = whole("llama", neurons=12)
    own = [node for node in graph.nodes if node.kind == "neuron"]
    assert len(own) == 12
    for target in graph.logits:
        here = next(n for n in without.logits if without.nodes[n].id == graph.nodes[target].id)
        for node in own:
            mlp = f"{node.layer}_mlp_{node.position}"
            both = sum(
                graph.effects[target, n]
                for n, one in enumerate(graph.nodes)
                if (one.layer, one.position) == (node.layer, node.position) and one.kind in ("neuron", "mlp")
            )
            assert both == pytest.approx(without.effects[here, without.number(mlp)], abs=1e-5)


def small_graph() -> Graph:
    """Two tokens, an error, two features and a logit, with effects by hand."""
    kinds = ["embedding", "embedding", "error", "feature", "feature", "logit"]
    nodes = [Node(kind, 0, 0, n, expanded=kind in ("feature", "logit")) for n, kind in enumerate(kinds)]  # type: ignore[arg-type]
    effects = np.zeros((6, 6), np.float32)
    effects[3, :3] = 3, -1, 0
    effects[4, :4] = 0, 2, 1, -1
    effects[5, :5] = 0, 0, 1, 2, -5
    weights = np.array([0, 0, 0, 0, 0, 1.0])
    graph = Graph("ab", "", ["a", "b"], nodes, effects, weights, np.zeros(6), sources=np.arange(6))
    return replace(graph, influence=influences(normalised(effects), weights))


def test_influence_is_that_of_all_paths() -> None:
    graph = small_graph()
    parts = normalised(graph.effects).astype(np.float64)
    assert parts[4].tolist() == [0, 0.5, 0.25, 0.25, 0, 0]
    every = np.linalg.inv(np.eye(6) - parts) - np.eye(6)
    assert graph.influence == pytest.approx(graph.weights @ every, abs=1e-6)
    by, (a, b, error) = (graph.influence + graph.weights)[3:], graph.influence[:3]
    ends = np.array([node.kind == "error" for node in graph.nodes])
    inputs = np.array([node.kind == "embedding" for node in graph.nodes])
    found = scores(parts[3:], by, graph.influence, inputs, ends)
    assert found["replacement"] == pytest.approx((a + b) / (a + b + error))
    assert found["completeness"] == pytest.approx(1 - (by[1] * 0.25 + by[2] * 0.125) / by.sum())


def test_pruning_keeps_nodes_and_edges_by_influence() -> None:
    graph = small_graph()
    some = graph.pruned(0.5, 0.9)
    assert [node.index for node in some.nodes] == [0, 1, 4, 5], "the ends, and what has the most influence"
    assert some.edges() == [(1, 2, 2.0), (2, 3, -5.0)]
    assert graph.pruned(1, 1).edges() == graph.edges()
    fed = graph.pruned(0.95, 0.5)
    assert all((fed.effects != 0).any(0)[n] for n, node in enumerate(fed.nodes) if node.kind == "feature")
    for wrong in ({"nodes": 0}, {"edges": 1.5}):
        with pytest.raises(UserError, match="give a part of the influence"):
            graph.pruned(**wrong)


def test_nodes_of_little_influence_are_not_expanded() -> None:
    subject = Subject.of(decoder(), Bytes())
    _, every = whole("llama")
    some = attribution_graph(subject, TEXT, neurons=0, least=0.02)
    assert len(some.nodes) < len(every.nodes) and some.facts["replacement"] < 1
    assert every.facts["replacement"] == pytest.approx(1) and every.facts["left_out"] == 0
    assert 0 < some.facts["left_out"] <= len(every.nodes) - len(some.nodes) and some.facts["least"] == 0.02
    assert some.facts["left_out_influence"] == pytest.approx(1 - some.facts["replacement"])
    assert graph_command._left_out(every, every) == []
    assert (
        f"{some.facts['left_out']} nodes with an influence below 0.02"
        in graph_command._left_out(some, some)[0]
    )
    one = attribution_graph(subject, TEXT, 65, neurons=0, least=0.02)
    assert [(one.nodes[n].index, one.nodes[n].name) for n in one.logits] == [(65, "'A'")]


def test_a_terminal_shows_groups_features_and_whole_tokens() -> None:
    _, graph = whole("llama")
    grouped = replace(graph, groups=[("a", ("1_h0_13",)), ("b", ("1_h0_13", "0_h1_2"))])
    (first, second) = graph_command._groups(grouped, {"groups": {"a": {"0.0": [-1.5], "2.0": [0.25]}}})
    name = graph.nodes[graph.logits[0]].name
    assert first == f"group 'a', 1 node; at 0 times its value {name} -1.50; at 2 times its value {name} +0.25"
    assert second == "group 'b', 2 nodes"
    _, made = whole("llama")
    assert isinstance(made.source, Parts)
    made.source.nodes = [Node("feature", 0, 0, n) for n in range(7)]
    assert graph_command._left_out(made, graph)[-1].startswith("0 of 7 active features kept")
    lines = graph_command._wrapped("logits: ", ["' a' 1%", "' b' 2%", "' c' 3%"], 24)
    assert lines == ["logits: ' a' 1%, ' b' 2%,", "  ' c' 3%"] or lines == [
        "logits: ' a' 1%,",
        "  ' b' 2%, ' c' 3%",
    ]


def test_a_likelier_token_with_a_space_is_named() -> None:
    class Spaced(Bytes):
        def encode(self, text: str) -> list[int]:
            return list(text.removeprefix(" ").encode()) if text != " b" else [1]

    row = np.zeros((1, VOCAB))
    row[0, 1] = 9
    subject = Subject.of(decoder(), Spaced())
    assert list(spaced(subject, {"logits": row}, "b") or {}) == ["b", " b"]
    assert spaced(subject, {"logits": row}, "a") is None and spaced(subject, {"logits": row}, " b") is None
    with pytest.raises(UserError, match=r"'' is 0 tokens, and one is needed: give one$"):
        token_id(subject, "")
    with pytest.raises(UserError, match="give one, such as its first, 'a'"):
        token_id(subject, " abc")


def test_what_has_no_graph_is_refused() -> None:
    subject = Subject.of(decoder(), Bytes())
    for options, why in (
        ({"least": 0}, "least is 0"),
        ({"neurons": -1}, "neurons is -1: give 0 to 1,000"),
        ({"neurons": 10**8}, "neurons is 100000000"),
        ({"target": "ab"}, "'ab' is 2 tokens"),
        ({"target": 700}, "token 700 is not in this model's vocabulary"),
    ):
        with pytest.raises(UserError, match=why):
            attribution_graph(subject, TEXT, **options)
    own = MoE(4, 2, 20, shared=8, norms=Norm())
    for mlp, why in ((own, "experts with norms of its own"), (MLP(8, hidden_norm=Norm()), "a norm within")):
        blocks = tuple(replace(block, mlp=mlp) for block in SHAPES["llama"]().blocks)
        model = Decoder(replace(SHAPES["llama"](), blocks=blocks))
        with pytest.raises(UserError, match=f"layer 0 of this model has .*{why}"):
            attribution_graph(Subject.of(model, Bytes()), TEXT)
    with pytest.raises(UserError, match="the text has no tokens"):
        attribution_graph(subject, [])
    with pytest.raises(UserError, match="a graph of 9,000 tokens has 144,000 nodes"):
        attribution_graph(subject, [65] * 9000)


def transcoders(model: Decoder, layers: dict[int, list[str]], skip: bool = False) -> list[SAE]:
    """Random ones: each reads a layer's MLP input and writes these activations."""
    made, random = [], np.random.default_rng(0)
    kind = "cross_layer" if any(len(writes) > 1 for writes in layers.values()) else "transcoder"
    for layer, writes in layers.items():
        shapes = {"W_enc": (24, WIDTH), "b_enc": (24,), "W_dec": (24, WIDTH * len(writes))}
        shapes |= {"b_dec": (WIDTH * len(writes),)} | (
            {"W_skip": (WIDTH * len(writes), WIDTH)} if skip else {}
        )
        tensors = {
            name: random.standard_normal(shape, np.float32) * np.float32(0.3)
            for name, shape in shapes.items()
        }
        widths = (WIDTH,) * (1 + len(writes))
        read = mlp_input(model.config, layer)
        card = Card(kind, "topk", (read,), tuple(writes), widths, "small", 24, 4, skip)
        made.append(SAE(card, tensors))
    return made


SETS = {
    "llama": ({0: ["blocks.0.mlp.down"], 2: ["blocks.2.mlp.down"]}, False),
    "gpt2": ({0: ["blocks.0.mlp.down", "blocks.1.mlp.down"], 1: ["blocks.1.mlp.down"]}, True),
    "gemma": ({1: ["blocks.1.mlp_post_norm"]}, False),
    "sandwich": ({0: ["blocks.0.mlp.down"], 1: ["blocks.1.mlp.down"]}, True),
    "parallel": ({0: ["blocks.0.mlp.down"], 1: ["blocks.1.mlp.down"]}, True),
    "olmo2": ({0: ["blocks.0.mlp.down"], 1: ["blocks.1.mlp_post_norm"]}, True),
    "latent": ({0: ["blocks.0.mlp.out"], 1: ["blocks.1.mlp.down"]}, True),
}


def replaced_run(
    model: Decoder, graph: Graph, found: list[SAE]
) -> tuple[torch.Tensor, dict[str, Any], dict[str, Any]]:
    """The logits of the frozen model whose MLPs are leaves: features, errors, or outputs. And the leaves, and
    each layer's MLP input.
    """
    inputs: dict[int, torch.Tensor] = {}
    leaves: dict[str, Any] = {}
    active = {one.layer: torch.zeros(len(TEXT), 24) for one in found}
    for node in graph.nodes:
        if node.kind == "feature":
            active[node.layer][node.position, node.index] = node.value
    leaves |= {f"features {layer}": x.requires_grad_() for layer, x in active.items()}

    def replaced(site: str, layer: int) -> Any:
        def of(value: torch.Tensor) -> torch.Tensor:
            parts = torch.zeros_like(value[0])
            for one in found:
                if site in one.writes:
                    sinks = torch.arange(len(TEXT))[:, None] == 0
                    parts = parts + leaves[f"features {one.layer}"] @ torch.from_numpy(one.decoder(site))
                    parts = parts + torch.where(sinks, 0, torch.from_numpy(one.parts(one.b_dec[None])[site]))
                    if one.W_skip is not None:
                        by = torch.from_numpy(one.parts(one.W_skip.T)[site])
                        parts = parts + torch.where(sinks, 0, inputs[one.layer] @ by)
            leaves[f"rest {layer}"] = (value[0] - parts).detach().requires_grad_()
            return (parts + leaves[f"rest {layer}"])[None]

        return of

    def embed(value: torch.Tensor) -> torch.Tensor:
        leaves["embed"] = value.detach().requires_grad_()
        return leaves["embed"]

    blocks = enumerate(model.config.blocks)
    gates = [f"blocks.{i}.attention.gate" for i, block in blocks if has_gate(block.attention)]
    edit: dict[str, Any] = {"embed": embed} | dict.fromkeys(
        ["*.pattern", "*.scale", "norm.scale", *gates], torch.Tensor.detach
    )
    for i in range(len(model.config.blocks)):
        after = any(f"blocks.{i}.mlp_post_norm" in one.writes for one in found)
        written = f"blocks.{i}.mlp_post_norm" if after else site(model, i)
        edit[written] = replaced(written, i)
        edit[mlp_input(model.config, i)] = lambda value, i=i: inputs.update({i: value[0]})
    with tracing(model, edit=edit), torch.enable_grad():
        logits = model(torch.tensor([TEXT]), torch.arange(len(TEXT))[None])[0]
    return logits, leaves, inputs


@pytest.mark.parametrize("family", list(SETS))
def test_features_effects_pass_through_frozen_attention(family: str) -> None:
    """They are autograd's, and sum to the features' pre-activations."""
    model = model_of(family)
    found = transcoders(model, *SETS[family])
    graph = attribution_graph(Subject.of(model, Bytes()), TEXT, features=found, least=1e-12)
    for node, effects in zip(graph.nodes, graph.effects, strict=True):
        if node.expanded:
            assert effects.sum(dtype=np.float64) == pytest.approx(node.value - node.constant, abs=1e-4), node
    logits, leaves, inputs = replaced_run(model, graph, found)
    cap = model.config.softcap
    plain = logits[-1] if cap is None else cap * torch.atanh(logits[-1] / cap)
    by_layer = {one.layer: one for one in found}
    features = [n for n, node in enumerate(graph.nodes) if node.kind == "feature" and node.expanded]
    assert len(features) > 20
    for target in [graph.logits[0], *features[:: len(features) // 6]]:
        node = graph.nodes[target]
        if node.kind == "logit":
            number = plain[node.index] - plain.mean()
        else:
            number = inputs[node.layer][node.position] @ torch.from_numpy(
                by_layer[node.layer].W_enc[node.index]
            )
        names = [name for name in leaves if leaves[name] is not None]
        grads = dict(
            zip(
                names,
                torch.autograd.grad(number, [leaves[n] for n in names], retain_graph=True, allow_unused=True),
                strict=True,
            )
        )
        for n, source in enumerate(graph.nodes):
            name = {"embedding": "embed", "feature": f"features {source.layer}"}.get(
                source.kind, f"rest {source.layer}"
            )
            if source.kind == "logit":
                continue
            grad = grads[name]
            at: Any = (0, source.position) if name == "embed" else source.position
            at = (source.position, source.index) if source.kind == "feature" else at
            want = 0.0 if grad is None else float((grad[at] * leaves[name][at].detach()).sum())
            assert graph.effects[target, n] == pytest.approx(want, abs=5e-5), (node.id, source)


def test_only_transcoders_of_this_model_are_features() -> None:
    model = decoder()
    good = transcoders(model, {0: ["blocks.0.mlp.down"]})[0]
    wrong = {
        "of kind 'sae'": replace(good.card, kind="sae"),
        "this model has 3 layers": replace(good.card, reads=("blocks.7.mlp_norm",)),
        "reads blocks.0.mlp_norm, and writes": replace(good.card, writes=("blocks.0.out",)),
    }
    for why, card in wrong.items():
        with pytest.raises(UserError, match=why):
            attribution_graph(Subject.of(model, Bytes()), TEXT, features=[SAE(card, good.tensors)])
    with pytest.raises(UserError, match="two transcoders of layer 0"):
        attribution_graph(Subject.of(model, Bytes()), TEXT, features=[good, good])
    with pytest.raises(UserError, match="a graph of features has none"):
        attribution_graph(Subject.of(model, Bytes()), TEXT, features=[good], neurons=3)


def test_a_clamp_passes_on_along_all_paths() -> None:
    graph = small_graph()
    values = [1, 1, 1, 2, 4, 6]
    graph = replace(
        graph, nodes=[node._replace(value=v) for node, v in zip(graph.nodes, values, strict=True)]
    )
    # feature 3 to half: -1; node 4 reads -1 of its value 2, so it rises by 0.5; the logit by 2/2 and -5/4
    for wrong, why in (
        ({9: 0.5}, "there is no node 9: the graph's are 0 to 5"),
        ({3: float("nan")}, "to nan times"),
    ):
        for clamped in (
            predicted,
            lambda own, clamps: measured(Subject.of(decoder(), Bytes()), own, [clamps]),
        ):
            with pytest.raises(UserError, match=why):
                clamped(graph, wrong)
    changes = predicted(graph, {3: 0.5})
    assert changes.tolist() == pytest.approx([0, 0, 0, -1, 0.5, -1 - 0.625])
    both = predicted(graph, {3: 0.5, 4: 1.0})
    assert both[5] == pytest.approx(-1), "a clamped node passes nothing on"
    alone = total_effects(graph)
    for n in range(5):
        assert alone[0, n] == pytest.approx(predicted(graph, {n: 0.0})[5])
    kept = np.array([0, 3, 5])
    less = graph.of(kept, graph.effects)
    assert predicted(less, {1: 0.5}, reduced(passed_on(graph), kept))[2] == pytest.approx(changes[5])


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_what_is_measured_is_the_model_with_the_part_changed(family: str) -> None:
    model, graph = whole(family)
    subject = Subject.of(model, Bytes())
    last = [n for n, node in enumerate(graph.nodes) if node.layer == 2 and node.position == len(TEXT) - 1]
    kinds = {graph.nodes[n].kind: n for n in last}
    clamps = [{kinds["head"]: 0.0}, {kinds["mlp"]: 1.5}, {kinds["head"]: 1.0}]
    clamps += [{n: 0.0} for n, node in enumerate(graph.nodes) if node.kind == "neuron"][:1]
    found = measured(subject, graph, clamps)
    head, neuron = graph.nodes[kinds["head"]], next(node for node in graph.nodes if node.kind == "neuron")

    def changed(name: str, by: Any) -> np.ndarray:
        with torch.no_grad(), tracing(model, edit={name: by}):
            row = model(torch.tensor([TEXT]), torch.arange(len(TEXT))[None])[0, -1].double()
        cap = model.config.softcap
        row = row if cap is None else cap * torch.atanh(row / cap)
        return (row - row.mean()).numpy()[[graph.nodes[n].index for n in graph.logits]]

    def times(at: Any, factor: float) -> Any:
        def of(value: torch.Tensor) -> torch.Tensor:
            value = value.clone()
            value[at] *= factor
            return value

        return of

    base = changed("embed", lambda value: value)
    assert found[0] == pytest.approx(
        changed("blocks.2.attention.z", times((0, head.index, -1), 0.0)) - base, abs=1e-4
    )
    neurons = [
        one.index
        for one in graph.nodes
        if (one.kind, one.layer, one.position) == ("neuron", 2, len(TEXT) - 1)
    ]
    others = np.setdiff1d(np.arange(48), neurons)
    assert found[1] == pytest.approx(
        changed("blocks.2.mlp.hidden", times((0, -1, others), 1.5)) - base, abs=1e-4
    )
    assert found[2] == pytest.approx(np.zeros(len(base)), abs=1e-5), "a clamp to its own value"
    name, at = f"blocks.{neuron.layer}.mlp.hidden", (0, neuron.position, neuron.index)
    assert found[3] == pytest.approx(changed(name, times(at, 0.0)) - base, abs=1e-4)
    with pytest.raises(UserError, match="'a' cannot be clamped"):
        measured(subject, graph, [{0: 0.0}])


def test_a_features_clamp_changes_what_it_writes() -> None:
    model = decoder("gpt2")
    found = transcoders(model, *SETS["gpt2"])
    graph = attribution_graph(Subject.of(model, Bytes()), TEXT, features=found, least=1e-12)
    target = next(n for n, node in enumerate(graph.nodes) if node.kind == "feature" and node.layer == 0)
    node = graph.nodes[target]
    (change,) = measured(Subject.of(model, Bytes()), graph, [{target: 3.0}])
    edits = [
        Add(
            name=name,
            vector=found[0].decoder(name)[node.index].tolist(),
            positions=[node.position],
            strength=2 * node.value,
        )
        for name in found[0].writes
    ]
    rows = [
        one["logits"][-1].astype(float)
        for one in Subject.of(model, Bytes()).values([TEXT] * 2, ["logits"], each=[(), edits])
    ]
    want = (rows[1] - rows[1].mean()) - (rows[0] - rows[0].mean())
    assert len(edits) == 2
    assert change == pytest.approx(want[[graph.nodes[n].index for n in graph.logits]], abs=1e-4)


def test_the_json_is_neuronpedias_and_its_groups_are_read(tmp_path: Path) -> None:
    _, graph = whole("llama")
    kept = replace(graph.pruned(), groups=[("a head", ("1_h0_13",))])
    document = exported.to_json(kept, 0.8, 0.98, "1")
    assert {"slug", "scan", "prompt_tokens", "prompt"} <= set(document["metadata"])
    ids = [node["node_id"] for node in document["nodes"]]
    assert len(set(ids)) == len(ids) == len(kept.nodes)
    for node in document["nodes"]:
        assert {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"} <= set(node)
    assert all({link["source"], link["target"]} <= set(ids) for link in document["links"])
    assert sum(node["is_target_logit"] for node in document["nodes"]) == 1
    json.dumps(document, allow_nan=False)
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(document))
    groups = exported.read_groups(file)
    assert groups == [("a head", ("1_h0_13",))]
    exported.check_groups(graph, groups, file)
    with pytest.raises(UserError, match="names node '9_h0_0', which this graph does not have"):
        exported.check_groups(graph, [("x", ("9_h0_0",))], file)
    with pytest.raises(UserError, match="is the graph of another text, 'all of it adds'"):
        exported.check_groups(replace(graph, prompt="another"), groups, file)
    features = [node._replace(kind="feature") if node.kind == "mlp" else node for node in graph.nodes]
    with pytest.raises(UserError, match="is of a graph without --features"):
        exported.check_groups(replace(graph, nodes=features), groups, file)
    file.write_text(json.dumps(exported.to_json(replace(graph, nodes=features), 1, 1, "1")))
    with pytest.raises(UserError, match="is of a graph with --features"):
        exported.check_groups(graph, groups, file)
    with pytest.raises(UserError, match="there is no such file"):
        exported.read_groups(tmp_path / "none.json")
    for wrong in (
        "[]",
        "{}",
        '{"qParams": {"supernodes": [[1, 2]]}}',
        '{"qParams": {"supernodes": {"a": 1}}}',
    ):
        file.write_text(wrong)
        with pytest.raises(UserError, match=r"graph\.json"):
            exported.read_groups(file)


def test_every_node_has_a_place_of_its_own() -> None:
    _, graph = whole("llama")
    found = layout(graph)
    assert len(set(found.xy)) == len(graph.nodes)
    for node, (x, y) in zip(graph.nodes, found.xy, strict=True):
        left, right = found.columns[node.position]
        assert left < x < right and 0 < y < found.height
    heights = {
        layer: [y for node, (_, y) in zip(graph.nodes, found.xy, strict=True) if node.layer == layer]
        for layer in range(-1, 4)
    }
    assert all(max(heights[layer + 1]) < min(heights[layer]) for layer in range(-1, 3)), (
        "later layers are above"
    )
    assert drawn.svg(graph.pruned()).count("<circle") > 10
