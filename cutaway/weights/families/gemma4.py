"""Gemma 4 (2026), text: Gemma 3's blocks with wider global heads, in which a quarter of all pairs rotates.

Values are normed, scores are not scaled, the last layers may read the keys and values of earlier ones, and
small models give each block an embedding of each token. Norms hold the factor itself. In the 26B there are
experts beside the MLP of each layer, both normed before and after.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf import made
from cutaway.layers.config import MLP, MoE, Norm, PerLayer
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.position import rope
from cutaway.position.scaling import Proportional
from cutaway.quantization import formats
from cutaway.weights import decoders, naming, rotary, rows
from cutaway.weights.families import gemma, gemma3, llama
from cutaway.weights.family import FLAG, NUMBER, Entries, Family, Field, Kind, Only, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rows import FULL, SLIDING
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import each, same, split, stack

ALIASES = ("gemma4_text",)
BASES = {FULL: 1_000_000.0, SLIDING: 10_000.0}
NAMES = {FULL: "rope", SLIDING: "local_rope"}


class Layers(rows.LayerTypes):
    """Which layers are local; the last is global whatever the config says."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        found = super().read(fields, known, own)
        return found | {"windows": (*found["windows"][:-1], None)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if not gguf:
            return super().write(known, gguf)
        is_local = np.array([window is not None for window in known["windows"]])
        window = next(filter(None, known["windows"]), 512)
        return {"attention.sliding_window": window, "attention.sliding_window_pattern": is_local}


def each_layer(fields: Fields, key: str, layers: int) -> list[int]:
    """A number that GGUF has once, or for each layer."""
    value = fields.get(key)
    if not isinstance(value, np.ndarray):
        return [fields.integer(key)] * layers
    if value.shape != (layers,) or value.dtype.kind not in "iu" or not (value > 0).all():
        raise fields.refusal(key, f"should be a number above 0 for each of {layers} layers")
    return value.tolist()


def shorter(values: list[int]) -> Any:
    """What GGUF holds of a number for each layer."""
    return values[0] if len(set(values)) == 1 else np.array(values, np.int32)


class Global(Row):
    """The size of the heads of global layers and how many key-value heads they have."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return self._from_gguf(fields, known)
        size = fields.integer("global_head_dim") if fields.stated("global_head_dim") else 512
        count = fields.integer("num_global_key_value_heads", None) if known["value_of_key"] else None
        fields.get("num_global_key_value_heads")
        if fields.has("per_layer_config"):  # what transformers 5 writes in place of both
            size, count = self._overridden(fields, known)
        return {"global_size": size or known["head_size"], "global_kv": count or known["kv_heads"]}

    def _overridden(self, fields: Fields, known: Settings) -> tuple[int | None, int | None]:
        given = fields.section("per_layer_config")
        if given is None or not given.data:
            return None, None
        far = {str(n) for n, window in enumerate(known["windows"]) if window is None}
        entries = list(given.data.values())
        if {key.removeprefix(given.prefix) for key in given.data} != far or any(
            entry != entries[0] for entry in entries
        ):
            raise fields.refusal(
                "per_layer_config", "is read where it changes all global layers alike, and no other"
            )
        one = given.section(min(far))
        if one is None:
            return None, None
        found = [one.integer(key, None) for key in ("head_dim", "num_key_value_heads")]
        one.finish((), "Gemma 4's global layers have")
        return found[0], found[1]

    def _from_gguf(self, fields: Fields, known: Settings) -> Settings:
        windows, key = known["windows"], "attention.head_count_kv"
        counts = [set(), set()]
        for count, window in zip(each_layer(fields, key, known["layers"]), windows, strict=True):
            counts[window is not None].add(count)
        if any(len(found) > 1 for found in counts):
            raise fields.refusal(key, "differs between layers of one kind")
        sizes = [fields.integer("attention.key_length"), fields.integer("attention.key_length_swa", None)]
        for suffix, size in zip(("", "_swa"), sizes, strict=True):
            fields.only(f"attention.value_length{suffix}", (size,), "values of another size than keys")
        try:
            _check_sources(windows, known["shared_layers"])
        except UserError as error:
            raise UserError(f"{fields.where}: {error}") from None
        first = known["layers"] - known["shared_layers"]
        far = [n for n in range(first) if windows[n] is None]
        there = {f"blk.{n}.attn_v.weight" in fields.tensors for n in far}
        if len(there) > 1:
            raise fields.refusal("attention.shared_kv_layers", "leaves values in some global layers alone")
        far_kv = next(iter(counts[0]))
        return {
            "global_size": sizes[0],
            "head_size": sizes[1] or sizes[0],
            "global_kv": far_kv,
            "kv_heads": next(iter(counts[1]), far_kv),
            "value_of_key": there == {False},
        }

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            _check_sources(known["windows"], known["shared_layers"])
            kv = [known["global_kv" if window is None else "kv_heads"] for window in known["windows"]]
            far, near = known["global_size"], known["head_size"]
            return {
                "attention.head_count_kv": shorter(kv),
                **{f"attention.{name}_length": far for name in ("key", "value")},
                **{f"attention.{name}_length_swa": near for name in ("key", "value")},
            }
        kv = known["global_kv"] if known["value_of_key"] else None
        return {"global_head_dim": known["global_size"], "num_global_key_value_heads": kv}


class Ropes(Row):
    """Rotary positions of global and of local layers; ``part`` of the global pairs rotates."""

    part = 0.25

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return self._from_gguf(fields, known)
        given = fields.section("rope_parameters")
        if given is None:
            plain = {"rope_type": "default", "rope_theta": BASES[SLIDING]}
            far = {"rope_type": "proportional", "rope_theta": BASES[FULL], "partial_rotary_factor": self.part}
            given = Fields({FULL: far, SLIDING: plain}, fields.where)
        found = {}
        for kind, name in NAMES.items():
            wanted = any((window is None) == (kind == FULL) for window in known["windows"])
            section = given.section(kind)
            if section is None and wanted:
                raise fields.refusal(
                    "rope_parameters", f"has no {quoted(kind)}, which the model has layers of"
                )
            if section is None:
                continue
            if not section.stated("rope_theta"):
                raise section.refusal("rope_theta", "is missing")
            part = 1.0 if section.get("rope_type") == "proportional" else None
            size = known["global_size" if kind == FULL else "head_size"]
            found[name] = rotary.Rope(part).of_kind(section, known | {"head_size": size}, 0.0)
        given.finish((), "Gemma 4's rotary positions have")
        return found

    def _from_gguf(self, fields: Fields, known: Settings) -> Settings:
        found = {}
        for kind, (suffix, size) in {FULL: ("", "global_size"), SLIDING: ("_swa", "head_size")}.items():
            size = known[size]
            fields.only(f"rope.dimension_count{suffix}", (size,), "partial rotary position embedding")
            found[NAMES[kind]] = rope.Config(size, fields.number(f"rope.freq_base{suffix}", BASES[kind], 1.0))
        divisors = fields.tensors.get(rotary.ROPE_FREQS)
        if divisors is not None:
            far = found["rope"]
            values = formats.unpack(made(rotary.ROPE_FREQS, divisors))
            scaling = Proportional(max(float((values < rotary.STILL).mean()), 1e-9))
            if not np.array_equal(values, rotary.divisors_of(far, scaling)):
                raise fields.refusal(
                    "rope.freq_base", f"has other divisors in {rotary.ROPE_FREQS} than Gemma 4"
                )
            found["rope"] = replace(far, scaling=scaling)
        return found

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            far, near = known["rope"], known["local_rope"] or rope.Config(known["head_size"], BASES[SLIDING])
            if far is None:
                raise UserError("no layer of it rotates")
            if None in known["windows"] and not isinstance(far.scaling, Proportional):
                raise UserError(
                    "global layers that rotate otherwise than in proportion is not supported in GGUF"
                )
            return {
                "rope.freq_base": float(far.base),
                "rope.freq_base_swa": float(near.base),
                "rope.dimension_count": far.size,
                "rope.dimension_count_swa": near.size,
            }
        out = {}
        for kind, name in NAMES.items():
            position = known.get(name)
            if position is not None:
                out[kind] = rotary.hf_section(position)
                if out[kind]["rope_type"] == "proportional":
                    out[kind]["partial_rotary_factor"] = position.scaling.fraction
        return {"rope_parameters": out}


class Widths(Row):
    """The MLPs' sizes in GGUF; in layers that share keys they may be twice the others'."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if not fields.gguf:
            return {}
        key, shared = "feed_forward_length", known["shared_layers"]
        found = each_layer(fields, key, known["layers"])
        hidden, double = found[0], bool(shared) and found[-1] == 2 * found[0]
        wide = [hidden * (2 if double else 1)] * shared
        if found != [hidden] * (known["layers"] - shared) + wide:
            raise fields.refusal(key, "differs between layers, but not as in Gemma 4")
        return {"hidden": hidden, "double": double}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if not gguf:
            return {}
        shared, hidden = known["shared_layers"], known["hidden"]
        wide = [hidden * (2 if known["double"] else 1)] * shared
        return {"feed_forward_length": shorter([hidden] * (known["layers"] - shared) + wide)}


class Experts(Row):
    """The experts beside each layer's MLP, where there are any."""

    name = "experts"

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        keys = EXPERTS[fields.gguf]
        if fields.gguf:
            there = bool(fields.integer(keys["experts"], 0, low=0))
        else:
            there = fields.flag("enable_moe_block") if fields.stated("enable_moe_block") else False
        found = {name: fields.integer(key) if there else fields.get(key) for name, key in keys.items()}
        return found if there else dict.fromkeys(found)

    def write(self, known: Settings, gguf: bool) -> Entries:
        there = known["experts"] is not None
        named = {key: known[name] for name, key in EXPERTS[gguf].items()} if there else {}
        return named if gguf else {"enable_moe_block": there, **named}


EXPERTS = (
    {"experts": "num_experts", "top_k": "top_k_experts", "expert_hidden": "moe_intermediate_size"},
    {"experts": "expert_count", "top_k": "expert_used_count", "expert_hidden": "expert_feed_forward_length"},
)


class Softcap(Field):
    """The bound of logits, without which a GGUF file has 0; llama.cpp takes 30 for a key that is left out."""

    def _from_gguf(self, fields: Fields, known: Settings, own: Family) -> Settings:
        return {self.name: fields.number(str(self.gguf), 30.0, low=-1e-30) or None}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {str(self.gguf): known[self.name] or 0.0} if gguf else super().write(known, gguf)


class Table(Field):
    """The rows of the per-layer table, for which GGUF has no key; llama.cpp takes one for each word."""

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf and known["per_layer"] and known["per_layer_vocab"] != known["vocab"]:
            raise UserError("a per-layer table of other words than the model's is not supported in GGUF")
        return super().write(known, gguf)

    def _from_gguf(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if not known["per_layer"]:
            return {self.name: known["vocab"]}
        return {self.name: rows.rows_of(fields, "per_layer_token_embd.weight")}


def sources(windows: tuple[int | None, ...], shared: int) -> tuple[int | None, ...]:
    """The layer whose keys and values each layer reads: the last of its kind before the ``shared`` last."""
    first = max(len(windows) - shared, 0)
    own = {window: n for n, window in enumerate(windows[:first])}
    if not own.keys() >= set(windows):
        raise UserError("num_kv_shared_layers leaves a kind of layer without keys")
    return tuple(None if n < first else own[window] for n, window in enumerate(windows))


def _check_sources(windows: tuple[int | None, ...], shared: int) -> None:
    """UserError unless global layers read the last layer with keys, and local ones the one before it."""
    first = len(windows) - shared
    for window, source in zip(windows, sources(windows, shared), strict=True):
        if source is not None and source != first - (1 if window is None else 2):
            raise UserError(
                "reading keys of other layers than the last two with their own, a local and a global one, "
                "is not supported in GGUF"
            )


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    norm, windows = Norm("rms", known["eps"]), known["windows"]

    def block(window: int | None, source: int | None) -> Block:
        far = window is None
        attention = decoders.heads(
            known["heads"],
            known["global_kv" if far else "kv_heads"],
            window,
            key_size=known["global_size" if far else "head_size"],
            position=known[NAMES[FULL if far else SLIDING]],
            scale=1.0,
            qk_norm=norm,
            bias=known["bias"],
            out_bias=known["out_bias"],
            value_norm=Norm("rms", known["eps"], weight=False),
            value_of_key=known["value_of_key"] and far and source is None,
            kv_layer=source,
        )
        hidden = known["hidden"] * (2 if known["double"] and source is not None else 1)
        mlp: MLP | MoE = MLP(hidden, known["activation"])
        if known["experts"] is not None:
            sizes = known["experts"], known["top_k"], known["expert_hidden"]
            mlp = MoE(*sizes, known["activation"], shared=hidden, norms=norm)
        return Block(attention, mlp, norm, post_norm=True, per_layer=known["per_layer"] or None, scaled=True)

    shared = known["shared_layers"]
    return Decoder(
        known["vocab"],
        known["width"],
        known["context"],
        tuple(map(block, windows, sources(windows, shared))),
        norm,
        known["tied"],
        gemma.embedding_scale(known),
        softcap=known["softcap"],
        per_layer=PerLayer(known["per_layer"], known["per_layer_vocab"]) if known["per_layer"] else None,
    )


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    known = decoders.settings(config)
    each: list[tuple[Any, Any]] = [(block.attention, block.mlp) for block in config.blocks]
    far = next(attention for attention, _ in reversed(each))
    near = next((attention for attention, _ in each if decoders.window_of(attention) is not None), far)
    sparse = next((mlp for _, mlp in each if isinstance(mlp, MoE)), None)
    if any(mlp is None for _, mlp in each):
        raise UserError("a layer of it has no MLP")
    widths = [mlp.shared if isinstance(mlp, MoE) else mlp.hidden for _, mlp in each]
    shared = [width for width, (of, _) in zip(widths, each, strict=True) if of.kv_layer is not None]
    of = getattr(config, "per_layer", None)
    return known | {
        "hidden": widths[0],
        "experts": sparse and sparse.experts,
        "top_k": sparse and sparse.top_k,
        "expert_hidden": sparse and sparse.hidden,
        "value_of_key": any(attention.value_of_key for attention, _ in each),
        "head_size": near.key_size,
        "kv_heads": near.groups,
        "global_size": far.key_size,
        "global_kv": far.groups,
        "shared_layers": len(shared),
        "double": bool(shared) and shared[0] == 2 * widths[0],
        "per_layer": of.size if of else 0,
        "per_layer_vocab": of.vocab if of else known["vocab"],
    }


HEADS = (  # which global and local layers have of their own in GGUF
    Field("kv_heads", "num_key_value_heads", None),
    Field("head_size", "head_dim", None),
)
ANY = Kind(lambda fields, key: fields.integer(key, low=0, high=1 << 20))


def unused(config: Decoder | Encoder) -> tuple[str, ...]:
    """Keys and values of layers that read another layer's, which files hold too."""
    layers = [n for n, block in enumerate(config.blocks) if block.attention.kv_layer is not None]
    names = ("k_proj", "v_proj", "k_norm")
    return tuple(f"model.layers.{n}.self_attn.{name}.weight" for n in layers for name in names)


LAYER, EXPERT = "model.layers.{n}", "blocks.{n}.mlp.experts.{e}"
BOTH = (f"{EXPERT}.gate.weight", f"{EXPERT}.up.weight")


def mixture(norms: tuple[tuple[str, str], ...], mlp: tuple[tuple[str, str], ...]) -> tuple[Rule, ...]:
    """The names that a dense layer has, of the MLP beside experts, and those of the norms around both."""
    beside = ((theirs, ours.replace(".mlp.", ".mlp.shared.")) for theirs, ours in mlp)
    return naming.weights(*norms, *beside)


HF_MLP = tuple((f"{LAYER}.mlp.{name}_proj", f"blocks.{{n}}.mlp.{name}") for name in ("gate", "up", "down"))
FAMILY = llama.FAMILY.but(
    "gemma4",
    "Gemma4ForCausalLM",
    hf_type="gemma4_text",
    hf=(
        *naming.HF_SANDWICH,
        *naming.HF_QK_NORM,
        Rule("model.layers.{n}.layer_scalar", "blocks.{n}.scale", same),
        *naming.weights(
            ("model.layers.{n}.per_layer_input_gate", "blocks.{n}.per_layer.gate"),
            ("model.layers.{n}.per_layer_projection", "blocks.{n}.per_layer.out"),
            ("model.layers.{n}.post_per_layer_input_norm", "blocks.{n}.per_layer.norm"),
            ("model.embed_tokens_per_layer", "per_layer.embedding"),
            ("model.per_layer_model_projection", "per_layer.projection"),
            ("model.per_layer_projection_norm", "per_layer.norm"),
            (f"{LAYER}.router.proj", "blocks.{n}.mlp.router"),
        ),
        *mixture(
            (
                (f"{LAYER}.pre_feedforward_layernorm", "blocks.{n}.mlp.shared_norm"),
                (f"{LAYER}.post_feedforward_layernorm_1", "blocks.{n}.mlp.shared_post_norm"),
                (f"{LAYER}.pre_feedforward_layernorm_2", "blocks.{n}.mlp.experts_norm"),
                (f"{LAYER}.post_feedforward_layernorm_2", "blocks.{n}.mlp.experts_post_norm"),
            ),
            HF_MLP,
        ),
        Rule(f"{LAYER}.router.scale", "blocks.{n}.mlp.router_norm.weight", same),
        Rule(f"{LAYER}.router.per_expert_scale", "blocks.{n}.mlp.expert_scale", same),
        Rule(f"{LAYER}.experts.gate_up_proj", BOTH, each(split, 2)),
        Rule(f"{LAYER}.experts.down_proj", f"{EXPERT}.down.weight", stack),
    ),
    gguf=(
        *naming.GGUF_PLAIN,
        *naming.GGUF_SANDWICH,
        *naming.GGUF_QK_NORM,
        Rule("blk.{n}.layer_output_scale.weight", "blocks.{n}.scale", same),
        *naming.weights(
            ("blk.{n}.inp_gate", "blocks.{n}.per_layer.gate"),
            ("blk.{n}.proj", "blocks.{n}.per_layer.out"),
            ("blk.{n}.post_norm", "blocks.{n}.per_layer.norm"),
            ("per_layer_token_embd", "per_layer.embedding"),
            ("per_layer_model_proj", "per_layer.projection"),
            ("per_layer_proj_norm", "per_layer.norm"),
            ("blk.{n}.ffn_gate_inp", "blocks.{n}.mlp.router"),
        ),
        *mixture(
            (
                ("blk.{n}.ffn_norm", "blocks.{n}.mlp.shared_norm"),
                ("blk.{n}.post_ffw_norm_1", "blocks.{n}.mlp.shared_post_norm"),
                ("blk.{n}.pre_ffw_norm_2", "blocks.{n}.mlp.experts_norm"),
                ("blk.{n}.post_ffw_norm_2", "blocks.{n}.mlp.experts_post_norm"),
            ),
            naming.GGUF_MLP,
        ),
        Rule("blk.{n}.ffn_gate_inp.scale", "blocks.{n}.mlp.router_norm.weight", same),
        Rule("blk.{n}.ffn_down_exps.scale", "blocks.{n}.mlp.expert_scale", same),
        Rule("blk.{n}.ffn_gate_up_exps.weight", BOTH, each(split, 2)),
        Rule("blk.{n}.ffn_down_exps.weight", f"{EXPERT}.down.weight", stack),
    ),
    rows=(
        *rows.replaced(rows.SIZES, gemma3.ACTIVATION, *HEADS, without=("rope",)),
        Field("hidden", "intermediate_size", None),
        Experts(),
        Layers(pattern=6, key=None),
        Field("shared_layers", "num_kv_shared_layers", "attention.shared_kv_layers", ANY, missing=0),
        Field("value_of_key", "attention_k_eq_v", None, FLAG),
        Global(),
        Ropes(),
        Widths(),
        Field("double", "use_double_wide_mlp", None, FLAG),
        Field("per_layer", "hidden_size_per_layer_input", "embedding_length_per_layer_input", ANY, missing=0),
        Table("per_layer_vocab", "vocab_size_per_layer_input", None),
        Softcap("softcap", "final_logit_softcapping", "final_logit_softcapping", NUMBER),
        *rows.biases("attention_bias"),
        Only("use_bidirectional_attention", None, ("vision", None), "attention to later tokens"),
    ),
    build=decoder,
    describe=settings,
    defaults={"vocab": 262_144, "width": 2304, "hidden": 9216, "layers": 30, "heads": 8, "kv_heads": 4}
    | {"head_size": 256, "context": 131_072, "activation": "gelu_tanh", "tied": True, "softcap": None}
    | {"window": 512, "value_of_key": False, "shared_layers": 0, "double": False}
    | {"per_layer": 256, "per_layer_vocab": 262_144},
    nulls={"softcap": None},
    forget=("kv_heads", "head_size"),
    gguf_fixed={"activation": "gelu_tanh"},
    sparse=None,
    ignored_gguf=(rotary.ROPE_FREQS, *(f"blk.*.attn_{name}.weight" for name in ("k", "v", "k_norm"))),
    also_ignored=unused,
)
