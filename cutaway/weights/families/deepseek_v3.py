"""DeepSeek-V3 (2412.19437) and Kimi K2: latent attention, sigmoid-scored experts chosen within groups.

The layer after the last is a head that predicts one token more.
"""

import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from cutaway.errors import UserError
from cutaway.layers.config import Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.model.kinds import mixer
from cutaway.position import rope
from cutaway.position.scaling import Linear, YaRN, sharpening
from cutaway.weights import decoders, mtp, naming, rotary, rows
from cutaway.weights.families import llama
from cutaway.weights.family import FLAG, NUMBER, Entries, Family, Field, Kind, Only, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.named_tensors import Tensors, multiplied
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import absorbing, beside, per_head, same

ALIASES = ("deepseek2",)


EPS = 1e-6  # of the norms of latents


def queries_alone(block: Block) -> bool:
    """Whether queries come straight out of x."""
    return block.attention.query_latent is None


MLA = "model.layers.{n}.self_attn"
HF_LATENT = (
    *naming.weights(
        (f"{MLA}.q_a_proj", "blocks.{n}.attention.query_down"),
        (f"{MLA}.q_a_layernorm", "blocks.{n}.attention.query_norm"),
        (f"{MLA}.kv_a_proj_with_mqa", "blocks.{n}.attention.down"),
        (f"{MLA}.kv_a_layernorm", "blocks.{n}.attention.latent_norm"),
        (f"{MLA}.o_proj", "blocks.{n}.attention.out"),
    ),
    *(
        Rule(f"{MLA}.{name}.weight", "blocks.{n}.attention.query.weight", same, when)
        for name, when in (("q_proj", queries_alone), ("q_b_proj", lambda block: not queries_alone(block)))
    ),
    Rule(
        f"{MLA}.kv_b_proj.weight",
        ("blocks.{n}.attention.key_up.weight", "blocks.{n}.attention.value_up.weight"),
        beside("heads"),
    ),
)


SPLIT = (
    Rule("blk.{n}.attn_k_b.weight", "blocks.{n}.attention.key_up.weight", absorbing),
    Rule("blk.{n}.attn_v_b.weight", "blocks.{n}.attention.value_up.weight", per_head),
)
GGUF = (  # keys and values of each head in matrices of their own, as absorbed attention multiplies
    *naming.GGUF_PLAIN[:3],
    *naming.GGUF_NORMS,
    *naming.weights(
        naming.GGUF_OUT,
        *naming.GGUF_MLP,
        ("blk.{n}.attn_q_a", "blocks.{n}.attention.query_down"),
        ("blk.{n}.attn_q_a_norm", "blocks.{n}.attention.query_norm"),
        ("blk.{n}.attn_kv_a_mqa", "blocks.{n}.attention.down"),
        ("blk.{n}.attn_kv_a_norm", "blocks.{n}.attention.latent_norm"),
    ),
    *(
        Rule(f"blk.{{n}}.{name}.weight", "blocks.{n}.attention.query.weight", same, when)
        for name, when in (("attn_q", queries_alone), ("attn_q_b", lambda block: not queries_alone(block)))
    ),
    *SPLIT,
)
JOINED = replace(HF_LATENT[-1], theirs="blk.{n}.attn_kv_b.weight")  # of files of before May 2025
GGUF_MIXTURE = (
    *GGUF,
    *naming.GGUF_DEEPSEEK_EXPERTS,
)


class Rope(rotary.Rope):
    """Neighbouring pairs, unless the config says otherwise; a scaling of all dimensions scales scores too.

    ``by_all_dims``: llama.cpp divides the scale of angles by that of all dimensions (deepseek32).
    """

    by_all_dims: ClassVar[bool] = False

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        found = super().read(fields, known, own)
        if fields.gguf:
            return self._from_gguf(fields, found["rope"])
        older = fields.section("rope_scaling")
        given = older if older and older.data else fields.section("rope_parameters")
        rope, more = found["rope"], 1.0
        if isinstance(rope.scaling, YaRN) and given and given.get("mscale_all_dim"):
            more = sharpening(rope.scaling.factor, given.number("mscale_all_dim")) ** 2
        return {"rope": replace(rope, interleaved=known.get("interleaved", True)), "sharper": more}

    def _from_gguf(self, fields: Fields, position: rope.Config) -> Settings:
        """llama.cpp scales angles and scores by a tenth of ``mscale_all_dim`` and by ``attn_factor``."""
        position, more = replace(position, interleaved=True), 1.0
        if isinstance(position.scaling, YaRN):
            factor, scale = position.scaling.factor, position.scaling.magnitude
            tenth = fields.number("rope.scaling.yarn_log_multiplier", 0.0, low=-1.0)
            all_dims = sharpening(factor, float(f"{10 * tenth:.7g}"))
            angles = scale / all_dims if self.by_all_dims or not tenth else scale / sharpening(factor)
            more = (scale if self.by_all_dims or not tenth else angles * all_dims) ** 2
            position = replace(position, scaling=replace(position.scaling, attention=angles))
        return {"rope": position, "sharper": more}

    def write(self, known: Settings, gguf: bool) -> Entries:
        entries, rope = super().write(known, gguf), known["rope"]
        if gguf and rope and isinstance(rope.scaling, Linear):
            raise UserError(
                "a linear scaling of latent attention is not supported in GGUF: llama.cpp scales scores"
            )
        if rope and isinstance(rope.scaling, YaRN):
            factor, sharper = rope.scaling.factor, math.sqrt(known["sharper"])
            if gguf:
                return entries | self._to_gguf(rope.scaling, sharper)
            own = {"mscale_all_dim": _all_dims(factor, sharper)} if sharper != 1 else {}
            if rope.scaling.attention is not None:
                own["attention_factor"] = rope.scaling.magnitude
            entries["rope_scaling"] |= own
        return entries

    def _to_gguf(self, scaling: YaRN, sharper: float) -> Entries:
        """The two numbers whose product scales scores, and one of which, or whose ratio, angles."""
        angles, usual = scaling.magnitude, sharpening(scaling.factor)
        all_dims = _all_dims(scaling.factor, sharper / angles)
        scale = sharper / usual if self.by_all_dims or not all_dims else angles
        found = {"rope.scaling.yarn_log_multiplier": 0.1 * all_dims}
        return found | {"rope.scaling.attn_factor": scale}


