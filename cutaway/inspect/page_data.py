"""What a page shows of one reading: the story's steps for every token, layer and head, as plain numbers and
arrays.

``explanation.py`` tells what the last token did with the answer's strongest head; a page lets its reader
choose,
so a sheet holds every head's attention, the queries, keys and values of as many heads as its budget allows
(all of them, for a sentence), what every head and MLP wrote, and the strongest neurons with the tokens they
promote. Attention is kept as one byte a cell, the square root of the share: 0.4% off at most, and far less
for small shares. A text of hundreds of tokens is kept as half a byte where a byte would not fit.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cutaway.inspect import explanation, neurons
from cutaway.inspect.attribution import Attribution
from cutaway.inspect.inputs import has_pattern, writers
from cutaway.inspect.trace import Trace
from cutaway.layers.norm import LayerNorm
from cutaway.model.decoder import Decoder
from cutaway.shapes import Float

NEAR_BYTES = 1_000_000  # of queries, keys and values
FINE_BYTES = 2_700_000  # of attention as whole bytes, deflated
CHOICES = 256  # next tokens with their names; of the others only the scores
NEURONS = 6  # of a token in a layer
PROMOTED = 5
PROMOTING = 6e10  # operations spent on what neurons promote
STRIP = 256  # of an embedding's numbers, how many are drawn


@dataclass(frozen=True)
class Sheet:
    """``facts`` are JSON's own types, ``arrays`` are named and little-endian."""

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]


def names(model: Decoder) -> list[str]:
    """What a trace of this model must have kept for its sheet."""
    return [*explanation.names(model), *neurons.names(model)]


@torch.no_grad()
def draw(trace: Trace, name: str) -> Sheet:
    """The sheet of a trace that kept ``names``; ``name`` is what people call the model."""
    told = explanation.tell(trace)
    attribution = trace.attribution()
    maker = _Maker(trace, attribution)
    facts = {
        "model": name,
        "text": told.text,
        "layers": told.layers,
        "heads": [writers(block.attention) for block in trace.model.config.blocks],
        "width": told.width,
        "vocabulary": told.vocabulary,
        "chosen": list(explanation.chosen(attribution) or (0, 0, 0)),
        "tokens": [[one.id, one.bytes, one.special] for one in told.tokens],
        "merges": maker.merges(),
        "embeddings": asdict(told.embeddings) | {"tokens": None},
        "neighbours": maker.neighbours(told),
        "attention": [maker.attention(layer) for layer in range(told.layers)],
        "near": maker.near(),
        "moved": asdict(told.moved) | {"layers": None},
        "stages": list(told.stages),
    }
    maker.keep("norms", np.array(told.norms))
    maker.patterns()
    maker.written()
    maker.lens()
    facts["neurons"] = maker.neurons()
    facts["choices"] = maker.choices()
    facts["vectorStrip"] = maker.vectors()
    facts["spelt"] = {str(id): trace.token(id) for id in sorted(maker.mentioned)}
    return Sheet(facts, maker.arrays)


def links(one: Sheet, other: Sheet) -> list[tuple[int, int]]:
    """Which token of one text stands where which of the other does: the same ones in order, and those
    between in step.
    """
    texts = [[sheet.facts["spelt"][str(id)] for id, *_ in sheet.facts["tokens"]] for sheet in (one, other)]
    blocks = SequenceMatcher(None, *texts, autojunk=False).get_opcodes()
    return [
        pair for _, i, to_i, j, to_j in blocks for pair in zip(range(i, to_i), range(j, to_j), strict=False)
    ]


