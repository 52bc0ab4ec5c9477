"""The data of `cutaway explain`: what a model does with a text, to print, draw or give as JSON.

Seven steps, each a frozen dataclass of plain numbers: tokens, embeddings, one attention score, direct logit
attribution, the logit lens, the residual stream, the next token. Every number comes from the model's own
trace. Nothing is printed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cutaway.embedding.neighbours import nearest
from cutaway.errors import OperationalError
from cutaway.inspect import tokens
from cutaway.inspect.arrays import softmax
from cutaway.inspect.attention_score import RotatedPair, Score, queries_keys_values, rotated_pair, score
from cutaway.inspect.attribution import Attribution
from cutaway.inspect.inputs import attribution_names, output_heads
from cutaway.inspect.lens_words import LensWords
from cutaway.inspect.logit_lens import lens
from cutaway.inspect.tokens import Merges, Token
from cutaway.inspect.trace_values import TraceValues
from cutaway.model.config import Decoder

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
    """What a layer's mixers (its heads, and one beside them) and its MLP add to the answer's logit."""

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
    """Activation patching between two texts: see ``inspect/patching.py``."""

    other: str
    here: str
    there: str
    tokens: tuple[PatchedToken, ...]


@dataclass(frozen=True)
class Explanation:
    """A text's way from bytes to the next token.

    ``norms`` [t stage] are the norms of each token's residual stream at the ``stages``. ``recurrent_layers``
    have no attention weights, and ``attention`` is None if all layers are recurrent. ``engine`` computed the
    numbers, because of ``engine_reason``. ``change``, ``patch`` and other ``lenses`` by kind are there when
    they were asked for.
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
    lenses: Mapping[str, tuple[LensWords, ...]] = field(default_factory=dict)


def names(config: Decoder) -> list[str]:
    """The values that a trace must keep for its explanation."""
    return [*attribution_names(config)]


def explain(trace: TraceValues, top: int = 10) -> Explanation:
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


def next_tokens(trace: TraceValues, top: int) -> tuple[Next, ...]:
    """The likeliest next tokens, best first."""
    return tuple(
        Next(one.id, one.token, float(trace.logits[-1, one.id]), one.probability) for one in trace.top(top)
    )


def change(before: TraceValues, after: TraceValues, what: Sequence[str], top: int = 10) -> Change:
    """The next token's probabilities in two traces: the likeliest of both, sorted by the second."""
    after.check_finite()
    likely = {guess.id for trace in (before, after) for guess in trace.top(top)}
    was, now = (softmax(trace.logits[-1]) for trace in (before, after))
    rows = (Changed(id, before.token(id), float(was[id]), float(now[id])) for id in likely)
    return Change(tuple(what), tuple(sorted(rows, key=lambda row: -row.after)))


def patch(trace: TraceValues, other: Sequence[int]) -> Patch:
    """Patch activations of another text into this one, to find where their answers part."""
    from cutaway.inspect.patching import patching

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


def _embeddings(trace: TraceValues) -> Embeddings:
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


def _attention(trace: TraceValues, attribution: Attribution, layer: int, head: int, source: int) -> Attention:
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
        rope=None if config.position is None else rotated_pair(config, q[head], k[kv_head], source),
        maps=config.maps,
        score=score(trace, layer, head, q[head], k[kv_head], source),
    )


def _logit_attribution(trace: TraceValues, attribution: Attribution) -> LogitAttribution:
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


def _lens(trace: TraceValues) -> tuple[LensRow, ...]:
    last = {name: residual[-1:] for name, residual in trace.residuals().items()}
    rows = lens(trace.instrumented, last, trace.vocabulary)
    columns = (part[:, 0].tolist() for part in (rows.ids, rows.probabilities, rows.final))
    return tuple(
        LensRow(name, id, trace.token(id), probability, final)
        for name, id, probability, final in zip(rows.names, *columns, strict=True)
    )
