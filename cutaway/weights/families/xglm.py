"""XGLM (2112.10668): sinusoids added to scaled embeddings, layer norms, biases everywhere.

Transformers numbers positions from 2 on, and has zeros at the padding token's number, which must be lower.
"""

from cutaway.position import sinusoidal
from cutaway.weights import decoders, naming, rows
from cutaway.weights.family import LAYER_COUNT, Entries, Family, Field, Only, Present, Row, Settings, shared
from cutaway.weights.fields import Fields

OFFSET, BASE = 2, 10_000.0
LAYER = "model.layers.{n}"


class Scale(Row):
    """Whether embeddings are multiplied by the root of the width."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        scaled = fields.flag("scale_embedding") if fields.stated("scale_embedding") else True
        return {"embedding_scale": known["width"] ** 0.5 if scaled else 1.0}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"scale_embedding": known["embedding_scale"] != 1.0}


class Padding(Row):
    """The padding token's number, at which transformers has no sinusoid."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        pad = fields.get("pad_token_id")
        if isinstance(pad, int) and pad >= OFFSET:
            raise fields.refusal("pad_token_id", f"is {pad}: it must be below {OFFSET}, the first position")
        return {}


def positions(known: Settings) -> sinusoidal.Config:
    """Sines of exponents i / (width / 2 - 1), then cosines."""
    half = known["width"] / 2
    return sinusoidal.Config(BASE ** (half / max(half - 1, 1)), interleaved=False, offset=OFFSET)


BLOCK = (
    (f"{LAYER}.self_attn.q_proj", "blocks.{n}.attention.query"),
    (f"{LAYER}.self_attn.k_proj", "blocks.{n}.attention.key"),
    (f"{LAYER}.self_attn.v_proj", "blocks.{n}.attention.value"),
    (f"{LAYER}.self_attn.out_proj", "blocks.{n}.attention.out"),
    (f"{LAYER}.self_attn_layer_norm", "blocks.{n}.attention_norm"),
    (f"{LAYER}.fc1", "blocks.{n}.mlp.up"),
    (f"{LAYER}.fc2", "blocks.{n}.mlp.down"),
    (f"{LAYER}.final_layer_norm", "blocks.{n}.mlp_norm"),
)

FAMILY = Family(
    "xglm",
    "XGLMForCausalLM",
    hf=naming.pairs(
        ("model.embed_tokens", "embedding"), ("lm_head", "head"), ("model.layer_norm", "norm"), *BLOCK
    ),
    gguf=(),
    rows=(
        Field("layers", "num_layers", None, LAYER_COUNT, alias="num_hidden_layers"),
        rows.Vocab("vocab", "vocab_size", None),
        Field("width", "d_model", None, alias="hidden_size"),
        Field("context", "max_position_embeddings", None),
        Field("heads", "attention_heads", None, alias="num_attention_heads"),
        Field("hidden", "ffn_dim", None),
        Field("activation", "activation_function", None, rows.ACTIVATION),
        Present("tied", "tie_word_embeddings", None, absent=True),
        Scale(),
        Padding(),
        Only("add_cross_attention", None, (False,), "cross-attention"),
        *rows.CAUSAL,
    ),
    build=decoders.decoder,
    describe=decoders.settings,
    defaults={"vocab": 256008, "context": 2048, "width": 1024, "hidden": 4096, "layers": 24, "heads": 16}
    | {"activation": "gelu", "tied": True},
    fixed={"head_size": shared, "kv_heads": rows.same_heads, "rope": None, "norm": "layer", "eps": 1e-5}
    | {"gated": False, "bias": True, "out_bias": True, "mlp_bias": True, "position": positions},
    harmless=("dropout", "activation_dropout", "layerdrop", "init_std"),
    ignored_hf=("model.embed_positions.weights",),
)
