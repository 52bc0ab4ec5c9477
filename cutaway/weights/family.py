"""A family of models: two tables of weight names, and one table of settings, each read both ways.

A row of the settings table ties one name of ours to its key in a ``config.json`` and its key in GGUF
metadata. Settings are plain values by our names (``heads``, ``rope``); ``build`` makes a config of them,
``describe`` takes a config apart. A row that two keys cannot express overrides the methods of ``Row``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, NoReturn

from cutaway.errors import UserError
from cutaway.layers.config import MoE
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Model
from cutaway.model.kinds import kind_of
from cutaway.weights.classifier_head import Head
from cutaway.weights.fields import LAYERS, MISSING, Fields
from cutaway.weights.named_tensors import Tensors
from cutaway.weights.repeated import repeats
from cutaway.weights.rules import Rule

USUAL = ("mha", "gqa", "mqa", "local", "bidirectional")  # kinds of attention
Settings = dict[str, Any]
Entries = dict[str, Any]


class Row:
    """Some settings as keys of a config.json and of GGUF metadata; ``own`` is the family that reads them."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        """The settings that a file states (``fields.gguf`` says which kind); ``known`` are those before."""
        return {}

    def write(self, known: Settings, gguf: bool) -> Entries:
        """The entries of a file for these settings."""
        return {}


class FolderRow(Row):
    """Settings that only a config.json states: nothing of GGUF is read or written."""


class GGUFRow(Row):
    """Settings that only GGUF states."""


class Kind(NamedTuple):
    """The type of a value: its reader, a method of ``Fields``, and what is written for it."""

    read: Callable[..., Any]
    write: Callable[[Any], Any] = lambda value: value


def words(read: Mapping[str, Any], write: Mapping[Any, str]) -> Kind:
    """A word of a fixed list."""

    def written(value: Any) -> str:
        if value not in write:
            raise UserError(f"has no word for {value!r}")
        return write[value]

    return Kind(lambda fields, key: fields.choice(key, read), written)


WHOLE = Kind(Fields.integer)
NUMBER = Kind(Fields.number, float)
FLAG = Kind(Fields.flag)
LAYER_COUNT = Kind(lambda fields, key: fields.integer(key, high=LAYERS))


def _value(meaning: Any, known: Settings) -> Any:
    """A default: itself, or computed from the settings before it."""
    return meaning(known) if callable(meaning) else meaning


@dataclass(frozen=True)
class Field(Row):
    """One setting with one key in each format, or in one of them.

    Without a key in config.json the family's ``defaults`` hold, without one in GGUF its ``gguf_fixed``.
    ``missing`` is the value where GGUF leaves the key out; ``each_layer``: GGUF may repeat it for each layer.
    """

    name: str
    hf: str | None
    gguf: str | None
    kind: Kind = WHOLE
    missing: Any = MISSING
    each_layer: bool = False
    alias: str | None = None  # a second key of config.json for the same setting

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return self._from_gguf(fields, known, own)
        stated = [key for key in (self.hf, self.alias) if key is not None and fields.has(key)]
        values = [self._stated(fields, key, known, own) for key in stated]
        if len(values) > 1 and values[0] != values[1]:
            raise fields.refusal(stated[0], f"and {stated[1]} disagree: {values[0]} and {values[1]}")
        if values:
            return {self.name: values[0]}
        if self.name not in own.defaults:
            return {} if self.hf is None else {self.name: self.kind.read(fields, self.hf)}
        return {self.name: _value(own.defaults[self.name], known)}

    def _stated(self, fields: Fields, key: str, known: Settings, own: Family) -> Any:
        if self.name in own.nulls and fields.get(key) is None:
            return _value(own.nulls[self.name], known)
        fields.stated(key)
        return self.kind.read(fields, key)

    def _from_gguf(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if self.name in own.gguf_fixed:
            value = _value(own.gguf_fixed[self.name], known)
            if self.gguf is not None:
                fields.only(self.gguf, (value,), f"another {self.name.replace('_', ' ')} than {value}")
            return {self.name: value}
        if self.gguf is None:
            return {}
        if not fields.has(self.gguf) and self.missing is not MISSING:
            return {self.name: _value(self.missing, known)}
        source = fields.same(self.gguf, known["layers"]) if self.each_layer else fields
        return {self.name: self.kind.read(source, self.gguf)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        key, value = self.gguf if gguf else self.hf, known.get(self.name)
        if key is None or self.name not in known or (gguf and value is None):
            return {}
        return {key: None if value is None else self.kind.write(value)}


@dataclass(frozen=True)
class Present(Field):
    """A flag of config.json that GGUF expresses by a tensor, by its presence or (``absent``) its absence."""

    kind: Kind = FLAG
    absent: bool = False

    def _from_gguf(self, fields: Fields, known: Settings, own: Family) -> Settings:
        return {self.name: own.gguf_fixed.get(self.name, (self.gguf in fields.tensors) is not self.absent)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {} if gguf else super().write(known, gguf)


@dataclass(frozen=True)
class Only(Row):
    """A key of either format that may be present with these values alone."""

    hf: str | None
    gguf: str | None
    accepted: tuple[object, ...]
    meaning: str

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        key = self.gguf if fields.gguf else self.hf
        if key is not None:
            fields.only(key, self.accepted, self.meaning)
        return {}


# Keys that change nothing a model computes: bookkeeping, training, generation and the tokenizer's ids.
HARMLESS_HF = re.findall(
    r"\S+",
    """
    architectures model_type auto_map transformers_version transformers.js_config _name_or_path name_or_path
    _commit_hash torch_dtype dtype use_bfloat16 torchscript _attn_implementation attn_implementation
    _attn_implementation_autoset _experts_implementation _flash_attn_2_enabled unsloth_* use_cache return_dict
    return_dict_in_generate output_attentions output_hidden_states output_router_logits output_scores
    gradient_checkpointing initializer_range initializer_factor attention_dropout hidden_dropout embd_pdrop
    resid_pdrop attn_pdrop dropout activation_dropout layerdrop hidden_dropout_prob
    attention_probs_dropout_prob classifier_dropout
    router_jitter_noise router_aux_loss_coef pretraining_tp chunk_size_feed_forward finetuning_task
    problem_type id2label label2id num_labels task_specific_params tokenizer_class prefix summary_*
    *_token_id *_token_ids reorder_and_upcast_attn tie_encoder_decoder is_decoder max_length min_length
    do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    repetition_penalty length_penalty bad_words_ids no_repeat_ngram_size encoder_no_repeat_ngram_size
    num_return_sequences suppress_tokens begin_suppress_tokens exponential_decay_length_penalty
    remove_invalid_values tf_legacy_loss is_matryoshka matryoshka_dimensions cache_implementation
    """,
)
HARMLESS_GGUF = ("tensor_data_layout", "pooling_type", "rope.scaling.finetuned", "expert_group_used_count")
HARMLESS_GGUF += ("feed_forward_length",)  # of a mixture without dense layers, whose experts have their own
HARMLESS_GGUF += ("dense_?_feat_*",)  # of the layers after the pooling (weights/pooling.py)


def last_block(config: Decoder) -> Block:
    """The block of the last layer, of those with experts where there are such."""
    return next((b for b in reversed(config.blocks) if isinstance(b.mlp, MoE)), config.blocks[-1])


@dataclass(frozen=True)
class Family:
    """A family by its ``name``, which is the ``model_type`` it writes unless ``hf_type`` says otherwise.

    ``defaults`` and ``nulls``: what config.json means by a key that is left out or null, as in transformers;
    what is in neither is refused. ``fixed``: settings of all its models. ``gguf_fixed``: those of all its
    GGUF files, and what llama.cpp computes whatever the file says.
    """

    name: str
    hf_class: str
    hf: tuple[Rule, ...]
    gguf: tuple[Rule, ...]
    rows: tuple[Row, ...]
    build: Callable[[Settings], Model]
    describe: Callable[[Any], Settings]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    nulls: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    gguf_fixed: Mapping[str, Any] = field(default_factory=dict)
    hf_type: str = ""
    architecture: str = ""  # GGUF's word for it
    sparse_architecture: str = ""  # and for those with experts, where it is another
    config: type = Decoder
    # The block of heads that predict further tokens (mtp.py); None: there is no such layer.
    mtp_block: Callable[[Decoder], Block | None] = last_block
    head: Head | None = None  # of its encoders' classifiers of texts
    sparse: bool | None = False  # whether its blocks are mixtures of experts; None: some models' are
    mixers: tuple[str, ...] = USUAL  # the kinds of its attention
    prefix: str = "model."  # of its weights' names, left out by files without a head
    harmless: tuple[str, ...] = ()  # keys of config.json that its models ignore
    ignored_hf: tuple[str, ...] = (
        "model.layers.*.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
    )
    # The same function in a config that GGUF can state, some of it in the weights, and what that changed.
    folded: Callable[[Any, Tensors], tuple[Any, Tensors, str]] | None = None
    # The same in a config that a folder can state: of a file whose config only GGUF can.
    unfolded: Callable[[Any, Tensors], tuple[Any, Tensors, str]] | None = None
    gguf_numbers: tuple[
        str, ...
    ] = ()  # keys that list a number of each layer, tensors ``blk.{n}.KEY`` in ``gguf``
    gguf_joined: tuple[Rule, ...] = ()  # of a GGUF file whose keys and values of latents are in one matrix
    hf_mxfp4: tuple[Rule, ...] = ()  # in a folder whose experts are MXFP4 (weights/quantized/mxfp4.py)
    also_ignored: Callable[[Any], tuple[str, ...]] | None = None  # in a folder of such a model
    ignored_gguf: tuple[str, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()  # names in a folder that repeat the shared table
    spellings: tuple[tuple[str, str], ...] = ()  # parts of names that some folders write otherwise, and ours
    # Transformers' names of modules: parts of names in ``hf`` with others for them, or rules of their own.
    modules: tuple[tuple[str, str] | Rule, ...] = ()
    bypassed: tuple[str, ...] = ()  # modules whose weights transformers reads past PEFT
    recut: Callable[[dict[str, Any], Any], dict[str, Any]] | None = (
        None  # a folder's weights as ``hf`` has them
    )
    zeros: tuple[str, ...] = ()  # names that a folder may leave out, whose weights are then zeros
    instead: Callable[[Fields], str | None] | None = None  # the family that reads some configs of this type
    # Names in a folder whose weights must be sinusoids, which are computed, all sines first; and their base.
    sines: Mapping[str, float] = field(default_factory=dict)
    whole_ids: tuple[str, ...] = ()  # keys of special ids that config.json may leave out, but not have null

    def but(self, name: str, hf_class: str, forget: Collection[str] = (), **changes: Any) -> Family:
        """A family that differs by ``changes``; names in ``forget`` are dropped from all but ``defaults``."""
        for key in ("nulls", "fixed", "gguf_fixed"):
            kept = {setting: value for setting, value in getattr(self, key).items() if setting not in forget}
            changes[key] = kept | changes.get(key, {})
        changes["defaults"] = {**self.defaults, **changes.get("defaults", {})}
        return replace(
            self, **({"name": name, "hf_class": hf_class, "hf_type": "", "architecture": ""} | changes)
        )

    def covers(self, config: Model) -> bool:
        """Whether its models have configs of this class and kind of MLP."""
        sparse = any(isinstance(block.mlp, MoE) for block in config.blocks)
        kinds = {kind_of(block.attention) for block in config.blocks}
        fits = kinds <= set(self.mixers)
        return isinstance(config, self.config) and self.sparse in (sparse, None) and fits

    def read(self, fields: Fields) -> Model:
        """The model that a file describes; UserError for a key that is neither read nor harmless."""
        for key in () if fields.gguf else ("quantization_config", "compression_config"):
            fields.get(key)  # read with the weights (weights/quantized)
        known: Settings = {"where": fields.where}
        for row in self.rows_in(fields.gguf):
            known |= row.read(fields, known, self)
        harmless = HARMLESS_GGUF if fields.gguf else (*HARMLESS_HF, *self.harmless)
        readers = {row.name: row.kind.read for row in self.rows if isinstance(row, Field)}
        fields.finish(harmless, f"{self.name} models have", lambda key: repeats(fields, key, known, readers))
        for name, value in {**self.fixed, **(self.gguf_fixed if fields.gguf else {})}.items():
            known[name] = _value(value, known)
        try:
            model = self.build(known)
            if (heads := known.get("mtp", 0)) and isinstance(model, Decoder):
                block = self.mtp_block(model)
                model = model if block is None else replace(model, mtp=(block,) * heads)
            return model
        except UserError as error:
            raise UserError(f"{fields.where}: {error}") from None

    def write(self, config: Model, gguf: bool) -> Entries:
        """The config.json of a model, or its GGUF metadata without the architecture before each key."""
        known = _Described(self.describe(config) | {"mtp": len(getattr(config, "mtp", ()))})
        named = {"architectures": [self.hf_class], "model_type": self.hf_type or self.name}
        entries: Entries = {} if gguf else named
        for row in self.rows_in(gguf):
            entries |= row.write(known, gguf)
        return entries

    def rows_in(self, gguf: bool) -> tuple[Row, ...]:
        """The rows of a format."""
        return tuple(row for row in self.rows if not isinstance(row, FolderRow if gguf else GGUFRow))

    @property
    def gguf_name(self) -> str:
        return self.architecture or self.name.replace("_", "")

    def gguf_name_of(self, config: Model) -> str:
        """GGUF's word for a model of the family."""
        sparse = any(isinstance(block.mlp, MoE) for block in config.blocks)
        return self.sparse_architecture if sparse and self.sparse_architecture else self.gguf_name


class _Described(dict[str, Any]):
    """A model's settings. UserError for one that none of its layers has: the family cannot describe it."""

    def __missing__(self, name: str) -> NoReturn:
        raise UserError(f"none of its layers has a {name.replace('_', ' ')}")


def shared(known: Settings) -> int:
    """The size of a head that is not stated: width / heads, which must be whole."""
    if known["width"] % known["heads"]:
        raise UserError(
            f"{known['where']}: width {known['width']} cannot be shared evenly by {known['heads']} heads"
        )
    return known["width"] // known["heads"]
