"""BART (1910.13461): the encoder-decoder of 2017 with learned positions and a norm after the embeddings.

Each norm follows a sum, and none follows the last block; a bias is added to the logits. Where the head is not
the embedding table (``tie_word_embeddings``), neither half's table is the other's, as in transformers 5.
"""

from typing import Any

from cutaway.attention import bidirectional, mha
from cutaway.layers.config import MLP, Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder, EncoderDecoder
from cutaway.model.kinds import mixer
from cutaway.position import learned
from cutaway.weights import naming, rows
from cutaway.weights.family import FLAG, LAYER_COUNT, Family, Field, Only, Settings, shared
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import flat

OFFSET = 2  # rows of the table of positions before the first
NORM = Norm("layer", 1e-5)


def model(known: Settings) -> EncoderDecoder:
    """The model of these settings."""
    width, context = known["width"], known["context"]
    scale = width**0.5 if known["scale_embedding"] else 1.0
    position: Any = known["position"] or learned.Config(context, known.get("offset", OFFSET))
    own_norm, first = known["embedding_norm"], known.get("norm_first", False)

    def block(half: str) -> Block:
        heads = known[f"{half}_heads"]
        biased = {"heads": heads, "key_size": shared({**known, "heads": heads})}
        biased |= {"bias": True, "out_bias": True}
        mlp = MLP(known[f"{half}_hidden"], known["activation"], gated=False, bias=True)
        if half == "encoder":
            return Block(bidirectional.Config(**biased, kv_heads=heads), mlp, NORM)
        cross = mixer("cross", **biased, kv_heads=heads)
        return Block(mha.Config(**biased), mlp, NORM, pre_norm=first, cross=cross)

    is_learned = isinstance(position, learned.Config)
    encoder = Encoder(
        known["vocab"],
        width,
        context,
        (block("encoder"),) * known["encoder_layers"],
        NORM,
        segments=0,
        learned=is_learned,
        offset=position.offset,
        norm_first=first,
        embedding_norm=own_norm,
        embedding_scale=scale,
        sines=None if is_learned else position,
    )
    decoder = Decoder(
        known["target_vocab"],
        width,
        context,
        (block("decoder"),) * known["decoder_layers"],
        NORM,
        tied=known["tied"],
        embedding_scale=scale,
        position=position,
        embedding_norm=NORM if own_norm else None,
        logits_bias=known.get("logits_bias", True),
        last_norm=first,
    )
    return EncoderDecoder(encoder, decoder, known["shared"])


def settings(config: EncoderDecoder) -> Settings:
    """The settings of a config."""
    known = {
        "vocab": config.encoder.vocab,
        "target_vocab": config.vocab,
        "width": config.width,
        "context": config.context,
        "scale_embedding": config.encoder.embedding_scale != 1,
        "tied": config.decoder.tied,
        "shared": config.shared,
        "both": True,
    }
    for half in ("encoder", "decoder"):
        blocks = getattr(config, half).blocks
        attention, mlp = blocks[0].attention, blocks[0].mlp
        known |= {f"{half}_layers": len(blocks), f"{half}_heads": attention.heads}
        known |= {f"{half}_hidden": mlp.hidden, "activation": mlp.activation}
    return known


def _half(half: str) -> tuple[Rule, ...]:
    """The names of one half."""
    layer, ours = f"model.{half}.layers.{{n}}", f"{half}.blocks.{{n}}"
    parts = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    return naming.pairs(
        *(
            (f"{layer}.{theirs}.{name}", f"{ours}.{kind}.{part}")
            for theirs, kind in (("self_attn", "attention"), ("encoder_attn", "cross"))
            for name, part in parts.items()
        ),
        (f"{layer}.self_attn_layer_norm", f"{ours}.attention_norm"),
        (f"{layer}.encoder_attn_layer_norm", f"{ours}.cross_norm"),
        (f"{layer}.final_layer_norm", f"{ours}.mlp_norm"),
        (f"{layer}.fc1", f"{ours}.mlp.up"),
        (f"{layer}.fc2", f"{ours}.mlp.down"),
    )