class _Maker:
    """Collects the arrays, and the ids whose spelling the page needs."""

    def __init__(self, trace: Trace, attribution: Attribution) -> None:
        self.trace = trace
        self.attribution = attribution
        self.blocks: list[Any] = list(trace.model.blocks)
        self.arrays: dict[str, np.ndarray] = {}
        self.mentioned: set[int] = set(trace.ids)

    def keep(self, name: str, values: Tensor | np.ndarray, dtype: str = "<f4") -> None:
        array = values.detach().float().cpu().numpy() if isinstance(values, Tensor) else values
        self.arrays[name] = np.ascontiguousarray(array, dtype)

    def said(self, ids: Sequence[int]) -> list[int]:
        self.mentioned.update(ids)
        return list(ids)

    def merges(self) -> list[dict[str, Any]]:
        """The pieces in the order of the text: their first and last token, and the pairs that were joined."""
        found = {one.piece: one.joined for one in explanation.merges(self.trace)}
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

    def neighbours(self, told: explanation.Story) -> list[dict[str, Any]]:
        """Of each token its row's length, and the ids and cosines of the nearest rows."""
        return [
            {
                "norm": one.norm,
                "ids": self.said([near.id for near in one.neighbours]),
                "cosines": [near.cosine for near in one.neighbours],
            }
            for one in told.embeddings.tokens
        ]

    def vectors(self) -> dict[str, Any]:
        """The embeddings as colours: one signed byte a number, the largest of all is 127."""
        stream = self.trace["embed"].float()
        shown = stream[:, :STRIP]
        largest = float(shown.abs().max()) or 1.0
        self.keep("vectors", (shown / largest * 127).round(), "|i1")
        return {"largest": largest, "shown": shown.shape[1]}

    def attention(self, layer: int) -> dict[str, Any]:
        """What a head of this layer does to a score, and how its pairs turn; of one that reads through a
        memory only that. Kept besides: who is seen, ``bias`` by distance [h t], and the ``sinks``.
        """
        config, module = self.trace.model.config.blocks[layer].attention, self.blocks[layer].attention
        if not has_pattern(config):
            return {"memory": True, "share": 1, "turn": None}
        turning, length = config.position, len(self.trace.ids)
        seen = explanation.sees(self.trace, layer)
        if not bool((seen == torch.ones_like(seen).tril()).all()):
            self.keep(f"seen.{layer}", seen, "|u1")
        bias = explanation.distance_bias(module, length)
        if bias is not None:
            self.keep(f"bias.{layer}", bias)
        if getattr(module, "sinks", None) is not None:
            self.keep(f"sinks.{layer}", module.sinks)
        return {
            "memory": False,
            "reads": config.heads // writers(config),
            "scale": float(module.scale),
            "softcap": getattr(config, "softcap", None),
            "share": config.heads // getattr(config, "groups", config.heads),
            "turn": None
            if turning is None
            else {
                "size": turning.size,
                "first": explanation.first_turned(config),
                "interleaved": turning.interleaved,
                "magnitude": turning.magnitude,
                "radians": turning.frequencies(length).tolist(),
            },
        }

    def near(self) -> list[list[int]]:
        """The heads whose queries, keys and values fit the budget, those that moved the answer most first."""
        best, spent = explanation.chosen(self.attribution), 0
        chosen = [] if best is None else [best[:2]]
        ranked = [(layer, head) for layer, head, _ in self.attribution.strongest(len(self.trace) * 4096)]
        kept: list[list[int]] = []
        for layer, head in dict.fromkeys([*chosen, *ranked]):
            if self.attribution.sources[layer] is None:
                continue
            arrays = self._near(layer, head)
            cost = sum(4 * value.numel() for name, value in arrays.items() if name not in self.arrays)
            if kept and spent + cost > NEAR_BYTES:
                break
            spent += cost
            kept.append([layer, head])
            for name, value in arrays.items():
                self.keep(name, value)
        return sorted(kept)

    def _near(self, layer: int, head: int) -> dict[str, Tensor]:
        q, k, v = (self.trace[f"blocks.{layer}.attention.{name}"] for name in "qkv")
        group = head // (len(q) // len(k))
        return {f"q.{layer}.{head}": q[head], f"k.{layer}.{group}": k[group], f"v.{layer}.{group}": v[group]}

    def patterns(self) -> None:
        """Each head's lower triangle, row by row: bytes, or two cells a byte for a long text. Of a head that
        reads twice the first reading; none of layers that read through a memory.
        """
        length = len(self.trace.ids)
        rows, columns = np.tril_indices(length)
        patterns = {
            i: self.trace.attention(i)[: len(heads)].float().cpu().numpy()[:, rows, columns]
            for i, heads in enumerate(self.attribution.heads)
            if self.attribution.sources[i] is not None
        }
        kept = {i: _roots(pattern, 255) for i, pattern in patterns.items()}
        if sum(len(zlib.compress(cells.tobytes(), 1)) for cells in kept.values()) > FINE_BYTES:
            kept = {i: _halves(_roots(pattern, 15)) for i, pattern in patterns.items()}
        for layer, cells in kept.items():
            self.keep(f"pattern.{layer}", cells, "|u1")

    def written(self) -> None:
        """How long is what each head [t h] and each MLP [t] added to the stream, and how much of it was for
        the answer.
        """
        for i, block in enumerate(self.blocks):
            name = f"blocks.{i}"
            given = f"{name}.attention.given"
            given = given if given in self.trace else f"{name}.attention.mixed"
            heads = _head_writes(block.attention.out, self.trace[given].float())
            heads = _frozen(block.attention_post_norm, self.trace[f"{name}.attention.out"].float(), heads)
            self.keep(f"wrote.{i}", heads.norm(dim=-1).T)
            self.keep(
                f"wrote.mlp.{i}",
                (self.trace[f"{name}.out"] - self.trace[f"{name}.middle"]).float().norm(dim=-1),
            )
            self.keep(f"moved.{i}", self.attribution.heads[i])
        self.keep("moved.mlp", self.attribution.mlps)

    def lens(self) -> None:
        lens = self.trace.lens()
        self.said(lens.ids.unique().tolist())
        self.keep("lens.ids", lens.ids.cpu().numpy(), "<u4")
        self.keep("lens.probabilities", lens.probabilities)
        self.keep("lens.final", lens.final)

    def neurons(self) -> dict[str, list[list[int]]]:
        """Each token's neurons that wrote most, and what the strongest of all raise and lower: ids by
        "layer.neuron".
        """
        strongest: dict[tuple[int, int], float] = {}
        for i, block in enumerate(self.blocks):
            hidden, down = neurons.said(self.trace, i), neurons.ways(block)
            wrote = hidden.abs() * down.norm(dim=0)
            best = wrote.topk(min(NEURONS, wrote.shape[-1]), dim=-1)
            self.keep(f"neuron.{i}", best.indices.cpu().numpy(), "<u2" if wrote.shape[-1] <= 65536 else "<u4")
            self.keep(f"neuron.said.{i}", hidden.gather(-1, best.indices))
            self.keep(f"neuron.wrote.{i}", best.values)
            for neuron, amount in zip(
                best.indices.flatten().tolist(), best.values.flatten().tolist(), strict=True
            ):
                strongest[i, neuron] = max(strongest.get((i, neuron), 0.0), amount)
            for neuron in best.indices[
                -1
            ].tolist():  # the last token makes the answer: its neurons come first
                strongest[i, neuron] = float("inf")
        return self._promoted(sorted(strongest, key=lambda one: -strongest[one]))

    def _promoted(self, wanted: list[tuple[int, int]]) -> dict[str, list[list[int]]]:
        model, config = self.trace.model, self.trace.model.config
        many = int(PROMOTING / (2 * config.vocab * config.width))
        wanted = sorted(wanted[: max(many, 1)])
        table = (model.embedding if model.head is None else model.head).weight.float()
        columns = []
        for i, block in enumerate(self.blocks):
            own = [neuron for layer, neuron in wanted if layer == i]
            if own:
                columns.append(neurons.ways(block)[:, own])
        found: dict[str, list[list[int]]] = {}
        for part, keys in zip(torch.cat(columns, 1).split(64, dim=1), _runs(wanted, 64), strict=True):
            scores = table @ _direct(model.norm, part)
            up, down = (
                scores.topk(PROMOTED, dim=0, largest=side).indices.T.tolist() for side in (True, False)
            )
            for (layer, neuron), *both in zip(keys, up, down, strict=True):
                found[f"{layer}.{neuron}"] = [self.said(ids) for ids in both]
        return found

    def choices(self) -> list[int]:
        """The likeliest next tokens by id. Scores of all tokens, best first: these exactly, the others as 16
        bits.
        """
        logits, ids = self.trace.logits[-1].float().sort(descending=True)
        count = min(CHOICES, len(ids))
        self.keep("logits", logits[:count])
        rest = logits[count:].cpu().numpy()
        low, high = (float(rest.min()), float(rest.max())) if len(rest) else (0.0, 0.0)
        steps = (rest - low) / ((high - low) or 1.0) * 65535
        self.keep("rest", steps.round(), "<u2")
        self.keep("rest.range", np.array([low, high]))
        return self.said(ids[:count].tolist())


