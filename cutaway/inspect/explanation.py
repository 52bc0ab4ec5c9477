"""What a model does with a text, as data: `cutaway explain` prints, draws or gives it as JSON.

Seven steps, each a frozen dataclass of plain numbers: tokens, embeddings, one attention score, direct logit
attribution, the logit lens, the residual stream, the next token. Every number comes from the model's own
trace. Nothing is printed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cutaway.embedding.neighbours import nearest
from cutaway.errors import OperationalError
from cutaway.inspect import tokens
from cutaway.inspect.arrays import softmax
from cutaway.inspect.attribution import Attribution
from cutaway.inspect.inputs import attention_names, output_heads, source_layer
from cutaway.inspect.lens import lens
from cutaway.inspect.tokens import Merges, Token
from cutaway.inspect.trace import Trace
from cutaway.model.config import Decoder
from cutaway.position import rope

NEIGHBOURS = 5

HEADS = 8


@dataclass(frozen=True)
class Neighbour:
    id: int
    text: str
    cosine: float


@dataclass(frozen=True)
class Embedding:
    """A token's row of the table: its norm, and the nearest other rows by cosine similarity."""

    position: int
    norm: float
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class Embeddings:
    """``table``: tokens and width; ``residual``: positions and width of what enters the first block."""

    table: tuple[int, int]
    residual: tuple[int, int]
    scale: float
    learned_positions: bool
    tokens: tuple[Embedding, ...]


@dataclass(frozen=True)
class Rotation:
    """One pair of dimensions before and after RoPE rotates it by ``angle`` radians."""

    position: int
    angle: float
    before: tuple[float, float]
    after: tuple[float, float]


@dataclass(frozen=True)
class RotatedPair:
    """The pair whose rotation changes the score most: its two dimensions, its frequency, both rotations."""

    dimensions: tuple[int, int]
    radians_per_token: float
    query: Rotation
    key: Rotation


@dataclass(frozen=True)
class AttentionWeight:
    """One key's part in the softmax: ``exp`` = exp(score - highest), ``weight`` = exp / sum of all exp."""

    position: int
    score: float
    visible: bool
    exp: float
    weight: float


@dataclass(frozen=True)
class Sink:
    """A learned score without a value: it takes part in the softmax and adds nothing to the output."""

    score: float
    exp: float
    weight: float


@dataclass(frozen=True)
class Score:
    """One attention score: dot · scale, soft-capped if there is a cap, plus ``bias`` for the distance."""

    query_position: int
    key_position: int
    query: tuple[float, ...]
    key: tuple[float, ...]
    dot: float
    scale: float
    softcap: float | None
    bias: float | None
    score: float
    weights: tuple[AttentionWeight, ...]
    sink: Sink | None


@dataclass(frozen=True)
class Attention:
    """One head in detail; ``shapes`` of q, k and v are heads, tokens, size.

    ``maps``: attention maps a head; a differential head has 2 and subtracts the second, and ``score`` is of
    the first.
    """

    layer: int
    head: int
    kv_head: int
    contribution: float
    source_contribution: float
    shapes: Mapping[str, tuple[int, ...]]
    rope: RotatedPair | None
    maps: int
    score: Score


@dataclass(frozen=True)
class Head:
    """``contribution`` in logits; the token with its largest attention weight, None in a recurrent layer."""

    layer: int
    head: int
    contribution: float
    attends_to: int | None
    weight: float | None


@dataclass(frozen=True)
class Layer:
    """What a layer's heads and its MLP add to the answer's logit."""

    attention: float
    mlp: float


@dataclass(frozen=True)
class LogitAttribution:
    """The answer's logit as a sum: ``embed + layers + biases + rest``; the strongest heads, best first."""

    id: int
    text: str
    logit: float
    embed: float
    biases: float
    rest: float
    layers: tuple[Layer, ...]
    heads: tuple[Head, ...]


@dataclass(frozen=True)
class LensRow:
    """The logit lens at the last position after one stage; ``final``: what the final answer has there."""

    name: str
    id: int
    text: str
    probability: float
    final: float


@dataclass(frozen=True)
class Next:
    id: int
    text: str
    logit: float
    probability: float


@dataclass(frozen=True)
class Changed:
    """A next token's probability before and after the edits."""

    id: int
    text: str
    before: float
    after: float


@dataclass(frozen=True)
class Change:
    """The likeliest next tokens before and after the edits that ``what`` names."""

    what: tuple[str, ...]
    next: tuple[Changed, ...]


