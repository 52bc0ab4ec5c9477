"""GPT-NeoX (2204.06745) and Pythia (2304.01373): attention and MLP side by side, each behind its norm.

Query, key and value of a head are side by side in one matrix.
"""

from dataclasses import replace

from cutaway.position import rope
from cutaway.weights import naming, rotary, rows
from cutaway.weights.families import llama
from cutaway.weights.family import FLAG, NUMBER, Entries, Family, Field, Settings, shared
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import beside

LAYER = "gpt_neox.layers.{n}"


class Rope(rotary.Rope):
    """Its config has names of its own for the base and for the part that rotates."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return super().read(fields, known, own)
        older, newer = fields.section("rope_scaling"), fields.section("rope_parameters")
        base, part = own.defaults["rope_base"], self.part
        if fields.stated("rotary_emb_base"):  # null is refused, as transformers refuses it
            base = fields.number("rotary_emb_base", low=1.0)
        if fields.stated("rotary_pct"):
            part = fields.number("rotary_pct", high=1.0)
        return {"rope": replace(self, part=part).of(older if older and older.data else newer, known, base)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            return super().write(known, gguf)
        position = known["rope"] or rope.Config(2)
        own = {"rotary_emb_base": position.base, "rotary_pct": rotary.part_of(position, known)}
        return own | {"rope_scaling": rotary.hf_scaling(position)}


FAMILY = llama.FAMILY.but(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    modules=(("embed_out.", "lm_head."),),
    hf=(
        *naming.renamed(
            naming.HF_DECODER,
            ("model.embed_tokens", "gpt_neox.embed_in"),
            ("lm_head", "embed_out"),
            ("model.norm", "gpt_neox.final_layer_norm"),
            ("model.layers", "gpt_neox.layers"),
            ("self_attn.o_proj", "attention.dense"),
            ("up_proj", "dense_h_to_4h"),
            ("down_proj", "dense_4h_to_h"),
            without=("q_proj", "k_proj", "v_proj"),
        ),
        *(
            Rule(f"{LAYER}.attention.query_key_value.{part}", naming.query_key_value(part), beside("heads"))
            for part in ("weight", "bias")
        ),
    ),
    gguf=naming.GGUF_BIASED_QKV,
    rows=(
        *rows.replaced(
            rows.SIZES,
            Rope(part=0.25),
            Field("eps", "layer_norm_eps", "attention.layer_norm_epsilon", NUMBER),
            Field("kv_heads", None, "attention.head_count_kv"),
            Field("head_size", None, None),
        ),
        *rows.DENSE,
        *rows.biases("attention_bias"),
        Field("side_by_side", "use_parallel_residual", "use_parallel_residual", FLAG),
    ),
    defaults={"eps": 1e-5, "activation": "gelu", "bias": True, "out_bias": True, "side_by_side": True},
    fixed={"norm": "layer", "gated": False, "mlp_bias": True}
    | {"parallel": lambda known: "own" if known["side_by_side"] else None},
    gguf_fixed={"kv_heads": rows.same_heads, "head_size": shared, "activation": "gelu"}
    | {"bias": True, "out_bias": True, "tied": False},
    ignored_gguf=(),
    prefix="gpt_neox.",
    harmless=("num_key_value_heads",),
    ignored_hf=tuple(
        f"gpt_neox.layers.*.attention.{buffer}" for buffer in ("bias", "masked_bias", "rotary_emb.inv_freq")
    ),
)
