"""The path of a text through a model as data: what `cutaway explain` prints, its page draws and its --json
gives.

Seven steps, each a frozen dataclass of plain numbers: tokens, embeddings, one attention score worked out, the
heads that moved the answer, the lens, the residual stream, the next token. Every number is read from the
model's own trace. Nothing is printed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cutaway.attention.parts.visibility import Places, mask
from cutaway.embedding.neighbours import nearest
from cutaway.inspect.attribution import Attribution
from cutaway.inspect.inputs import attention_names, writers
from cutaway.inspect.lens import lens
from cutaway.inspect.patch import patch_streams
from cutaway.inspect.trace import Trace
from cutaway.model.decoder import Decoder
from cutaway.position import rope
from cutaway.shapes import Bool, Float

NEIGHBOURS = 5
PIECES = 3  # whose merges are told
HEADS = 8


@dataclass(frozen=True)
class Token:
    """``bytes`` in hexadecimal; ``special``: a control token, which no text can spell."""

    position: int
    id: int
    text: str
    bytes: str
    special: bool


@dataclass(frozen=True)
class Merges:
    """A piece of the text, and the pairs that were joined to make its tokens, in order."""

    piece: str
    joined: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Neighbour:
    id: int
    text: str
    cosine: float


@dataclass(frozen=True)
class Embedding:
    """``norm``: the length of the token's row in the table; its nearest other rows by cosine."""

    position: int
    norm: float
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class Embeddings:
    """``table``: rows and columns; ``stream``: tokens and width of what enters the first block."""

    table: tuple[int, int]
    stream: tuple[int, int]
    scale: float
    learned_positions: bool
    tokens: tuple[Embedding, ...]


@dataclass(frozen=True)
class Turn:
    """One pair of dimensions before and after RoPE turned it by ``angle`` radians."""

    position: int
    angle: float
    before: tuple[float, float]
    after: tuple[float, float]


@dataclass(frozen=True)
class Pair:
    """The pair whose turning changed the score most: its dimensions, its speed in radians a token, its two
    turns.
    """

    dimensions: tuple[int, int]
    radians_per_token: float
    query: Turn
    key: Turn


@dataclass(frozen=True)
class Share:
    """What the query's token gave one token: score, ``weight`` = exp(score - highest), share = weight / their
    sum.
    """

    position: int
    score: float
    seen: bool
    weight: float
    share: float


@dataclass(frozen=True)
class Sink:
    """A learned score that takes a share and gives nothing: with it the shares of the tokens sum to 1."""

    score: float
    weight: float
    share: float


@dataclass(frozen=True)
class Score:
    """One score by hand: ``dot`` = the sum of query times key, ``score`` = dot times scale (bounded, if there
    is a cap) plus ``bias``, what the layer adds for how far apart the two tokens are.
    """

    query_position: int
    key_position: int
    query: tuple[float, ...]
    key: tuple[float, ...]
    dot: float
    scale: float
    softcap: float | None
    bias: float | None
    score: float
    shares: tuple[Share, ...]
    sink: Sink | None


@dataclass(frozen=True)
class Attention:
    """One head from near. ``shapes``: of W_q's, W_k's and W_v's outputs as heads, tokens, size; ``reads`` is
    2 where a head reads twice and takes the second reading from the first, which is the one worked out.
    """

    layer: int
    head: int
    kv_head: int
    contribution: float
    source_contribution: float
    shapes: Mapping[str, tuple[int, ...]]
    rope: Pair | None
    reads: int
    worked: Score


@dataclass(frozen=True)
class Head:
    """``contribution`` in logits; where it looked most, and how much of its attention that was: None in a
    layer that reads through a memory.
    """

    layer: int
    head: int
    contribution: float
    looked_at: int | None
    share: float | None


@dataclass(frozen=True)
class Layer:
    """What a layer's heads and its MLP added to the answer's logit."""

    attention: float
    mlp: float


@dataclass(frozen=True)
class Moved:
    """Who made the answer's logit: ``embed + layers + biases + rest = logit``; the strongest heads, best
    first.
    """

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
    """The guess at the last position after one stage; ``final``: what the later answer had there."""

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
    """A next token's probability before and after."""

    id: int
    text: str
    before: float
    after: float


@dataclass(frozen=True)
class Change:
    """What the likeliest next tokens became when the model was changed as ``what`` says."""

    what: tuple[str, ...]
    next: tuple[Changed, ...]