HF = (
    *naming.weights(
        ("model.shared", "embedding"),
        ("model.encoder.embed_tokens", "encoder.embedding"),
        ("model.decoder.embed_tokens", "decoder.embedding"),
        ("lm_head", "decoder.head"),
    ),
    Rule("final_logits_bias", "decoder.logits_bias", flat),
    *_half("encoder"),
    *_half("decoder"),
)
ROWS = (
    Field("encoder_layers", "encoder_layers", None, LAYER_COUNT, alias="num_hidden_layers"),
    Field("decoder_layers", "decoder_layers", None, LAYER_COUNT),
    Field("vocab", "vocab_size", None),
    Field("width", "d_model", None, alias="hidden_size"),
    Field("context", "max_position_embeddings", None),
    Field("encoder_heads", "encoder_attention_heads", None, alias="num_attention_heads"),
    Field("decoder_heads", "decoder_attention_heads", None),
    Field("encoder_hidden", "encoder_ffn_dim", None),
    Field("decoder_hidden", "decoder_ffn_dim", None),
    Field("activation", "activation_function", None, rows.ACTIVATION),
    Field("scale_embedding", "scale_embedding", None, FLAG),
    Field("tied", "tie_word_embeddings", None, FLAG),
    Field("both", "is_encoder_decoder", None, FLAG),
    Only("is_encoder_decoder", None, (True,), "one half alone"),
    Only("is_decoder", None, (False,), "its decoder alone"),
    Only("add_cross_attention", None, (False,), "another cross-attention"),
    Only("is_causal", None, (), "another order of reading than each half's"),
    Only("add_bias_logits", None, (False,), "a bias that is learned with the logits"),
)
AFTER = (  # of models whose norms follow sums
    Only("normalize_before", None, (False,), "norms before each half"),
    Only("add_final_layer_norm", None, (False,), "a norm after the last block"),
)
BEFORE = (  # of those whose norms come first
    Only("normalize_before", None, (True,), "norms after each half"),
    Only("add_final_layer_norm", None, (True,), "no norm after the last block"),
)
NO_NORM = Only("normalize_embedding", None, (False,), "a norm after the embeddings")
LEARNED = Only("static_position_embeddings", None, (False,), "sinusoids")
SINES = Only("static_position_embeddings", None, (True,), "learned positions")
LAST_NORMS = naming.pairs(
    ("model.encoder.layer_norm", "encoder.last_norm"), ("model.decoder.layer_norm", "decoder.norm")
)
TABLES = naming.weights(
    ("model.encoder.embed_positions", "encoder.position"),
    ("model.decoder.embed_positions", "decoder.position"),
)
EMBEDDING_NORMS = naming.pairs(
    ("model.encoder.layernorm_embedding", "encoder.norm"),
    ("model.decoder.layernorm_embedding", "decoder.embedding_norm"),
)
FAMILY = Family(
    "bart",
    "BartForConditionalGeneration",
    hf=(*HF, *TABLES, *EMBEDDING_NORMS),
    gguf=(),
    rows=(
        *ROWS,
        *AFTER,
        Only("normalize_embedding", None, (True,), "no norm after the embeddings"),
        LEARNED,
        Only("extra_pos_embeddings", None, (OFFSET,), "another number of rows before the first position"),
    ),
    build=model,
    describe=settings,
    defaults={"vocab": 50265, "width": 1024, "context": 1024, "activation": "gelu", "tied": True}
    | {f"{half}_layers": 12 for half in ("encoder", "decoder")}
    | {f"{half}_heads": 16 for half in ("encoder", "decoder")}
    | {f"{half}_hidden": 4096 for half in ("encoder", "decoder")}
    | {"scale_embedding": False, "both": True},
    fixed={
        "position": None,
        "embedding_norm": True,
        "shared": lambda known: known["tied"],
        "target_vocab": lambda known: known["vocab"],
    },
    config=EncoderDecoder,
    harmless=(
        *("dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop", "init_std"),
        *("classif_dropout", "_num_labels", "output_past", "save_step", "force_bos_token_to_be_generated"),
    ),
    ignored_hf=("model.encoder.version", "model.decoder.version"),
    also_ignored=lambda config: () if config.shared else ("model.shared.weight",),
    copies=tuple(
        (f"model.{half}.embed_tokens.weight", "model.shared.weight") for half in ("encoder", "decoder")
    ),
    zeros=("final_logits_bias",),
)