def _all_dims(factor: float, sharper: float) -> float:
    """The ``mscale_all_dim`` that sharpens so."""
    if factor <= 1 and sharper != 1:
        raise UserError("YaRN that scales scores and no positions is not supported")
    return (sharper - 1) / (0.1 * math.log(factor)) if factor > 1 else 0.0


def latent(known: Settings, kind: str = "mla", **more: Any) -> Any:
    """The mixer of these settings."""
    size = known["key_size"] + known["head_size"]
    return mixer(
        kind,
        heads=known["heads"],
        key_size=known["key_size"],
        rope_dim=known["head_size"],
        latent=known["latent"],
        value_size=known["value_size"],
        query_latent=known["query_latent"],
        position=known["rope"],
        norm=Norm("rms", known["latent_eps"]),
        scale=None if known["sharper"] == 1.0 else size**-0.5 * known["sharper"],
        **more,
    )


def decoder(known: Settings, of: Any = None) -> Decoder:
    """The decoder of these settings, with the mixer ``of`` if it is another."""
    mixers = (of or latent(known),) * known["layers"]
    return decoders.decoder(known | {"kv_heads": known["heads"], "bias": False, "mixers": mixers})


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    of = config.blocks[0].attention
    size = of.key_size + of.rope_dim
    known = {name: getattr(of, name) for name in ("heads", "key_size", "latent", "query_latent")}
    known |= {"value_size": of.values, "head_size": of.rope_dim, "kv_heads": of.heads}
    known |= {"interleaved": of.position is not None and of.position.interleaved}
    known |= {"latent_eps": of.norm.eps if of.norm else None}
    return decoders.settings(config) | known | {"sharper": 1.0 if of.scale is None else of.scale * size**0.5}


def with_eps(config: Decoder, tensors: Tensors, eps: float) -> tuple[Decoder, Tensors, str]:
    """The same function, with this eps in the norms of latents.

    x / sqrt(x² + a) is c x / sqrt((c x)² + b) with c = sqrt(b / a), which the matrices before the norm take.
    """
    blocks, heads, factors = list(config.blocks), list(config.mtp), {}
    for of_all, path in ((blocks, "blocks.{}"), (heads, "mtp.{}.block")):
        for n, block in enumerate(of_all):
            of = block.attention
            if getattr(of, "latent", None) is None or of.norm is None or of.norm.eps == eps:
                continue
            factor = math.sqrt(eps / of.norm.eps)
            rotated = np.ones((of.rope_dim, 1), np.float32)  # which is not normed
            latent = np.full((of.latent, 1), factor, np.float32)
            factors[f"{path.format(n)}.attention.down.weight"] = np.concatenate([latent, rotated])
            factors[f"{path.format(n)}.attention.query_down.weight"] = factor
            of_all[n] = replace(block, attention=replace(of, norm=replace(of.norm, eps=eps)))
    note = f"matrices before norms of latents are multiplied, so that the norms' eps is {eps:g}"
    changed = replace(config, blocks=tuple(blocks), mtp=tuple(heads))
    return changed, multiplied(tensors, factors), note


def folded(config: Decoder, tensors: Tensors) -> tuple[Decoder, Tensors, str]:
    """llama.cpp norms latents by the eps of all other norms."""
    return with_eps(config, tensors, config.blocks[0].norm.eps)


def unfolded(config: Decoder, tensors: Tensors) -> tuple[Decoder, Tensors, str]:
    """Transformers norms latents by 1e-6, whatever the others' eps is."""
    return with_eps(config, tensors, EPS)