@dataclass(frozen=True)
class PatchedToken:
    """One token's stream taken from the other text: ``moved`` [i] after each block, 0 is this answer, 1 the
    other's.
    """

    position: int
    text: str
    other_text: str
    moved: tuple[float, ...]


@dataclass(frozen=True)
class Patch:
    """Where the two answers come apart: see ``inspect/patch.py``."""

    other: str
    here: str
    there: str
    tokens: tuple[PatchedToken, ...]


@dataclass(frozen=True)
class Story:
    """A text's way from bytes to the next token. ``stages`` name the places where ``norms`` [t stage] are the
    lengths of each token's stream; ``memories`` are the layers that read through a memory, which have no
    scores to work out, and ``attention`` is None if all are; ``change`` and ``patch`` are there when they
    were asked for.
    """

    layers: int
    width: int
    heads: int
    vocabulary: int
    text: str
    tokens: tuple[Token, ...]
    merges: tuple[Merges, ...]
    embeddings: Embeddings
    memories: tuple[int, ...]
    attention: Attention | None
    moved: Moved
    lens: tuple[LensRow, ...]
    stages: tuple[str, ...]
    norms: tuple[tuple[float, ...], ...]
    next: tuple[Next, ...]
    change: Change | None = None
    patch: Patch | None = None


def names(model: Decoder) -> list[str]:
    """What a trace of this model must have kept for its story."""
    return ["embed", *attention_names(model), "blocks.*.middle", "blocks.*.out", "logits"]


def tell(trace: Trace, top: int = 10) -> Story:
    """The story of one reading, about the token after its last. ``top``: how many next tokens."""
    attribution = trace.attribution()
    config = trace.model.config
    norms = trace.residual_norms()
    near = chosen(attribution)
    return Story(
        layers=len(config.blocks),
        width=config.width,
        heads=max((writers(block.attention) for block in config.blocks), default=0),
        vocabulary=config.vocab,
        text=_text(trace, trace.ids),
        tokens=tuple(_token(trace, i) for i in range(len(trace.ids))),
        merges=merges(trace)[:PIECES],
        embeddings=_embeddings(trace),
        memories=tuple(i for i, sources in enumerate(attribution.sources) if sources is None),
        attention=None if near is None else _attention(trace, attribution, *near),
        moved=_moved(trace, attribution),
        lens=_lens(trace),
        stages=tuple(norms),
        norms=tuple(tuple(lengths) for lengths in torch.stack(list(norms.values())).T.tolist()),
        next=tuple(
            Next(guess.id, guess.token, float(trace.logits[-1, guess.id]), guess.probability)
            for guess in trace.top(top)
        ),
    )


def changed(before: Trace, after: Trace, what: Sequence[str], top: int = 10) -> Change:
    """How the next token's chances moved between two readings: the likeliest of both, by what they are
    now.
    """
    likely = {guess.id for trace in (before, after) for guess in trace.top(top)}
    was, now = (trace.logits[-1].float().softmax(-1) for trace in (before, after))
    rows = (Changed(id, before.token(id), float(was[id]), float(now[id])) for id in likely)
    return Change(tuple(what), tuple(sorted(rows, key=lambda row: -row.after)))


def patched(trace: Trace, other: Sequence[int]) -> Patch:
    """Where in the model another text's answer is told apart from this one's."""
    found = patch_streams(trace.model, trace.ids, other)
    tokens = zip(found.positions, found.moved.tolist(), strict=True)
    return Patch(
        other=_text(trace, other),
        here=trace.token(found.here),
        there=trace.token(found.there),
        tokens=tuple(
            PatchedToken(i, trace.tokens[i], trace.token(other[i]), tuple(moved)) for i, moved in tokens
        ),
    )


def _text(trace: Trace, ids: Sequence[int]) -> str:
    return b"".join(map(trace.tokenizer.token_bytes, ids)).decode(errors="backslashreplace")


def chosen(attribution: Attribution) -> tuple[int, int, int] | None:
    """The (layer, head, token read) worth a close look: the reading that added most to the answer's logit;
    None where all layers read through a memory.

    The first token is left out, since heads rest on it when they have nothing to say (2309.17453), and so is
    the token that asks; in a text too short for that, nothing is left out.
    """
    inner = slice(1, attribution.position) if attribution.position > 1 else slice(0, None)
    split = ((i, sources) for i, sources in enumerate(attribution.sources) if sources is not None)
    best = [(layer, sources[:, inner]) for layer, sources in split]
    if not best:
        return None
    layer, sources = max(best, key=lambda one: float(one[1].max()))
    head, source = divmod(int(sources.argmax()), sources.shape[1])
    return layer, head, source + inner.start


