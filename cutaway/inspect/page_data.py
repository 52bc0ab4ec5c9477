"""The data of a page about one forward pass: every token, layer and head, as numbers and arrays.

``explanation.py`` covers the last token and the answer's strongest head; a page lets its reader choose. So
the data holds every head's attention weights, the queries, keys and values of as many heads as the budget
allows (all of them, for a sentence), the output norm of every head and MLP, and the strongest neurons with
the tokens they promote. An attention weight is one byte, its square root: 0.4% off at most, and far less for
small ones. In a text of hundreds of tokens it is half a byte where a byte would not fit.

`/v1/trace` answers with the same document (``"format": "page"``): `packed` writes it, and
page/explanation.js reads it.
"""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from cutaway.inspect import attention_score, explanation, neurons, projections, tokens
from cutaway.inspect.arrays import largest
from cutaway.inspect.attribution import Attribution, head_outputs
from cutaway.inspect.inputs import has_pattern, output_heads, view_names
from cutaway.inspect.promoted import promoted
from cutaway.inspect.trace_values import TraceValues
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of

DETAIL_BYTES = 1_000_000  # of queries, keys and values
FINE_BYTES = 2_700_000  # of attention weights as whole bytes, deflated
CHOICES = 256  # next tokens with their texts; of the others only the logits
NEURONS = 6  # of a token in a layer
PROMOTED = 5
PROMOTING = 6e10  # operations spent on what neurons promote
STRIP = 256  # of an embedding's numbers, how many are drawn


@dataclass(frozen=True)
class PageData:
    """``facts`` are JSON's own types, ``arrays`` are named and little-endian."""

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]
    model: object  # tells whether the heads of two pages correspond


def names(config: Decoder) -> list[str]:
    """The values that a trace must keep for its page."""
    return list(dict.fromkeys((*view_names(config), *projections.names(config))))


def build(trace: TraceValues, name: str, lenses: Mapping[str, Any] | None = None) -> PageData:
    """The page's data of a trace that kept ``names``; ``name`` is the model's, ``lenses`` are others than the
    logit lens by kind.
    """
    explained = explanation.explain(trace)
    attribution = trace.attribution()
    builder = _Builder(trace, attribution)
    facts = {
        "model": name,
        "text": explained.text,
        "layers": explained.layers,
        "heads": [output_heads(block.attention) for block in trace.config.blocks],
        "width": explained.width,
        "context": trace.config.context,
        "vocabulary": explained.vocabulary,
        "chosen": list(explanation.chosen_reading(attribution) or (0, 0, 0)),
        "tokens": list(map(asdict, explained.tokens)),
        "merges": builder.merges(),
        "embeddings": asdict(explained.embeddings) | {"tokens": None},
        "neighbours": builder.neighbours(explained),
        "attention": [builder.attention(layer) for layer in range(explained.layers)],
        "detailed": builder.detailed(),
        "projections": builder.projections(),
        "attribution": asdict(explained.attribution) | {"layers": None},
        "stages": list(explained.stages),
    }
    builder.keep("norms", np.array(explained.norms))
    builder.patterns()
    builder.output_norms()
    facts["lenses"] = {"logit": builder.lens("lens", "logit")}
    facts["lenses"] |= {kind: builder.lens(f"lens.{kind}", by) for kind, by in (lenses or {}).items()}
    facts["neurons"] = builder.neurons()
    facts["next_ids"] = builder.next_ids()
    facts["vector_strip"] = builder.vectors()
    facts["token_texts"] = {str(id): trace.token(id) for id in sorted(builder.mentioned)}
    return PageData(facts, builder.arrays, trace.subject and trace.subject.engine)


