"""BLOOM (2211.05100): ALiBi for positions, a layer norm after the embedding, biases everywhere."""

from cutaway.layers.config import Norm
from cutaway.position import alibi
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families.gpt2 import hidden
from cutaway.weights.family import LAYER_COUNT, NUMBER, Family, Field, Only, Present, Settings, shared
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import beside

HARMLESS = (
    "slow_but_exact",
    "skip_bias_add*",
    "*_softmax_*",
    "bias_dropout_fusion",
    "offset_alibi",
    "n_inner",
)
LAYER = "transformer.h.{n}"


def norm(known: Settings) -> Norm:
    """The norm after the embedding."""
    return Norm("layer", known["eps"])


FAMILY = Family(
    "bloom",
    "BloomForCausalLM",
    hf=(
        *naming.pairs(
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
                naming.query_key_value(part),
                beside("heads"),
            )
            for part in ("weight", "bias")
        ),
    ),
    gguf=(*naming.pairs(("token_embd_norm", "embedding_norm")), *naming.GGUF_BIASED_QKV),
    rows=(
        Field("layers", "n_layer", "block_count", LAYER_COUNT, alias="num_hidden_layers"),
        rows.Vocab("vocab", "vocab_size", "vocab_size"),
        Field("width", "hidden_size", "embedding_length", alias="n_embed"),
        Field("heads", "n_head", "attention.head_count", alias="num_attention_heads", each_layer=True),
        Field("kv_heads", None, "attention.head_count_kv", missing=rows.same_heads),
        Field("hidden", None, "feed_forward_length", each_layer=True),
        Field("context", "seq_length", "context_length"),
        Field("eps", "layer_norm_epsilon", "attention.layer_norm_epsilon", NUMBER),
        Present("tied", "tie_word_embeddings", "output.weight", absent=True),
        Only("apply_residual_connection_post_layernorm", None, (False,), "a residual after the norm"),
        *rows.ONE_MLP,
        *rows.CAUSAL,
    ),
    build=decoders.decoder,
    describe=decoders.settings,
    defaults={"context": 2048, "eps": 1e-5, "tied": True, "hidden": hidden, "kv_heads": rows.same_heads},
    fixed={"head_size": shared, "rope": None, "norm": "layer", "activation": "gelu_tanh", "gated": False}
    | {"bias": True, "out_bias": True, "mlp_bias": True, "relative": alibi.Config(), "embedding_norm": norm},
    gguf_fixed={"kv_heads": rows.same_heads},
    prefix="transformer.",
    harmless=HARMLESS,
    ignored_hf=(),
)