def _token(trace: Trace, position: int) -> Token:
    id = trace.ids[position]
    special = trace.tokenizer.is_special(id)
    return Token(position, id, trace.tokens[position], trace.tokenizer.token_bytes(id).hex(" "), special)


def merges(trace: Trace) -> tuple[Merges, ...]:
    """The pieces of the text that took merges, most first; none if the tokenizer does not merge."""
    if not hasattr(trace.tokenizer, "merges_of"):
        return ()
    found: dict[str, Merges] = {}
    for special, run in groupby(trace.ids, trace.tokenizer.is_special):
        for piece, pairs in () if special else _merged(trace.tokenizer, list(run)):
            found[piece] = Merges(piece, tuple(pairs))
    return tuple(sorted((one for one in found.values() if one.joined), key=lambda one: -len(one.joined)))


def _merged(tokenizer: Any, ids: list[int]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The merges that lead to these ids, spelt as text; none if the ids are not how their text is encoded."""
    text = tokenizer.decode(ids)
    if tokenizer.encode(text) != ids:
        return []
    return [
        (
            _spelt(tokenizer, piece),
            [(_spelt(tokenizer, left), _spelt(tokenizer, right)) for left, right in pairs],
        )
        for piece, pairs in tokenizer.merges_of(text)
    ]


def _spelt(tokenizer: Any, symbols: str) -> str:
    """What a vocabulary's spelling stands for, looked up whole or else sign by sign."""
    whole = tokenizer.id_of(symbols)
    ids = [whole] if whole is not None else [tokenizer.id_of(sign) for sign in symbols]
    if None in ids:
        return symbols
    return b"".join(map(tokenizer.token_bytes, ids)).decode(errors="backslashreplace")


def _embeddings(trace: Trace) -> Embeddings:
    model, table = trace.model, trace.model.embedding.weight.detach().float().cpu().numpy()
    unique = sorted(set(trace.ids))
    ids, cosines = nearest(table, np.array(unique), NEIGHBOURS)
    of = {
        id: tuple(map(_neighbour(trace), ids[i].tolist(), cosines[i].tolist())) for i, id in enumerate(unique)
    }
    lengths = {id: math.sqrt(float((table[id] ** 2).sum())) for id in unique}
    return Embeddings(
        table=table.shape,
        stream=(len(trace.ids), model.config.width),
        scale=model.config.embedding_scale,
        learned_positions=model.position is not None,
        tokens=tuple(Embedding(i, lengths[id], of[id]) for i, id in enumerate(trace.ids)),
    )


def _neighbour(trace: Trace) -> Any:
    return lambda id, cosine: Neighbour(id, trace.token(id), cosine)


def _attention(trace: Trace, attribution: Attribution, layer: int, head: int, source: int) -> Attention:
    config, sources = trace.model.config.blocks[layer].attention, attribution.sources[layer]
    assert sources is not None
    q, k, v = (trace[f"blocks.{layer}.attention.{name}"] for name in "qkv")
    kv_head = head // (len(q) // len(k))
    return Attention(
        layer=layer,
        head=head,
        kv_head=kv_head,
        contribution=float(attribution.heads[layer][head]),
        source_contribution=float(sources[head, source]),
        shapes={"q": tuple(q.shape), "k": tuple(k.shape), "v": tuple(v.shape)},
        rope=None if config.position is None else _pair(config, q[head], k[kv_head], source),
        reads=config.heads // writers(config),
        worked=_worked(trace, layer, head, q[head], k[kv_head], source),
    )


@torch.no_grad()
def _worked(trace: Trace, layer: int, head: int, q: Tensor, k: Tensor, source: int) -> Score:
    """A score in float64 from the query and key of the trace, and the softmax of its row."""
    block: Any = trace.model.blocks[layer]
    module = block.attention
    query, keys = q[-1].double(), k.double()
    cap = getattr(module.config, "softcap", None)
    scores = keys @ query * module.scale
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    bias = distance_bias(module, len(trace.ids))
    if bias is not None:
        scores = scores + bias[head].flip(0).to(scores)
    seen = sees(trace, layer)[-1].to(scores.device)
    sinks = getattr(module, "sinks", None)
    sink = None if sinks is None else sinks[head].double()
    highest = scores[seen].max() if sink is None else torch.maximum(scores[seen].max(), sink)
    weights = torch.where(seen, (scores - highest).exp(), 0.0)
    spent = 0.0 if sink is None else float((sink - highest).exp())
    total = weights.sum() + spent
    columns = (scores, seen, weights, weights / total)
    return Score(
        query_position=len(trace.ids) - 1,
        key_position=source,
        query=tuple(query.tolist()),
        key=tuple(keys[source].tolist()),
        dot=float(keys[source] @ query),
        scale=module.scale,
        softcap=cap,
        bias=None if bias is None else float(bias[head, len(trace.ids) - 1 - source]),
        score=float(scores[source]),
        shares=tuple(
            Share(i, *row) for i, row in enumerate(zip(*(c.tolist() for c in columns), strict=True))
        ),
        sink=None if sink is None else Sink(float(sink), spent, spent / float(total)),
    )


@torch.no_grad()
def distance_bias(attention: Any, length: int) -> Float[Tensor, "h t"] | None:
    """What a layer adds to a score by head and by how many tokens the key lies back; None if nothing."""
    relative = getattr(attention, "relative", None)
    if relative is None:
        return None
    here = next(attention.parameters()).device
    last = torch.full((1, 1), length - 1, device=here)
    back = torch.arange(length - 1, -1, -1, device=here)[None]
    return relative(last, back)[0, :, 0].double()


def sees(trace: Trace, layer: int) -> Bool[Tensor, "t s"]:
    """Whether token t of the trace reads token s in a layer: its rule, and what an indexer chose."""
    name = f"blocks.{layer}.attention.chosen"
    if name in trace:
        return trace[name]
    places = Places(torch.arange(len(trace.ids))[None])
    return mask(trace.model.config.blocks[layer].attention.visibility, places, places)[0]


def first_turned(config: Any) -> int:
    """Where in a head the dimensions that turn begin: latent attention turns its last ones."""
    return getattr(config, "key_size", 0) if hasattr(config, "turned_size") else 0


def _pair(config: Any, q: Tensor, k: Tensor, source: int) -> Pair:
    """The pair whose turning changed q . k most. What it was before is found by turning it back."""
    position: rope.Config = config.position
    frequencies = torch.from_numpy(position.frequencies(len(q)))
    last = len(q) - 1
    places = _dimensions(position, first_turned(config))
    query, key = _pairs(q[last], places), _pairs(k[source], places)
    query_before, key_before = (
        query * torch.exp(-1j * last * frequencies) / position.magnitude,
        key * torch.exp(-1j * source * frequencies) / position.magnitude,
    )
    change = (query * key.conj()).real - (query_before * key_before.conj()).real
    pair = int(change.abs().argmax())
    speed = float(frequencies[pair])
    return Pair(
        dimensions=(int(places[0][pair]), int(places[1][pair])),
        radians_per_token=speed,
        query=_turn(last, speed, query_before[pair], query[pair]),
        key=_turn(source, speed, key_before[pair], key[pair]),
    )


def _dimensions(position: rope.Config, first: int) -> tuple[Tensor, Tensor]:
    """The two dimensions of each pair: (2i, 2i + 1) where they are interleaved, else (i, i + half)."""
    half = position.size // 2
    i = torch.arange(half) + first
    return (i * 2 - first, i * 2 - first + 1) if position.interleaved else (i, i + half)


def _pairs(vector: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
    """The pairs as complex numbers, so that turning is multiplying."""
    vector = vector.double().cpu()
    return torch.complex(vector[places[0]], vector[places[1]])


def _turn(position: int, speed: float, before: Tensor, after: Tensor) -> Turn:
    return Turn(
        position,
        position * speed,
        (float(before.real), float(before.imag)),
        (float(after.real), float(after.imag)),
    )


def _moved(trace: Trace, attribution: Attribution) -> Moved:
    heads = []
    memories = [i for i, sources in enumerate(attribution.sources) if sources is None]
    for layer, head, part in attribution.strongest(HEADS):
        if layer in memories:
            heads.append(Head(layer, head, part, None, None))
            continue
        share, position = trace.attention(layer)[head, attribution.position].max(-1)
        heads.append(Head(layer, head, part, int(position), float(share)))
    layers = zip(attribution.attention.tolist(), attribution.mlps.tolist(), strict=True)
    return Moved(
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
    seen = lens(trace.model, {name: stream[-1:] for name, stream in trace.streams().items()})
    columns: Sequence[Sequence[Any]] = [
        part[:, 0].tolist() for part in (seen.ids, seen.probabilities, seen.final)
    ]
    return tuple(
        LensRow(name, id, trace.token(id), probability, final)
        for name, id, probability, final in zip(seen.names, *columns, strict=True)
    )