class HeadSizes(Row):
    """In GGUF keys are measured with the part that rotates; the cache is one head, whose value is the latent.

    Files whose keys and values are in one matrix have the sizes of a head where others have the cache's.
    """

    name = "head_sizes"

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if not fields.gguf:
            return {}
        end = "" if "blk.0.attn_kv_b.weight" in fields.tensors else "_mla"
        if end:
            row = known["latent"] + known["head_size"]
            fields.only(
                "attention.key_length", (row,), "a cache of another size than latent and rotated part"
            )
            fields.only("attention.value_length", (known["latent"],), "a cached value other than the latent")
        size = fields.integer(f"attention.key_length{end}") - known["head_size"]
        if size < 1:
            why = f"should be more than the {known['head_size']} that rotate"
            raise fields.refusal(f"attention.key_length{end}", why)
        return {"key_size": size, "value_size": fields.integer(f"attention.value_length{end}")}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if not gguf:
            return {}
        return {
            "attention.head_count_kv": 1,
            "attention.key_length": known["latent"] + known["head_size"],
            "attention.value_length": known["latent"],
            "attention.key_length_mla": known["key_size"] + known["head_size"],
            "attention.value_length_mla": known["value_size"],
        }


LATENT_OR_NONE = Kind(lambda fields, key: fields.integer(key, low=0) or None)


class QueryLatent(Field):
    """GGUF has 0 where queries come straight out of x."""

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {str(self.gguf): known["query_latent"] or 0} if gguf else super().write(known, gguf)


def softmax_scored(fields: Fields) -> str | None:
    """GGUF has one architecture for DeepSeek-V2 and V3."""
    scored = fields.get("deepseek2.expert_gating_func")
    return "deepseek_v2" if fields.has("general.architecture") and scored != 2 else None


SIZES = (
    Field("interleaved", "rope_interleave", None, FLAG),
    *rows.replaced(rows.turning(rows.SIZES), Field("head_size", "qk_rope_head_dim", "rope.dimension_count")),
    Field("key_size", "qk_nope_head_dim", None),
    Field("value_size", "v_head_dim", None),
    Field("latent", "kv_lora_rank", "attention.kv_lora_rank"),
    QueryLatent("query_latent", "q_lora_rank", "attention.q_lora_rank", LATENT_OR_NONE, missing=None),
    HeadSizes(),
)
EXPERTS = rows.experts("n_routed_experts", rows.EXPERT_HIDDEN, "num_local_experts")[:3]
PLAIN = (*naming.renamed(naming.HF_DECODER, without=("self_attn",)), *HF_LATENT, *naming.HF_DEEPSEEK_EXPERTS)
FAMILY = llama.FAMILY.but(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    hf=mtp.after(PLAIN),
    gguf=mtp.in_gguf(GGUF_MIXTURE),
    gguf_joined=mtp.in_gguf((*(rule for rule in GGUF_MIXTURE if rule not in SPLIT), JOINED)),
    architecture="deepseek2",
    rows=(
        *rows.replaced(SIZES, Rope()),
        *rows.DENSE[:1],
        *EXPERTS,
        rows.SigmoidScores(),
        Field("groups", "n_group", "expert_group_count", missing=1),
        Field("top_groups", "topk_group", "expert_group_used_count", missing=1),
        Field("normalised", "norm_topk_prob", "expert_weights_norm", FLAG, missing=False),
        Field("routed_scale", "routed_scaling_factor", "expert_weights_scale", NUMBER, missing=1.0),
        rows.SharedExperts(),
        rows.FirstDense(usual=3),
        mtp.Heads("num_nextn_predict_layers", "num_mtp_layers"),
        Only("attention_bias", None, (False,), "a bias in latent attention"),
        Only("scoring_func", None, ("sigmoid",), "another score of experts"),
        Only("topk_method", None, ("noaux_tc",), "another choice of experts"),
        Only("moe_layer_freq", None, (1,), "dense layers between sparse ones"),
    ),
    build=decoder,
    describe=settings,
    defaults={"context": 4096, "head_size": 64, "key_size": 128, "value_size": 128, "latent": 512}
    | {"query_latent": 1536, "interleaved": True, "shared": 1, "routed_scale": 2.5, "normalised": True}
    | {"experts": 256, "top_k": 8, "expert_hidden": 2048, "groups": 8, "top_groups": 4},
    nulls={"query_latent": None},
    forget=("head_size",),
    fixed=rows.SIGMOID | {"latent_eps": EPS},
    gguf_fixed={"interleaved": True, "latent_eps": lambda known: known["eps"]},
    ignored_gguf=(),
    folded=folded,
    unfolded=unfolded,
    sparse=True,
    instead=softmax_scored,
    mixers=("mla",),
    harmless=(
        "qk_head_dim",
        "head_dim",
        "ep_size",
        "seq_aux",
        "aux_loss_alpha",
    ),
    ignored_hf=("model.layers.{layers}.*", "model.layers.*.self_attn.rotary_emb.inv_freq"),
)
