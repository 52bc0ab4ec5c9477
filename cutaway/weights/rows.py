"""Rows of settings that families share: sizes, windows, experts, and their keys in both formats."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from cutaway.errors import UserError
from cutaway.weights.family import (
    FLAG,
    LAYER_COUNT,
    NUMBER,
    Entries,
    Family,
    Field,
    FolderRow,
    Kind,
    Only,
    Present,
    Row,
    Settings,
    shared,
    words,
)
from cutaway.weights.fields import EXPERTS, LAYERS, MISSING, Fields
from cutaway.weights.rotary import Rope

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh"}
ACTIVATIONS |= {"gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "relu2": "relu2"}
ACTIVATIONS |= {"quick_gelu": "gelu_sigmoid", "gelu_fast": "gelu_tanh"}
HF_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}
HF_ACTIVATIONS |= {"relu2": "relu2", "gelu_sigmoid": "quick_gelu"}
FULL, SLIDING = "full_attention", "sliding_attention"
FURTHER = "nextn_predict_layers"


def name_of(row: Row) -> str:
    """A row's setting, or its key of config.json if it only checks the key."""
    return getattr(row, "name", "") or getattr(row, "hf", "") or ""


def replaced(rows: Iterable[Row], *changed: Row, without: Collection[str] = ()) -> tuple[Row, ...]:
    """The rows with those of the same names replaced, and the others of ``changed`` after them.

    Rows whose names are in ``without`` are left out.
    """
    new = {name_of(row): row for row in changed}
    kept = [row for row in rows if name_of(row) not in without]
    return (*(new.pop(name_of(row), row) for row in kept), *new.values())


class Vocab(Field):
    """The size of the vocabulary; in GGUF the rows of the embedding table, since older files have no key."""

    def _from_gguf(self, fields: Fields, known: Settings, own: Family) -> Settings:
        size = rows_of(fields, "token_embd.weight")
        meaning = f"a vocabulary of another size than the {size} rows of token_embd.weight"
        fields.only("vocab_size", (size,), meaning)
        return {"vocab": size}


def rows_of(fields: Fields, name: str) -> int:
    """The number of rows of a tensor that must be in the file."""
    table = fields.tensors.get(name)
    if table is None or not table.shape:
        raise UserError(f"{fields.where}: the weight {name!r} is missing")
    return table.shape[0]


class HeadSize(Field):
    """The size of a head, which GGUF states twice."""

    def _from_gguf(self, fields: Fields, known: Settings, own: Family) -> Settings:
        found = super()._from_gguf(fields, known, own)
        size = found["head_size"]
        fields.only("attention.value_length", (size,), "values of another size than keys")
        return found

    def write(self, known: Settings, gguf: bool) -> Entries:
        keys = (self.gguf, "attention.value_length") if gguf else (self.hf,)
        return {key: known["head_size"] for key in keys if key}


class LayerCount(Field):
    """The layers; GGUF counts with them those that predict further tokens (mtp.py)."""

    def _from_gguf(self, fields: Fields, known: Settings, own: Family) -> Settings:
        further = fields.integer(FURTHER, 0, low=0, high=LAYERS)
        layers = fields.integer(str(self.gguf), low=1 + further, high=LAYERS) - further
        return {self.name: layers, "mtp": further}

    def write(self, known: Settings, gguf: bool) -> Entries:
        further = known.get("mtp", 0)
        if not gguf or not further:
            return super().write(known, gguf)
        return {str(self.gguf): known["layers"] + further, FURTHER: further}


