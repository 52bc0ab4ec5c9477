"""GPT-NeoX Japanese (ABEJA, 2022): no bias but one of the last layer, whole heads rotated."""

from dataclasses import replace

from cutaway.model.config import Decoder, Encoder
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families import gpt_neox, llama
from cutaway.weights.family import NUMBER, Entries, Family, Field, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import beside, same

LAYER = "gpt_neox_japanese.layers.{n}.attention"


class Hidden(Row):
    """The MLP is so many times as wide as the model."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        times = fields.integer("intermediate_multiple_size", 4)
        return {"hidden": times * known["width"]}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"intermediate_multiple_size": known["hidden"] // known["width"]}


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings: the last layer's output matrix alone has a bias."""
    made = decoders.decoder(known)
    *others, last = made.blocks
    return replace(made, blocks=(*others, replace(last, attention=replace(last.attention, out_bias=True))))


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    return decoders.settings(config) | {"out_bias": False}


FAMILY = llama.FAMILY.but(
    "gpt_neox_japanese",
    "GPTNeoXJapaneseForCausalLM",
    hf=(
        *naming.renamed(
            naming.HF_DECODER,
            ("model.embed_tokens", "gpt_neox_japanese.embed_in"),
            ("lm_head", "embed_out"),
            ("model.norm", "gpt_neox_japanese.final_layer_norm"),
            ("model.layers", "gpt_neox_japanese.layers"),
            ("up_proj", "dense_h_to_4h"),
            ("down_proj", "dense_4h_to_h"),
            without=("self_attn",),
        ),
        Rule(f"{LAYER}.dense.weight", "blocks.{n}.attention.out.weight", same),
        Rule(f"{LAYER}.dense_bias", "blocks.{n}.attention.out.bias", same),
        Rule(f"{LAYER}.query_key_value.weight", naming.query_key_value("weight"), beside("heads")),
    ),
    gguf=(),
    rows=(
        *rows.replaced(
            rows.SIZES,
            gpt_neox.Rope(part=1.0),
            Field("eps", "layer_norm_eps", None, NUMBER),
            Field("kv_heads", None, None),
            Field("head_size", None, None),
        ),
        Hidden(),
    ),
    build=decoder,
    describe=settings,
    defaults={"vocab": 32000, "width": 2560, "layers": 32, "heads": 32, "eps": 1e-5, "activation": "gelu"}
    | {"tied": True},
    fixed={"norm": "layer", "gated": False, "bias": False, "out_bias": False, "mlp_bias": False},
    prefix="gpt_neox_japanese.",
    harmless=("num_key_value_heads",),
    ignored_hf=("gpt_neox_japanese.layers.*.attention.rotary_emb.inv_freq",),
)
