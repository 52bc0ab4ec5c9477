"""GPT-2: learned positions, layer norms, biases everywhere, and query, key and value in one matrix.

(Language Models are Unsupervised Multitask Learners, 2019.) Hugging Face stores its matrices [in out].
"""

from cutaway.position import learned
from cutaway.weights import decoders, naming, rows
from cutaway.weights.family import LAYER_COUNT, NUMBER, Family, Field, Only, Present, Settings, shared, words
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import chain, same, split, transpose

ALIASES = ("gpt-sw3",)

QUERY_KEY_VALUE = tuple(f"blocks.{{n}}.attention.{name}" for name in ("query", "key", "value"))
WEIGHTS = tuple(f"{name}.weight" for name in QUERY_KEY_VALUE)
BIASES = tuple(f"{name}.bias" for name in QUERY_KEY_VALUE)
WORDS = {**rows.HF_ACTIVATIONS, "gelu_tanh": "gelu_new"}
TRANSPOSED = {
    "transformer.h.{n}.attn.c_proj": "blocks.{n}.attention.out",
    "transformer.h.{n}.mlp.c_fc": "blocks.{n}.mlp.up",
    "transformer.h.{n}.mlp.c_proj": "blocks.{n}.mlp.down",
}
HF = (
    Rule("transformer.wte.weight", "embedding.weight", same),
    Rule("transformer.wpe.weight", "position.weight", same),
    *naming.pairs(
        ("transformer.h.{n}.ln_1", "blocks.{n}.attention_norm"),
        ("transformer.h.{n}.ln_2", "blocks.{n}.mlp_norm"),
        ("transformer.ln_f", "norm"),
    ),
    Rule("transformer.h.{n}.attn.c_attn.weight", WEIGHTS, chain(transpose, split)),
    Rule("transformer.h.{n}.attn.c_attn.bias", BIASES, split),
    *(Rule(f"{theirs}.weight", f"{ours}.weight", transpose) for theirs, ours in TRANSPOSED.items()),
    *(Rule(f"{theirs}.bias", f"{ours}.bias", same) for theirs, ours in TRANSPOSED.items()),
    Rule("lm_head.weight", "head.weight", same),
)
GGUF = (
    Rule("token_embd.weight", "embedding.weight", same),
    Rule("position_embd.weight", "position.weight", same),
    *naming.pairs(
        ("blk.{n}.attn_norm", "blocks.{n}.attention_norm"),
        ("blk.{n}.attn_output", "blocks.{n}.attention.out"),
        ("blk.{n}.ffn_norm", "blocks.{n}.mlp_norm"),
        ("blk.{n}.ffn_up", "blocks.{n}.mlp.up"),
        ("blk.{n}.ffn_down", "blocks.{n}.mlp.down"),
        ("output_norm", "norm"),
    ),
    Rule("blk.{n}.attn_qkv.weight", WEIGHTS, split),
    Rule("blk.{n}.attn_qkv.bias", BIASES, split),
    Rule("output.weight", "head.weight", same),
)


def hidden(known: Settings) -> int:
    """The width of the MLP that is not stated."""
    return 4 * known["width"]


FAMILY = Family(
    "gpt2",
    "GPT2LMHeadModel",
    hf=HF,
    gguf=GGUF,
    rows=(
        Field("layers", "n_layer", "block_count", LAYER_COUNT),
        rows.Vocab("vocab", "vocab_size", "vocab_size"),
        Field("width", "n_embd", "embedding_length"),
        Field("context", "n_positions", "context_length"),
        Field("heads", "n_head", "attention.head_count", each_layer=True),
        Field("kv_heads", None, "attention.head_count_kv"),
        Field("hidden", "n_inner", "feed_forward_length", each_layer=True),
        Field("eps", "layer_norm_epsilon", "attention.layer_norm_epsilon", NUMBER),
        Field("activation", "activation_function", None, words(rows.ACTIVATIONS, WORDS)),
        Present("tied", "tie_word_embeddings", "output.weight", absent=True),
        Only("scale_attn_weights", None, (True,), "attention that is not scaled"),
        Only("scale_attn_by_inverse_layer_idx", None, (False,), "attention scaled by its layer"),
        *rows.ONE_MLP,
        *rows.CAUSAL,
    ),
    build=decoders.decoder,
    describe=decoders.settings,
    defaults={"vocab": 50257, "width": 768, "context": 1024, "layers": 12, "heads": 12, "eps": 1e-5}
    | {"tied": True, "hidden": hidden, "activation": "gelu_tanh"},
    nulls={"hidden": hidden},
    fixed={"head_size": shared, "rope": None, "norm": "layer", "gated": False, "kv_heads": rows.same_heads}
    | {"bias": True, "out_bias": True, "mlp_bias": True}
    | {"position": lambda known: learned.Config(known["context"])},
    gguf_fixed={"activation": "gelu_tanh", "kv_heads": rows.same_heads},
    prefix="transformer.",
    harmless=("n_ctx",),
    ignored_hf=("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias"),
)