class Further(Row):
    """Layers that predict further tokens, where ``LayerCount`` has not left them out."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf and known["layers"] == fields.get("block_count"):
            fields.only(FURTHER, (0,), "multi-token prediction")
        return {}


def _even(fields: Fields, key: str) -> int:
    size = fields.integer(key)
    if size % 2:
        raise fields.refusal(key, f"is {size}: rotary position embedding needs pairs, so it must be even")
    return size


class UpperWindows(FolderRow):
    """Sliding windows in the upper layers, or in those that ``layer_types`` lists (Qwen 2 and 3)."""

    name = "windows"

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        layers, window = known["layers"], None
        if fields.flag("use_sliding_window") if fields.stated("use_sliding_window") else False:
            window = fields.integer("sliding_window", None if fields.has("sliding_window") else 4096)
        fields.get("sliding_window")
        first = fields.integer("max_window_layers", low=0) if fields.stated("max_window_layers") else 28
        kinds = fields.each_layer("layer_types", layers, (SLIDING, FULL))
        is_local = (
            [n >= first for n in range(layers)] if kinds is None else [kind == SLIDING for kind in kinds]
        )
        if kinds and any(is_local) and window is None:
            raise fields.refusal("layer_types", "names sliding layers, but use_sliding_window is not true")
        return {"windows": tuple(window if each else None for each in is_local)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        windows = known["windows"]
        near = next((window for window in windows if window is not None), None)
        if near is None:
            return {"use_sliding_window": False}
        return {
            "use_sliding_window": True,
            "sliding_window": near,
            "max_window_layers": windows.index(near),
            "layer_types": [FULL if window is None else SLIDING for window in windows],
        }


class NoWindows(UpperWindows):
    """The keys of ``UpperWindows`` where only full attention is supported (Qwen's mixtures of experts)."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        fields.only("use_sliding_window", (False,), "a sliding window in a mixture of experts")
        fields.each_layer("layer_types", known["layers"], (FULL,))
        for key in ("sliding_window", "max_window_layers"):
            fields.get(key)
        return {}


@dataclass(frozen=True)
class FirstDense(Row):
    """How many of the first layers are dense (DeepSeek)."""

    name: ClassVar[str] = "dense"
    key: str = "first_k_dense_replace"
    usual: int = 1

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        key, usual = ("leading_dense_block_count", 0) if fields.gguf else (self.key, self.usual)
        first = fields.integer(key, usual, low=0)
        return {"dense": tuple(n < first for n in range(known["layers"]))}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"leading_dense_block_count" if gguf else self.key: sum(known["dense"])}


@dataclass(frozen=True)
class MLPTypes(Row):
    """A word for each layer, dense or sparse; without a list the first ones are dense.

    ``key`` is that of their number, None where configs have none; ``usual`` their number without it.
    """

    name: ClassVar[str] = "dense"
    key: str | None = None
    usual: int = 1

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return FirstDense().read(fields, known, own)
        layers = known["layers"]
        first = fields.integer(self.key, self.usual, low=0) if self.key else self.usual
        kinds = fields.each_layer("mlp_layer_types", layers, ("dense", "sparse"))
        return {
            "dense": tuple(
                [n < first for n in range(layers)] if kinds is None else map("dense".__eq__, kinds)
            )
        }

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            return FirstDense().write(known, gguf)
        return {"mlp_layer_types": ["dense" if each else "sparse" for each in known["dense"]]}


@dataclass(frozen=True)
class SharedExperts(Row):
    """Experts that all tokens pass, which are one MLP of their joint width."""

    name: ClassVar[str] = "shared"
    key: str = "n_shared_experts"
    alias: str = ""  # another key for it
    needed: bool = True  # by llama.cpp's architecture

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        key = "expert_shared_count" if fields.gguf else self.key
        usual = 0 if fields.gguf else own.defaults.get("shared", MISSING)
        if self.alias and fields.has(self.alias) and not fields.gguf:
            if fields.has(key) and fields.get(key) != fields.get(self.alias):
                raise fields.refusal(key, f"and {self.alias} disagree")
            key = self.alias
        count = fields.integer(key, low=0) if fields.stated(key) or usual is MISSING else usual
        return {"shared": count * known["expert_hidden"]}

    def write(self, known: Settings, gguf: bool) -> Entries:
        count = known["shared"] // known["expert_hidden"]
        self._check(known, gguf)
        return {"expert_shared_count" if gguf else self.key: count}

    def _check(self, known: Settings, gguf: bool) -> None:
        if gguf and self.needed and not known["shared"]:
            raise UserError("a mixture without shared experts is not supported in GGUF here")


@dataclass(frozen=True)
class SharedWidth(SharedExperts):
    """The same, of which GGUF has the joint width."""

    needed: bool = False

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return {"shared": fields.integer("expert_shared_feed_forward_length", 0, low=0)}
        return super().read(fields, known, own)

    def write(self, known: Settings, gguf: bool) -> Entries:
        if not gguf:
            return super().write(known, gguf)
        self._check(known, gguf)
        return {"expert_shared_feed_forward_length": known["shared"]}


class Normalised(Row):
    """GGUF's flag of experts whose weights sum to one, where models have no others."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf and not fields.flag("expert_weights_norm"):
            raise fields.refusal(
                "expert_weights_norm", "is false: weighing experts otherwise is not supported"
            )
        return {}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"expert_weights_norm": True} if gguf else {}


class SigmoidScores(Row):
    """GGUF's number for experts that are scored by a sigmoid."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            fields.only("expert_gating_func", (2,), "another score of experts than a sigmoid")
        return {}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"expert_gating_func": 2} if gguf else {}


