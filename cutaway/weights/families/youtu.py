"""Youtu-LLM (2512.24618): DeepSeek's latent attention in a dense model.

Transformers 5.24 sets the embedding of the padding token to 0 as it loads a folder; here it is as stored.
"""

from cutaway.weights import naming, rows
from cutaway.weights.families import deepseek_v3
from cutaway.weights.family import Only

FAMILY = deepseek_v3.FAMILY.but(
    "youtu",
    "YoutuForCausalLM",
    hf=(*naming.renamed(naming.HF_DECODER, without=("self_attn",)), *deepseek_v3.HF_LATENT),
    gguf=(),
    gguf_joined=(),
    rows=(
        *rows.replaced(deepseek_v3.SIZES, deepseek_v3.Rope()),
        *rows.DENSE,
        Only("attention_bias", None, (False,), "a bias in latent attention"),
        Only("mlp_bias", None, (False,), "biases of MLPs"),
    ),
    defaults={"kv_heads": 16, "heads": 16, "context": 131072, "tied": True},
    forget=("score", "choice_bias", "group_of_two"),
    sparse=False,
    instead=None,
    harmless=(
        "num_nextn_predict_layers",
        "num_mtp_layers",
        *deepseek_v3.FAMILY.harmless,
        "embedding_initializer_range",
    ),
)
