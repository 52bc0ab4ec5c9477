"""nanochat (Karpathy, 2025): norms that learn nothing, of the embedding, and of queries and keys after their
rotation, which undo what scales cosine and sine; relu^2.

It rotates backwards, which is to rotate forwards with the halves of each head exchanged.
"""

from cutaway.layers.config import Norm
from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import NUMBER, Field, Settings
from cutaway.weights.rules import how_of
from cutaway.weights.tensor_maps import exchange


def bare(known: Settings) -> Norm:
    """A norm without weights."""
    return Norm("rms", known["eps"], weight=False)


FAMILY = llama.FAMILY.but(
    "nanochat",
    "NanoChatForCausalLM",
    hf=how_of(
        naming.renamed(naming.HF_DECODER, ("up_proj", "fc1"), ("down_proj", "fc2")),
        {"attention.query.": exchange("heads"), "attention.key.": exchange("groups")},
    ),
    gguf=(),
    rows=(
        *rows.SIZES,
        *rows.DENSE,
        *rows.biases("attention_bias"),
        Field("softcap", "final_logit_softcapping", None, NUMBER),
    ),
    defaults={"activation": "relu2", "softcap": 15.0},
    nulls={"softcap": None},
    fixed={
        "gated": False,
        "norm_weight": False,
        "qk_norm": True,
        "qk_norm_after": True,
        "embedding_norm": bare,
    },
)
