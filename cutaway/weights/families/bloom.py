"""BLOOM (2211.05100): ALiBi for positions, a layer norm after the embedding, biases everywhere."""

from cutaway.layers.config import Norm
from cutaway.position import alibi
from cutaway.weights import common
from cutaway.weights.family import LAYER_COUNT, NUMBER, Family, Field, Only, Present, Settings, shared
from cutaway.weights.rules import Rule, beside

HARMLESS = (
    "slow_but_exact",
    "skip_bias_add*",
    "*_softmax_*",
    "bias_dropout_fusion",
    "offset_alibi",
    "n_inner",
)
LAYER = "transformer.h.{n}"
QUERY_KEY_VALUE = f"{LAYER}.self_attention.query_key_value"


def norm(known: Settings) -> Norm:
    """Of the embedding."""
    return Norm("layer", known["eps"])


FAMILY = Family(
    "bloom",
    "BloomForCausalLM",
    hf=(
        *common.pairs(
            ("transformer.word_embeddings", "embedding"),
            ("transformer.word_embeddings_layernorm", "embedding_norm"),
            (f"{LAYER}.input_layernorm", "blocks.{n}.attention_norm"),
            (f"{LAYER}.self_attention.dense", "blocks.{n}.attention.out"),
            (f"{LAYER}.post_attention_layernorm", "blocks.{n}.mlp_norm"),
            (f"{LAYER}.mlp.dense_h_to_4h", "blocks.{n}.mlp.up"),
            (f"{LAYER}.mlp.dense_4h_to_h", "blocks.{n}.mlp.down"),
            ("transformer.ln_f", "norm"),
            ("lm_head", "head"),
        ),
        *(
            Rule(
                f"{LAYER}.self_attention.query_key_value.{part}",
                common.query_key_value(part),
                beside("heads"),
            )
            for part in ("weight", "bias")
        ),
    ),
    gguf=(),
    rows=(
        Field("layers", "n_layer", None, LAYER_COUNT, alias="num_hidden_layers"),
        common.Vocab("vocab", "vocab_size", None),
        Field("width", "hidden_size", None, alias="n_embed"),
        Field("heads", "n_head", None, alias="num_attention_heads"),
        Field("context", "seq_length", None),
        Field("eps", "layer_norm_epsilon", None, NUMBER),
        Present("tied", "tie_word_embeddings", "output.weight", absent=True),
        Only("apply_residual_connection_post_layernorm", None, (False,), "a residual after the norm"),
        *common.CAUSAL,
    ),
    build=common.decoder,
    describe=common.settings,
    defaults={"context": 2048, "eps": 1e-5, "tied": True},
    fixed={"head_size": shared, "kv_heads": common.same_heads, "rope": None, "norm": "layer"}
    | {"hidden": lambda known: 4 * known["width"], "activation": "gelu_tanh", "gated": False}
    | {"bias": True, "out_bias": True, "mlp_bias": True, "relative": alibi.Config(), "embedding_norm": norm},
    prefix="transformer.",
    harmless=HARMLESS,
    ignored_hf=(),
)