def _roots(pattern: np.ndarray, levels: int) -> np.ndarray:
    return np.round(np.sqrt(np.clip(pattern, 0, 1)) * levels).astype(np.uint8)


def _halves(cells: np.ndarray) -> np.ndarray:
    """Two cells a byte, the first in the high half; a head starts at a whole byte."""
    even = np.pad(cells, ((0, 0), (0, cells.shape[1] % 2)))
    return even[:, 0::2] << 4 | even[:, 1::2]


def _head_writes(out: Any, mixed: Float[Tensor, "h t v"]) -> Float[Tensor, "h t d"]:
    """What each head added to attention's output: its part of W_o times what it gathered."""
    weight = out.weight.float().unflatten(1, (mixed.shape[0], mixed.shape[2]))
    return torch.einsum("htv,dhv->htd", mixed, weight)


def _frozen(norm: Any, whole: Float[Tensor, "t d"], parts: Float[Tensor, "h t d"]) -> Float[Tensor, "h t d"]:
    """Parts of a sum through the norm of the sum, its size taken as it was; as they are where there is no
    norm.
    """
    if isinstance(norm, nn.Identity):
        return parts
    if isinstance(norm, LayerNorm):
        whole, parts = whole - whole.mean(-1, keepdim=True), parts - parts.mean(-1, keepdim=True)
    return parts * norm.weight.float() * torch.rsqrt(whole.square().mean(-1, keepdim=True) + norm.eps)


def _direct(norm: Any, writes: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
    """Through the final norm's weights: which way it is for the logits, whatever the size."""
    writes = writes - writes.mean(0) if isinstance(norm, LayerNorm) else writes
    return writes * norm.weight.float()[:, None]


def _runs(items: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    return (items[i : i + size] for i in range(0, len(items), size))