@dataclass(frozen=True)
class PatchedToken:
    """``recovered`` [i]: the effect of the other text's residual stream after each block, 0 to 1."""

    position: int
    text: str
    other_text: str
    recovered: tuple[float, ...]


@dataclass(frozen=True)
class Patch:
    """Where the two answers part: see ``inspect/causal.py``."""

    other: str
    here: str
    there: str
    tokens: tuple[PatchedToken, ...]


@dataclass(frozen=True)
class Explanation:
    """A text's way from bytes to the next token.

    ``norms`` [t stage] are the norms of each token's residual stream at the ``stages``. ``recurrent_layers``
    have no attention weights, and ``attention`` is None if all layers are recurrent. ``engine`` computed the
    numbers, because of ``engine_reason``. ``change`` and ``patch`` are there when they were asked for.
    """

    layers: int
    width: int
    heads: int
    vocabulary: int
    text: str
    tokens: tuple[Token, ...]
    merges: tuple[Merges, ...]
    embeddings: Embeddings
    recurrent_layers: tuple[int, ...]
    attention: Attention | None
    attribution: LogitAttribution
    lens: tuple[LensRow, ...]
    stages: tuple[str, ...]
    norms: tuple[tuple[float, ...], ...]
    next: tuple[Next, ...]
    engine: str
    engine_reason: str
    change: Change | None = None
    patch: Patch | None = None


def names(config: Decoder) -> list[str]:
    """The values that a trace must keep for its explanation."""
    return ["embed", *attention_names(config), "blocks.*.middle", "blocks.*.out", "logits"]


def explain(trace: Trace, top: int = 10) -> Explanation:
    """Explains one forward pass: how the token after its last came about. ``top``: how many next tokens.

    Raises OperationalError for a trace or a table that holds NaN or infinity.
    """
    trace.check_finite()
    attribution = trace.attribution()
    config = trace.config
    norms = trace.residual_norms()
    chosen = chosen_reading(attribution)
    return Explanation(
        layers=len(config.blocks),
        width=config.width,
        heads=max((output_heads(block.attention) for block in config.blocks), default=0),
        vocabulary=trace.vocabulary,
        text=tokens.text(trace.tokenizer, trace.ids),
        tokens=tokens.tokens(trace.tokenizer, trace.ids),
        merges=tokens.merges(trace.tokenizer, trace.ids)[: tokens.PIECES],
        embeddings=_embeddings(trace),
        recurrent_layers=tuple(i for i, sources in enumerate(attribution.sources) if sources is None),
        attention=None if chosen is None else _attention(trace, attribution, *chosen),
        attribution=_logit_attribution(trace, attribution),
        lens=_lens(trace),
        stages=tuple(norms),
        norms=tuple(map(tuple, np.stack(list(norms.values())).T.tolist())),
        next=next_tokens(trace, top),
        engine=trace.engine.name,
        engine_reason=trace.engine.reason,
    )


def next_tokens(trace: Trace, top: int) -> tuple[Next, ...]:
    """The likeliest next tokens, best first."""
    return tuple(
        Next(one.id, one.token, float(trace.logits[-1, one.id]), one.probability) for one in trace.top(top)
    )


def change(before: Trace, after: Trace, what: Sequence[str], top: int = 10) -> Change:
    """The next token's probabilities in two traces: the likeliest of both, sorted by the second."""
    after.check_finite()
    likely = {guess.id for trace in (before, after) for guess in trace.top(top)}
    was, now = (softmax(trace.logits[-1]) for trace in (before, after))
    rows = (Changed(id, before.token(id), float(was[id]), float(now[id])) for id in likely)
    return Change(tuple(what), tuple(sorted(rows, key=lambda row: -row.after)))


def patch(trace: Trace, other: Sequence[int]) -> Patch:
    """Where in the model another text's answer parts from this one's."""
    from cutaway.inspect.causal import patching

    found = patching(trace.subject, trace.ids, other)
    here, there = found.facts["answers"]
    rows = zip(found.facts["positions"], found.values.T.tolist(), strict=True)
    return Patch(
        other=tokens.text(trace.tokenizer, other),
        here=trace.token(here),
        there=trace.token(there),
        tokens=tuple(PatchedToken(i, trace.tokens[i], trace.token(other[i]), tuple(row)) for i, row in rows),
    )


