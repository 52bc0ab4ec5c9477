"""BitNet b1.58 (2504.12285): llama's block with norms before the output matrices of attention and MLP.

Its weights as floats; the ternary ones of a quantized folder are read by weights/quantized.
"""

from cutaway.layers.config import Norm
from cutaway.model.config import Decoder
from cutaway.model.kinds import mixer
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import Settings, shared
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    attention = mixer(
        "sub_norm",
        **decoders.shape(known),
        bias=known["bias"],
        out_bias=known["out_bias"],
        eps=known["eps"],
    )
    return decoders.decoder(known | {"mixers": (attention,) * known["layers"]})


FAMILY = llama.FAMILY.but(
    "bitnet",
    "BitNetForCausalLM",
    hf=(
        *naming.HF_DECODER,
        Rule("model.layers.{n}.self_attn.attn_sub_norm.weight", "blocks.{n}.attention.out_norm", same),
        Rule("model.layers.{n}.mlp.ffn_sub_norm.weight", "blocks.{n}.mlp.hidden_norm.weight", same),
    ),
    gguf=(
        *naming.GGUF_PLAIN,
        Rule("blk.{n}.attn_sub_norm.weight", "blocks.{n}.attention.out_norm", same),
        Rule("blk.{n}.ffn_sub_norm.weight", "blocks.{n}.mlp.hidden_norm.weight", same),
    ),
    rows=(*rows.SIZES, *rows.DENSE, *rows.biases("attention_bias")),
    gguf_fixed={"tied": True, "head_size": shared, "activation": "silu"},
    build=decoder,
    defaults={"kv_heads": 5, "head_size": shared, "eps": 1e-5, "rope_base": 5e5, "activation": "relu2"},
    fixed={"hidden_norm": lambda known: Norm("rms", known["eps"])},
    mixers=("sub_norm",),
)
