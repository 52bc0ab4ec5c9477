"""MPT (MosaicML, 2023): ALiBi for positions, layer norms without biases, no biases at all.

Transformers computes one architecture whatever a config says; keys that ask for another are refused.
"""

from cutaway.position import alibi
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families.gpt2 import hidden
from cutaway.weights.family import (
    HARMLESS_HF,
    LAYER_COUNT,
    NUMBER,
    Entries,
    Family,
    Field,
    FolderRow,
    Only,
    Present,
    Row,
    Settings,
    shared,
)
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import split

LAYER = "transformer.blocks.{n}"
BIAS = 8  # the largest of ALiBi, by which its factors are made
ONLY = (
    Only("attn_type", None, ("multihead_attention",), "another kind of attention"),
    Only("alibi", None, (True,), "a model without ALiBi"),
    Only("alibi_bias_max", None, (BIAS,), "another largest bias of ALiBi"),
    Only("qk_ln", None, (False,), "norms of queries and keys"),
    Only("prefix_lm", None, (False,), "attention to later tokens"),
)
HARMLESS = ("attn_impl", "attn_uses_sequence_id", "is_encoder_decoder")


class Attention(FolderRow):
    """The settings of attention, which are entries of one key."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        given = fields.section("attn_config") or Fields({}, fields.where)
        for row in ONLY:
            row.read(given, known, own)
        clip, scale = given.number("clip_qkv", None, -1.0), given.number("softmax_scale", None)
        given.finish((*HARMLESS_HF, *HARMLESS), "MPT's attention has")
        return {"clip": clip or None, "scale": scale}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"attn_config": {"alibi": True, "clip_qkv": known["clip"], "softmax_scale": known["scale"]}}


class Bias(Row):
    """llama.cpp asks for the largest bias of ALiBi."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            fields.only("attention.max_alibi_bias", (float(BIAS),), "another largest bias of ALiBi")
        return {}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"attention.max_alibi_bias": float(BIAS)} if gguf else {}


FAMILY = Family(
    "mpt",
    "MptForCausalLM",
    hf=(
        *naming.weights(
            ("transformer.wte", "embedding"),
            ("lm_head", "head"),
            ("transformer.norm_f", "norm"),
            (f"{LAYER}.norm_1", "blocks.{n}.attention_norm"),
            (f"{LAYER}.norm_2", "blocks.{n}.mlp_norm"),
            (f"{LAYER}.attn.out_proj", "blocks.{n}.attention.out"),
            (f"{LAYER}.ffn.up_proj", "blocks.{n}.mlp.up"),
            (f"{LAYER}.ffn.down_proj", "blocks.{n}.mlp.down"),
        ),
        Rule(f"{LAYER}.attn.Wqkv.weight", naming.query_key_value("weight"), split),
    ),
    gguf=(
        *naming.GGUF_EMBEDDINGS,
        *naming.GGUF_NORMS,
        *naming.weights(naming.GGUF_OUT, *naming.GGUF_MLP[1:]),
        Rule("blk.{n}.attn_qkv.weight", naming.query_key_value("weight"), split),
    ),
    rows=(
        Field("layers", "n_layers", "block_count", LAYER_COUNT, alias="num_hidden_layers"),
        rows.Vocab("vocab", "vocab_size", "vocab_size"),
        Field("width", "d_model", "embedding_length", alias="hidden_size"),
        Field("context", "max_seq_len", "context_length"),
        Field("heads", "n_heads", "attention.head_count", alias="num_attention_heads", each_layer=True),
        Field("kv_heads", None, "attention.head_count_kv", missing=rows.same_heads),
        Field("hidden", None, "feed_forward_length", each_layer=True),
        Field("eps", "layer_norm_epsilon", "attention.layer_norm_epsilon", NUMBER),
        Present("tied", "tie_word_embeddings", "output.weight", absent=True),
        Attention(),
        Field("clip", None, "attention.clamp_kqv", NUMBER, missing=None),
        Only("expansion_ratio", None, (4,), "an MLP of another width than four times the model's"),
        Only("no_bias", None, (True,), "biases"),
        Only("norm_type", None, ("low_precision_layernorm", "layernorm"), "another norm"),
        Only("logit_scale", None, (None,), "scaled logits"),
        Only("embedding_fraction", None, (1.0, 1), "scaled gradients"),
        Bias(),
        *rows.ONE_MLP,
        *rows.CAUSAL,
    ),
    build=decoders.decoder,
    describe=decoders.settings,
    defaults={"vocab": 50368, "width": 2048, "context": 2048, "layers": 24, "heads": 16, "eps": 1e-5}
    | {"tied": True, "hidden": hidden, "kv_heads": rows.same_heads},
    fixed={"head_size": shared, "rope": None, "norm": "layer", "norm_bias": False, "activation": "gelu"}
    | {"gated": False, "relative": alibi.Config()},
    gguf_fixed={"kv_heads": rows.same_heads, "hidden": hidden},
    prefix="transformer.",
    harmless=("learned_pos_emb", "init_device", "init_config", "resid_pdrop", "emb_pdrop", "verbose"),
    ignored_hf=(),
)