def chosen_reading(attribution: Attribution) -> tuple[int, int, int] | None:
    """The (layer, head, key position) that added most to the answer's logit; None if all are recurrent.

    The first token is left out because heads rest on it when they have nothing to add (2309.17453), and so is
    the query's own token; in a text too short for that, nothing is left out.
    """
    inner = slice(1, attribution.position) if attribution.position > 1 else slice(0, None)
    split = ((i, sources) for i, sources in enumerate(attribution.sources) if sources is not None)
    best = [(layer, sources[:, inner]) for layer, sources in split]
    if not best:
        return None
    layer, sources = max(best, key=lambda one: float(one[1].max()))
    head, source = divmod(int(sources.argmax()), sources.shape[1])
    return layer, head, source + inner.start


def _embeddings(trace: Trace) -> Embeddings:
    table = trace.instrumented.table("embedding.weight", trace.vocabulary)
    if isinstance(table, np.ndarray) and not np.isfinite(table).all():  # packed, loading looked
        raise OperationalError("the embedding table holds NaN or infinity: the model's weights are damaged")
    unique = np.array(sorted(set(trace.ids)))
    ids, cosines = nearest(table, unique, NEIGHBOURS)
    norms = np.linalg.norm(table[unique], axis=1).tolist()
    rows = {
        id: (norm, tuple(Neighbour(n, trace.token(n), cosine) for n, cosine in zip(*near, strict=True)))
        for id, norm, *near in zip(unique.tolist(), norms, ids.tolist(), cosines.tolist(), strict=True)
    }
    return Embeddings(
        table=(table.shape[0], table.shape[1]),
        residual=(len(trace.ids), trace.config.width),
        scale=trace.config.embedding_scale,
        learned_positions=trace.config.position is not None,
        tokens=tuple(Embedding(i, *rows[id]) for i, id in enumerate(trace.ids)),
    )


def _attention(trace: Trace, attribution: Attribution, layer: int, head: int, source: int) -> Attention:
    config, sources = trace.config.blocks[layer].attention, attribution.sources[layer]
    assert sources is not None
    q, k, v = queries_keys_values(trace, layer)
    kv_head = head // (len(q) // len(k))
    return Attention(
        layer=layer,
        head=head,
        kv_head=kv_head,
        contribution=float(attribution.heads[layer][head]),
        source_contribution=float(sources[head, source]),
        shapes={"q": q.shape, "k": k.shape, "v": v.shape},
        rope=None if config.position is None else _pair(config, q[head], k[kv_head], source),
        maps=config.heads // output_heads(config),
        score=_score(trace, layer, head, q[head], k[kv_head], source),
    )


