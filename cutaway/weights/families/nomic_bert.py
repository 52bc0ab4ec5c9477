"""Nomic BERT (2402.01613), as nomic-embed-text: BERT that rotates, with SwiGLU and no biases.

Published folders have the keys of GPT-2's configs and those of FlashAttention's models.
"""

from cutaway.model.config import Encoder
from cutaway.weights import decoders, naming, rotary, rows
from cutaway.weights.classifier_head import Head
from cutaway.weights.families import bert
from cutaway.weights.family import FLAG, LAYER_COUNT, NUMBER, Family, Field, Only, Settings, shared
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same, split

ALIASES = ("nomic-bert",)
LAYER, OURS = "nomic_bert.encoder.layers.{n}", "blocks.{n}"
OLD_KEYS = (
    Only("activation_function", None, ("swiglu",), "another MLP than SwiGLU"),
    Only("rotary_emb_base", None, (1000, 1000.0), "another rotary base by this key"),
    Only("rotary_emb_fraction", None, (1, 1.0), "partial rotary position embedding"),
    Only("rotary_emb_scale_base", None, (None,), "XPos"),
    Only("rotary_scaling_factor", None, (None,), "a scaling of its rotary positions"),
    Only("scale_attn_weights", None, (True,), "scores that are not scaled"),
    Only("use_rms_norm", None, (False, None), "RMS norms"),
    *(
        Only(key, None, (False,), "another block than that of nomic-embed-text")
        for key in (
            *("prenorm", "parallel_block", "parallel_block_tied_norm", "rotary_emb_interleaved", "causal"),
            *("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "scale_attn_by_inverse_layer_idx"),
        )
    ),
)


def encoder(known: Settings) -> Encoder:
    """The encoder of these settings."""
    return bert.encoder(known | {"learned": False, "gated": True, "bias": False, "mlp_bias": False})


def of_hf() -> tuple[Rule, ...]:
    """Published names, which transformers writes too."""
    return (
        *naming.renamed(bert.HF[:1], ("bert.", "nomic_bert.")),
        *naming.renamed(bert.HF[2:3], ("bert.", "nomic_bert.")),
        *naming.pairs(
            ("nomic_bert.emb_ln", "norm"),
            (f"{LAYER}.norm1", f"{OURS}.attention_norm"),
            (f"{LAYER}.norm2", f"{OURS}.mlp_norm"),
        ),
        *naming.weights(
            (f"{LAYER}.attn.out_proj", f"{OURS}.attention.out"),
            (f"{LAYER}.mlp.fc11", f"{OURS}.mlp.up"),
            (f"{LAYER}.mlp.fc12", f"{OURS}.mlp.gate"),
            (f"{LAYER}.mlp.fc2", f"{OURS}.mlp.down"),
        ),
        Rule(f"{LAYER}.attn.Wqkv.weight", naming.query_key_value("weight"), split),
    )


FAMILY = Family(
    "nomic_bert",
    "NomicBertModel",
    modules=(
        *naming.query_key_value_apart("nomic_bert."),
        (".emb_ln.", ".embeddings.LayerNorm."),
        (".encoder.layers.", ".layers."),
        (".attn.out_proj.", ".self_attn.o_proj."),
        (".mlp.fc11.", ".mlp.up_proj."),
        (".mlp.fc12.", ".mlp.gate_proj."),
        (".mlp.fc2.", ".mlp.down_proj."),
        (".norm1.", ".post_attention_layernorm."),
        (".norm2.", ".post_mlp_layernorm."),
    ),
    hf=of_hf(),
    gguf=(
        Rule("token_embd.weight", "embedding.weight", same),
        Rule("token_types.weight", "segment.weight", same),
        *naming.pairs(
            ("token_embd_norm", "norm"),
            ("blk.{n}.attn_output_norm", "blocks.{n}.attention_norm"),
            ("blk.{n}.layer_output_norm", "blocks.{n}.mlp_norm"),
        ),
        *naming.weights(naming.GGUF_OUT, *naming.GGUF_MLP),
        Rule("blk.{n}.attn_qkv.weight", naming.query_key_value("weight"), split),
    ),
    rows=(
        Field("layers", "num_hidden_layers", "block_count", LAYER_COUNT, alias="n_layer"),
        rows.Vocab("vocab", "vocab_size", "vocab_size"),
        Field("width", "hidden_size", "embedding_length", alias="n_embd"),
        Field("context", "max_position_embeddings", "context_length", alias="n_positions"),
        bert.Segments("segments", "type_vocab_size", None),
        Field("heads", "num_attention_heads", "attention.head_count", each_layer=True, alias="n_head"),
        Field("kv_heads", None, "attention.head_count_kv"),
        Field("head_size", "head_dim", None),
        Field("hidden", "intermediate_size", "feed_forward_length", each_layer=True, alias="n_inner"),
        Field("eps", "layer_norm_eps", "attention.layer_norm_epsilon", NUMBER, alias="layer_norm_epsilon"),
        Field("activation", "hidden_act", None, rows.ACTIVATION),
        Field("causal", None, "attention.causal", FLAG),
        rotary.Rope(),
        *OLD_KEYS,
        *rows.ONE_MLP,
        *rows.ANY,
    ),
    build=encoder,
    describe=decoders.settings,
    defaults={"vocab": 30528, "width": 768, "hidden": 3072, "layers": 12, "heads": 12, "context": 2048}
    | {"segments": 2, "eps": 1e-12, "activation": "silu", "head_size": shared, "rope_base": 1000.0},
    nulls={"head_size": shared},
    gguf_fixed={"activation": "silu", "causal": False, "kv_heads": rows.same_heads, "head_size": shared},
    architecture="nomic-bert",
    config=Encoder,
    whole_ids=("pad_token_id",),
    head=Head(),
    prefix="nomic_bert.",
    harmless=(
        *(
            "max_trained_positions",
            "dense_seq_output",
            "fused_*",
            "pad_vocab_size_multiple",
            "use_flash_attn",
        ),
        *("use_xentropy", "last_layer_subset", "tie_word_embeddings"),
    ),
    ignored_hf=("nomic_bert.pooler.*", "cls.*", "lm_head.*", "classifier.*"),
    ignored_gguf=("cls.*",),
)
