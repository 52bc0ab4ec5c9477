"""OPT (2205.01068): learned positions of which the first two are never used, layer norms, ReLU, biases.

The smallest but one, with norms after each half and a narrower embedding, is refused.
"""

from cutaway.model.config import Decoder, Encoder
from cutaway.position import learned
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families import xglm
from cutaway.weights.family import FLAG, LAYER_COUNT, Family, Field, Only, Present, Row, Settings, shared
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

UNUSED = 2
SIZES = (
    Field("layers", "num_hidden_layers", None, LAYER_COUNT),
    rows.Vocab("vocab", "vocab_size", None),
    Field("width", "hidden_size", None),
    Field("context", "max_position_embeddings", None),
    Field("heads", "num_attention_heads", None),
)


class Projection(Row):
    """The width of the embedding, which must be the model's."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        meaning = "an embedding of another width than the blocks"
        fields.only("word_embed_proj_dim", (known["width"], None), meaning)
        return {}

    def write(self, known: Settings, gguf: bool) -> Settings:
        return {"word_embed_proj_dim": known["width"]}


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    return decoders.settings(config) | {"norm_weight": config.norm.weight}


FAMILY = Family(
    "opt",
    "OPTForCausalLM",
    bypassed=("embed_positions",),
    hf=(
        Rule("model.decoder.embed_positions.weight", "position.weight", same),
        *naming.renamed(
            naming.pairs(
                ("model.embed_tokens", "embedding"),
                ("lm_head", "head"),
                ("model.final_layer_norm", "norm"),
                *xglm.BLOCK,
            ),
            ("model.", "model.decoder."),
        ),
    ),
    gguf=(),
    rows=(
        *SIZES,
        Field("hidden", "ffn_dim", None),
        Field("activation", "activation_function", None, rows.ACTIVATION),
        Field("norm_weight", "layer_norm_elementwise_affine", None, FLAG),
        *(Field(name, "enable_bias", None, FLAG) for name in ("bias", "out_bias", "mlp_bias")),
        Present("tied", "tie_word_embeddings", "output.weight", absent=True),
        Projection(),
        Only("do_layer_norm_before", None, (True,), "a norm after each half"),
        Only("_remove_final_layer_norm", None, (False,), "a model without its last norm"),
        *rows.CAUSAL,
    ),
    build=decoders.decoder,
    describe=settings,
    defaults={"vocab": 50272, "width": 768, "layers": 12, "heads": 12, "hidden": 3072, "context": 2048}
    | {"activation": "relu", "norm_weight": True, "bias": True, "out_bias": True, "mlp_bias": True}
    | {"tied": True},
    fixed={"head_size": shared, "kv_heads": rows.same_heads, "rope": None, "norm": "layer", "eps": 1e-5}
    | {"gated": False, "position": lambda known: learned.Config(known["context"], UNUSED)},
    harmless=("dropout", "layerdrop", "init_std"),
    ignored_hf=(),
)