class HybridKeyValueHeads(Field):
    """GGUF lists the key-value heads of each layer: none where it does not attend, as ``others`` says."""

    others: ClassVar[str]

    def _from_gguf(self, fields: Fields, known: Settings, own: Family) -> Settings:
        listed = fields.get(self.gguf or "")
        counts = set(listed.tolist()) if isinstance(listed, np.ndarray) else set()
        if not isinstance(listed, np.ndarray) or len(listed) != known["layers"] or len(counts - {0}) != 1:
            raise fields.refusal(self.gguf or "", "should list the key-value heads of each layer, or 0")
        return {"kv_heads": max(counts), self.others: tuple(count == 0 for count in listed.tolist())}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if not gguf:
            return super().write(known, gguf)
        counts = [0 if other else known["kv_heads"] for other in known[self.others]]
        return {str(self.gguf): np.array(counts, np.int32)}


class SparseLayers(FolderRow):
    """Which layers are dense: those listed, and those between the steps (Qwen's mixtures of experts)."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        step = fields.integer("decoder_sparse_step") if fields.stated("decoder_sparse_step") else 1
        listed = fields.get("mlp_only_layers") or []
        if not isinstance(listed, list) or any(type(n) is not int for n in listed):
            raise fields.refusal("mlp_only_layers", "should be a list of layer numbers")
        return {"dense": tuple(n in listed or (n + 1) % step != 0 for n in range(known["layers"]))}

    def write(self, known: Settings, gguf: bool) -> Entries:
        dense = [n for n, each in enumerate(known["dense"]) if each]
        return {"decoder_sparse_step": 1, "mlp_only_layers": dense}


@dataclass(frozen=True)
class LayerTypes(Row):
    """Which layers are local, and their window: those of ``layer_types``, or all but every ``pattern``-th.

    ``key`` is that of the pattern, None where configs have none; ``usual`` another rule than the pattern.
    Without ``in_gguf`` llama.cpp has no windows for these models.
    """

    name: ClassVar[str] = "windows"
    pattern: int
    key: str | None = "sliding_window_pattern"
    usual: Callable[[int], list[bool]] | None = None
    in_gguf: bool = True

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        layers = known["layers"]
        if fields.gguf and not self.in_gguf:
            return {}
        if fields.gguf:
            window = fields.integer("attention.sliding_window", None)
            is_local = self._flags(fields, "attention.sliding_window_pattern", layers)
        else:
            pattern = fields.integer(self.key, self.pattern) if self.key else self.pattern
            kinds = fields.each_layer("layer_types", layers, (SLIDING, FULL))
            usual = every(pattern, layers) if self.usual is None else self.usual(layers)
            is_local = usual if kinds is None else [kind == SLIDING for kind in kinds]
            window = fields.integer("sliding_window", own.defaults.get("window", 4096))
            if fields.has("sliding_window") and fields.get("sliding_window") is None:
                if "window" not in own.nulls:
                    raise fields.refusal("sliding_window", "is null: give it a value, or remove the key")
                if kinds and SLIDING in kinds:
                    raise fields.refusal("sliding_window", f"is null, but layer_types names {SLIDING}")
                window = None
        return {"windows": tuple(window if each else None for each in is_local), "window": window}

    def write(self, known: Settings, gguf: bool) -> Entries:
        is_local = [window is not None for window in known["windows"]]
        window = next(filter(None, known["windows"]), 4096)
        if not gguf:
            return {"sliding_window": window, "layer_types": [SLIDING if each else FULL for each in is_local]}
        if not self.in_gguf:
            return {}
        entries: Entries = {"attention.sliding_window": window} if any(is_local) else {}
        if entries and is_local != every(self.pattern, len(is_local)):
            entries["attention.sliding_window_pattern"] = np.array(is_local)
        return entries

    def _flags(self, fields: Fields, key: str, layers: int) -> list[bool]:
        """A flag for each layer, as an array of them or as a pattern."""
        stated = fields.get(key)
        if not isinstance(stated, np.ndarray):
            return every(fields.integer(key, self.pattern), layers)
        if stated.dtype != np.bool_ or len(stated) != layers:
            raise fields.refusal(key, f"should be a flag for each of {layers} layers")
        return stated.tolist()


def every(pattern: int, layers: int) -> list[bool]:
    """Which layers are local if every ``pattern``-th is global."""
    return [bool((n + 1) % pattern) for n in range(layers)]


def all_but_every(pattern: int) -> Callable[[int], list[bool]]:
    """A rule: of ``pattern`` layers the first is global, the others are local."""
    return lambda layers: [bool(n % pattern) for n in range(layers)]


def nope_where_full(known: Settings) -> tuple[bool, ...]:
    """The layers without a window, where only those with one have positions."""
    return tuple(window is None for window in known["windows"])


def same_heads(known: Settings) -> int:
    """Key-value heads: their number is that of query heads."""
    return known["heads"]


def _fraction(fields: Fields, key: str) -> float:
    """A number that transformers does not take as a whole one."""
    if type(fields.get(key)) is int:
        raise fields.refusal(key, f"is a whole number: transformers asks for {fields.get(key)}.0")
    return fields.number(key)


FRACTION = Kind(_fraction, float)
INVERSE = Kind(lambda fields, key: 1 / fields.number(key), lambda value: 1 / value)
ACTIVATION = words(ACTIVATIONS, HF_ACTIVATIONS)
ACTIVATION_ROW = Field("activation", "hidden_act", None, ACTIVATION)
TOP_K = Kind(lambda fields, key: fields.integer(key, high=EXPERTS))
ANY = (
    Only("is_encoder_decoder", None, (False, None), "a model of an encoder and a decoder"),
    Only("add_cross_attention", None, (False,), "cross-attention"),
    Further(),
)
CAUSAL = (Only("is_causal", "attention.causal", (True,), "attention to later tokens"), *ANY)
ONE_MLP = (
    Only(None, "expert_count", (0,), "a mixture of experts"),
    Only(None, "expert_used_count", (0,), "a mixture of experts"),
)
DENSE = (Field("hidden", "intermediate_size", "feed_forward_length", each_layer=True), *ONE_MLP)
SIZES = (
    LayerCount("layers", "num_hidden_layers", "block_count", LAYER_COUNT),
    Vocab("vocab", "vocab_size", "vocab_size"),
    Field("width", "hidden_size", "embedding_length"),
    Field("context", "max_position_embeddings", "context_length"),
    Field("heads", "num_attention_heads", "attention.head_count", each_layer=True),
    Field("kv_heads", "num_key_value_heads", "attention.head_count_kv", missing=same_heads, each_layer=True),
    HeadSize("head_size", "head_dim", "attention.key_length", Kind(_even), missing=shared),
    Rope(),
    Field("eps", "rms_norm_eps", "attention.layer_norm_rms_epsilon", NUMBER),
    ACTIVATION_ROW,
    Present("tied", "tie_word_embeddings", "output.weight", absent=True),
    *CAUSAL,
)


def turning(rows: Sequence[Row], **changes: Any) -> tuple[Row, ...]:
    """The rows with other rotary positions."""
    return tuple(replace(row, **changes) if type(row) is Rope else row for row in rows)


GROUPS = (
    Field("groups", "n_group", None),
    Field("top_groups", "topk_group", None),
    Field("normalised", "norm_topk_prob", None, FLAG),
)
ROUTED_SCALE = Field("routed_scale", "routed_scaling_factor", None, NUMBER)
NO_GROUPS = Only(None, "expert_group_count", (0, 1), "routing to groups of experts")
SIGMOID = {"score": "sigmoid", "choice_bias": True, "group_of_two": True}  # DeepSeek-V3's router
EXPERT_HIDDEN = ("moe_intermediate_size", "expert_feed_forward_length")
EXPERTS_IN_GGUF = (
    Only(None, "expert_gating_func", (1,), "another score of experts than softmax"),
    Only(None, "expert_weights_scale", (1.0,), "scaling the experts' outputs"),
    Only(None, "expert_group_count", (0, 1), "routing to groups of experts"),
)


def biases(key: str, alias: str | None = None) -> tuple[Present, ...]:
    """Rows for a bias on query, key and value and one on the output, by one key of config.json."""
    return (
        Present("bias", key, "blk.0.attn_q.bias", alias=alias),
        Present("out_bias", key, "blk.0.attn_output.bias", alias=alias),
    )


def experts(count: str, hidden: tuple[str, str], alias: str | None = None) -> tuple[Field | Only, ...]:
    """Rows for a mixture of experts: the key of their number, and the two of their width."""
    return (
        Field("experts", count, "expert_count", TOP_K, alias=alias),
        Field("top_k", "num_experts_per_tok", "expert_used_count", TOP_K),
        Field("expert_hidden", *hidden, each_layer=True),
        *EXPERTS_IN_GGUF,
    )