def packed(
    pages: Sequence[PageData], views: Sequence[str] = (), start: Mapping[str, int] | None = None
) -> bytes:
    """The document that a page reads, deflated: a length, JSON, then the arrays that it names.

    Each array is named by type, shape and offset, a multiple of 4.
    """
    chunks: list[bytes] = []
    document = {
        "explanations": [page.facts | {"arrays": _placed(page.arrays, chunks)} for page in pages],
        "same_model": all(page.model is pages[0].model for page in pages),
        "links": links(*pages) if len(pages) == 2 else [],
        "views": list(views),
        "start": dict(start or {}),
    }
    facts = json.dumps(document, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
    facts += b" " * (-len(facts) % 4)
    return zlib.compress(len(facts).to_bytes(4, "little") + facts + b"".join(chunks), 6)


def _placed(arrays: Mapping[str, np.ndarray], chunks: list[bytes]) -> dict[str, Any]:
    """The type, shape and offset of each array, which are added to the chunks."""
    placed: dict[str, Any] = {}
    offset = sum(map(len, chunks))
    for name, array in arrays.items():
        data = array.tobytes()
        placed[name] = [array.dtype.str[1:], list(array.shape), offset]
        chunks.append(data + bytes(-len(data) % 4))
        offset += len(chunks[-1])
    return placed


def links(one: PageData, other: PageData) -> list[tuple[int, int]]:
    """Which token of one text corresponds to which of the other: equal ones in order, and those between."""
    texts = [[token["text"] for token in page.facts["tokens"]] for page in (one, other)]
    blocks = SequenceMatcher(None, *texts, autojunk=False).get_opcodes()
    return [
        pair for _, i, to_i, j, to_j in blocks for pair in zip(range(i, to_i), range(j, to_j), strict=False)
    ]


class _Builder:
    """Collects the arrays, and the ids whose texts the page needs."""

    def __init__(self, trace: TraceValues, attribution: Attribution) -> None:
        self.trace = trace
        self.attribution = attribution
        self.arrays: dict[str, np.ndarray] = {}
        self.mentioned: set[int] = set()

    def keep(self, name: str, values: np.ndarray, dtype: str = "<f4") -> None:
        self.arrays[name] = np.ascontiguousarray(values, dtype)

    def mention(self, ids: Sequence[int]) -> list[int]:
        self.mentioned.update(ids)
        return list(ids)

    def merges(self) -> list[dict[str, Any]]:
        """The pieces in the order of the text: their first and last token, and the pairs that were joined."""
        found = {one.piece: one.joined for one in tokens.merges(self.trace.tokenizer, self.trace.ids)}
        return [
            {"from": start, "to": end, "piece": piece, "joined": found[piece]}
            for start, end, piece in self._pieces(found)
        ]

    def _pieces(self, known: dict[str, Any]) -> Iterator[tuple[int, int, str]]:
        """The runs of tokens that spell a known piece, longest first at each token."""
        spelt = [self.trace.tokenizer.token_bytes(id) for id in self.trace.ids]
        start = 0
        while start < len(spelt):
            for end in range(min(len(spelt), start + 32), start, -1):
                piece = b"".join(spelt[start:end]).decode(errors="backslashreplace")
                if piece in known:
                    yield start, end - 1, piece
                    start = end - 1
                    break
            start += 1

    def neighbours(self, explained: explanation.Explanation) -> list[dict[str, Any]]:
        """For each token: the norm of its embedding, and the nearest embeddings' ids and cosines."""
        return [
            {
                "norm": one.norm,
                "ids": self.mention([near.id for near in one.neighbours]),
                "cosines": [near.cosine for near in one.neighbours],
            }
            for one in explained.embeddings.tokens
        ]

    def vectors(self) -> dict[str, Any]:
        """The embeddings as colours: one signed byte a number, the largest of all is 127."""
        shown = self.trace["embed"][:, :STRIP]
        most = float(np.abs(shown).max()) or 1.0
        self.keep("vectors", (shown / most * 127).round(), "|i1")
        return {"largest": most, "shown": shown.shape[1]}

    def attention(self, layer: int) -> dict[str, Any]:
        """How a layer makes a score and RoPE rotates its pairs; of a recurrent layer only that it is one.

        Kept besides: which keys are visible, ``bias`` by distance [h t], and the ``sinks``.
        """
        config: Any = self.trace.config.blocks[layer].attention
        if not has_pattern(config):
            return {"recurrent": True, "group_size": 1, "rope": None, "sharing": None}
        rope, length = config.position, len(self.trace.ids)
        visible = attention_score.visible_keys(self.trace, layer)
        if not np.array_equal(visible, np.tri(length, dtype=bool)):
            self.keep(f"visible.{layer}", visible, "|u1")
        bias = self.trace.instrumented.distance_bias(layer, length)
        if bias is not None:
            self.keep(f"bias.{layer}", bias)
        if (sinks := attention_score.sinks(self.trace, layer)) is not None:
            self.keep(f"sinks.{layer}", sinks)
        return {
            "recurrent": False,
            "maps": config.maps,
            "scale": attention_score.score_scale(config),
            "softcap": getattr(config, "softcap", None),
            "group_size": config.heads // getattr(config, "groups", config.heads),
            "sharing": _sharing(config),
            "rope": None
            if rope is None
            else {
                "size": rope.size,
                "base": rope.base,
                "scaling": None if rope.scaling is None else kind_of(rope.scaling),
                "first": attention_score.first_rotated(config),
                "interleaved": rope.interleaved,
                "magnitude": attention_score.magnitude(config),
                "radians": rope.frequencies(length).tolist(),
            },
        }

    def detailed(self) -> list[list[int]]:
        """The heads whose queries, keys and values fit the budget, largest contribution first."""
        spent = 0
        kept: list[list[int]] = []
        for layer, head in self._ranked():
            if self.attribution.sources[layer] is None:
                continue
            arrays = self._vectors(layer, head)
            cost = sum(4 * value.size for name, value in arrays.items() if name not in self.arrays)
            if kept and spent + cost > DETAIL_BYTES:
                break
            spent += cost
            kept.append([layer, head])
            for name, value in arrays.items():
                self.keep(name, value)
        return sorted(kept)

    def _ranked(self) -> list[tuple[int, int]]:
        """All heads: the one that the page opens at, then by the size of their contribution."""
        best = explanation.chosen_reading(self.attribution)
        ranked = [(layer, head) for layer, head, _ in self.attribution.strongest(len(self.trace) * 4096)]
        return list(dict.fromkeys([*([] if best is None else [best[:2]]), *ranked]))

    def _vectors(self, layer: int, head: int) -> dict[str, np.ndarray]:
        q, k, v = attention_score.queries_keys_values(self.trace, layer)
        group = head // (len(q) // len(k))
        return {f"q.{layer}.{head}": q[head], f"k.{layer}.{group}": k[group], f"v.{layer}.{group}": v[group]}

    def projections(self) -> dict[str, Any]:
        """The heads whose matrices fit the budget, and from which token on their products are kept."""
        length = len(self.trace.ids)
        kept: list[list[int]] = []
        scales: dict[str, float] = {}
        first = spent = 0
        for layer, head in self._ranked():
            if projections.input_name(self.trace.config, layer) not in self.trace:
                continue
            config, width = self.trace.config.blocks[layer].attention, self.trace.config.width
            if not kept:
                fixed, each = (projections.cost(config, width, n) for n in (0, 1))
                first = max(0, length - max(1, (projections.BUDGET - fixed) // (each - fixed)))
            spent += projections.cost(config, width, length - first)
            if kept and spent > projections.BUDGET:
                break
            kept.append([layer, head])
            scales |= self._projections(layer, head, first)
        return {"heads": sorted(kept), "first": first, "scales": scales}

    def _projections(self, layer: int, head: int, first: int) -> dict[str, float]:
        """Keeps the arrays of one head; the scales of its maps by "matrix.layer.head"."""
        scales = {}
        name = projections.input_name(self.trace.config, layer)
        assert name is not None
        self.keep(f"input.{layer}", self.trace[name][first:])
        for one, number, made in projections.projected(self.trace, layer, head, first):
            at = f"{one}.{layer}.{number}"
            scales[at] = made.scale
            self.keep(f"drawn.{at}", made.drawn, "|i1")
            narrow = self.trace.config.width <= 65536
            self.keep(f"product.ids.{at}", made.ids.reshape(len(made.ids), -1), "<u2" if narrow else "<u4")
            self.keep(f"product.weights.{at}", made.weights.reshape(len(made.ids), -1))
            self.keep(f"sums.{at}", made.sums)
            if made.bias is not None:
                self.keep(f"bias.{at}", made.bias)
        return scales

    def patterns(self) -> None:
        """Each head's lower triangle, row by row: bytes, or two cells a byte for a long text.

        Of a differential head the first map; none of recurrent layers.
        """
        length = len(self.trace.ids)
        rows, columns = np.tril_indices(length)
        patterns = {
            i: self.trace.attention(i)[: len(heads)][:, rows, columns]
            for i, heads in enumerate(self.attribution.heads)
            if self.attribution.sources[i] is not None
        }
        kept = {i: _roots(pattern, 255) for i, pattern in patterns.items()}
        if sum(len(zlib.compress(cells.tobytes(), 1)) for cells in kept.values()) > FINE_BYTES:
            kept = {i: _halves(_roots(pattern, 15)) for i, pattern in patterns.items()}
        for layer, cells in kept.items():
            self.keep(f"pattern.{layer}", cells, "|u1")

    def output_norms(self) -> None:
        """The output norm of each head [t h] and MLP [t], and their contributions to the answer's logit."""
        for i in range(self.trace.layers):
            heads = head_outputs(self.trace.instrumented, self.trace, i)
            self.keep(f"head_norm.{i}", np.linalg.norm(heads, axis=-1).T)
            added = self.trace[f"blocks.{i}.out"] - self.trace[f"blocks.{i}.middle"]
            self.keep(f"mlp_norm.{i}", np.linalg.norm(added, axis=-1))
            self.keep(f"contribution.{i}", self.attribution.heads[i])
        self.keep("contribution.mlp", self.attribution.mlps)

    def lens(self, prefix: str, by: Any) -> list[str]:
        """Keeps what a lens shows, under names that begin so; returns the stages that it is of."""
        lens = self.trace.lens(by)
        self.mention(np.unique(lens.ids).tolist())
        self.keep(f"{prefix}.ids", lens.ids, "<u4")
        self.keep(f"{prefix}.probabilities", lens.probabilities)
        self.keep(f"{prefix}.final", lens.final)
        return list(lens.names)

    def neurons(self) -> dict[str, list[list[int]]]:
        """Each token's neurons of largest output norm, and the tokens that the strongest promote.

        The ids that they promote and suppress are by "layer.neuron".
        """
        strongest: dict[tuple[int, int], float] = {}
        columns: dict[tuple[int, int], np.ndarray] = {}  # of what each neuron writes
        for i in range(self.trace.layers):
            hidden = neurons.activations(self.trace, i)
            down = neurons.output_weights(self.trace.instrumented, i)
            norms = np.abs(hidden) * np.sqrt(np.einsum("df,df->f", down, down))
            best = largest(norms, NEURONS)
            amounts = np.take_along_axis(norms, best, axis=-1)
            self.keep(f"neuron.{i}", best, "<u2" if norms.shape[-1] <= 65536 else "<u4")
            self.keep(f"neuron.activation.{i}", np.take_along_axis(hidden, best, axis=-1))
            self.keep(f"neuron.norm.{i}", amounts)
            for neuron, amount in zip(best.ravel().tolist(), amounts.ravel().tolist(), strict=True):
                strongest[i, neuron] = max(strongest.get((i, neuron), 0.0), amount)
            for neuron in best[-1].tolist():  # of the token that makes the answer: these come first
                strongest[i, neuron] = float("inf")
            chosen = np.unique(best)
            columns |= {(i, n): column for n, column in zip(chosen.tolist(), down.T[chosen], strict=True)}
        return self._promoted(sorted(strongest, key=lambda one: -strongest[one]), columns)

    def _promoted(
        self, wanted: list[tuple[int, int]], columns: Mapping[tuple[int, int], np.ndarray]
    ) -> dict[str, list[list[int]]]:
        engine, vocabulary = self.trace.instrumented, self.trace.vocabulary
        many = int(PROMOTING / (2 * vocabulary * engine.config.width))
        wanted = sorted(wanted[: max(many, 1)])
        if not wanted:
            return {}
        both = promoted(engine, np.stack([columns[one] for one in wanted]), vocabulary, PROMOTED)
        return {
            f"{layer}.{neuron}": [self.mention(ids.tolist()) for ids in ends]
            for (layer, neuron), *ends in zip(wanted, *(side.ids for side in both), strict=True)
        }

    def next_ids(self) -> list[int]:
        """The likeliest next tokens by id; all logits are kept, best first, most of them as 16 bits."""
        last = self.trace.logits[-1]
        ids = np.argsort(-last, kind="stable")
        logits, count = last[ids], min(CHOICES, len(ids))
        self.keep("logits", logits[:count])
        rest = logits[count:]
        low, high = (float(rest.min()), float(rest.max())) if len(rest) else (0.0, 0.0)
        steps = (rest - low) / ((high - low) or 1.0) * 65535
        self.keep("rest", steps.round(), "<u2")
        self.keep("rest.range", np.array([low, high]))
        return self.mention(ids[:count].tolist())


def _sharing(config: Any) -> dict[str, Any]:
    """Which query heads read which key-value head, and the bytes that the cache holds of a token.

    Of latent attention the sizes of the latent and of its rotated part. ``lender``: the layer whose keys and
    values are read. The cache's numbers are counted as float16.
    """
    return {
        "kind": kind_of(config),
        "heads": config.heads,
        "groups": getattr(config, "groups", config.heads),
        "key": config.key_size,
        "value": config.values,
        "latent": getattr(config, "latent", None),
        "rope_dim": getattr(config, "rope_dim", None),
        "lender": getattr(config, "kv_layer", None),
        "bytes": config.bytes_per_token(2),
    }


def _roots(pattern: np.ndarray, levels: int) -> np.ndarray:
    return np.round(np.sqrt(np.clip(pattern, 0, 1)) * levels).astype(np.uint8)


def _halves(cells: np.ndarray) -> np.ndarray:
    """Two cells a byte, the first in the high half; a head starts at a whole byte."""
    even = np.pad(cells, ((0, 0), (0, cells.shape[1] % 2)))
    return even[:, 0::2] << 4 | even[:, 1::2]