def queries_keys_values(trace: Trace, layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a layer's scores and outputs are made of: q [h t k], k [g t k], v [g t v], perhaps lent."""
    lender = source_layer(trace.config, layer)
    k, v = (trace[f"blocks.{lender}.attention.{name}"] for name in "kv")
    return trace[f"blocks.{layer}.attention.q"], k, v


def _score(trace: Trace, layer: int, head: int, q: np.ndarray, k: np.ndarray, source: int) -> Score:
    """A score in float64 from the query and key of the trace, and the softmax of its row."""
    config, engine = trace.config.blocks[layer].attention, trace.instrumented
    query, keys = q[-1].astype(np.float64), k.astype(np.float64)
    cap, scale = getattr(config, "softcap", None), score_scale(config)
    scores = keys @ query * scale
    scores = scores if cap is None else cap * np.tanh(scores / cap)
    bias = engine.distance_bias(layer, len(trace.ids))
    if bias is not None:
        scores = scores + bias[head][::-1]
    visible = visible_keys(trace, layer)[-1]
    learned = sinks(trace, layer)
    sink = None if learned is None else float(learned[head])
    highest = max([float(scores[visible].max()), *([] if sink is None else [sink])])
    exps = np.where(visible, np.exp(np.minimum(scores - highest, 0)), 0.0)
    sink_exp = 0.0 if sink is None else float(np.exp(sink - highest))
    total = exps.sum() + sink_exp
    columns = (column.tolist() for column in (scores, visible, exps, exps / total))
    return Score(
        query_position=len(trace.ids) - 1,
        key_position=source,
        query=tuple(query.tolist()),
        key=tuple(keys[source].tolist()),
        dot=float(keys[source] @ query),
        scale=scale,
        softcap=cap,
        bias=None if bias is None else float(bias[head, len(trace.ids) - 1 - source]),
        score=float(scores[source]),
        weights=tuple(AttentionWeight(i, *one) for i, one in enumerate(zip(*columns, strict=True))),
        sink=None if sink is None else Sink(sink, sink_exp, sink_exp / float(total)),
    )


def score_scale(config: Any) -> float:
    """What multiplies the product of a query and a key; latent attention's have a rotated part besides."""
    if config.scale is not None:
        return config.scale
    return (config.key_size + getattr(config, "rope_dim", 0)) ** -0.5


def sinks(trace: Trace, layer: int) -> np.ndarray | None:
    """float32 [h]: the learned scores without a value of a layer's heads, if it has them."""
    name = f"blocks.{layer}.attention.sinks"
    return trace.instrumented.weight(name) if name in trace.config.weights() else None


def visible_keys(trace: Trace, layer: int) -> np.ndarray:
    """bool [t s]: whether token t attends to token s in a layer, by its mask, or as an indexer chose."""
    name = f"blocks.{layer}.attention.chosen"
    if name in trace:
        return trace[name]
    at = np.arange(len(trace.ids))
    seen = trace.config.blocks[layer].attention.visibility.sees(at[:, None], at[None])
    return np.broadcast_to(seen, (len(at), len(at)))


def first_rotated(config: Any) -> int:
    """Where in a head the rotated dimensions begin: latent attention rotates its last ones."""
    return getattr(config, "key_size", 0) if hasattr(config, "rope_dim") else 0


def magnitude(config: Any) -> float:
    """What rotation multiplies queries and keys by; a norm after it undoes that."""
    return 1.0 if getattr(config, "qk_norm_after", False) else config.position.magnitude


def _pair(config: Any, q: np.ndarray, k: np.ndarray, source: int) -> RotatedPair:
    """The pair whose rotation changes q · k most. What it was before is found by rotating it back."""
    position: rope.Config = config.position
    frequencies = position.frequencies(len(q))
    last = len(q) - 1
    at = _dimensions(position, first_rotated(config))
    query, key = (row[at[0]].astype(np.float64) + 1j * row[at[1]] for row in (q[last], k[source]))
    query_before, key_before = (
        pairs * np.exp(-1j * token * frequencies) / magnitude(config)
        for pairs, token in ((query, last), (key, source))
    )
    change = (query * key.conj()).real - (query_before * key_before.conj()).real
    pair = int(np.abs(change).argmax())
    frequency = float(frequencies[pair])
    return RotatedPair(
        dimensions=(int(at[0][pair]), int(at[1][pair])),
        radians_per_token=frequency,
        query=_rotation(last, frequency, query_before[pair], query[pair]),
        key=_rotation(source, frequency, key_before[pair], key[pair]),
    )


def _dimensions(position: rope.Config, first: int) -> tuple[np.ndarray, np.ndarray]:
    """The two dimensions of each pair: (2i, 2i + 1) where they are interleaved, else (i, i + half)."""
    half = position.size // 2
    i = np.arange(half) + first
    return (i * 2 - first, i * 2 - first + 1) if position.interleaved else (i, i + half)


def _rotation(position: int, frequency: float, before: complex, after: complex) -> Rotation:
    pairs = ((float(pair.real), float(pair.imag)) for pair in (before, after))
    return Rotation(position, position * frequency, *pairs)


def _logit_attribution(trace: Trace, attribution: Attribution) -> LogitAttribution:
    heads = []
    for layer, head, part in attribution.strongest(HEADS):
        if attribution.sources[layer] is None:
            heads.append(Head(layer, head, part, None, None))
            continue
        weights = trace.attention(layer)[head, attribution.position]
        position = int(weights.argmax())
        heads.append(Head(layer, head, part, position, float(weights[position])))
    layers = zip(attribution.attention.tolist(), attribution.mlps.tolist(), strict=True)
    return LogitAttribution(
        id=attribution.token,
        text=trace.token(attribution.token),
        logit=attribution.logit,
        embed=attribution.embed,
        biases=attribution.biases,
        rest=attribution.rest,
        layers=tuple(Layer(*parts) for parts in layers),
        heads=tuple(heads),
    )


def _lens(trace: Trace) -> tuple[LensRow, ...]:
    last = {name: residual[-1:] for name, residual in trace.residuals().items()}
    rows = lens(trace.instrumented, last, trace.vocabulary)
    columns = (part[:, 0].tolist() for part in (rows.ids, rows.probabilities, rows.final))
    return tuple(
        LensRow(name, id, trace.token(id), probability, final)
        for name, id, probability, final in zip(rows.names, *columns, strict=True)
    )
