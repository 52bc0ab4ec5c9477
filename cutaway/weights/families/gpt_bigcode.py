"""StarCoder 1 (2305.06161): GPT-2's block in plain matrices, with one key-value head for all queries."""

from dataclasses import replace

from cutaway.weights import rows
from cutaway.weights.families import gpt2
from cutaway.weights.family import FLAG, Field, Only, Settings
from cutaway.weights.rules import How, Place
from cutaway.weights.tensor_maps import beside, same, split

ALIASES = ("starcoder",)


def kv_heads(known: Settings) -> int:
    """One, or one a head; GGUF counts them."""
    return known["kv_heads"] if "kv_heads" in known else 1 if known["multi_query"] else known["heads"]


def one_or_beside(which: str) -> How:
    """One key and value after all queries, or those of each head or group beside its queries."""

    def way(place: Place) -> How:
        return split if place.attention.groups == 1 else beside(which)

    return How(
        lambda packed, place: way(place).load(packed, place),
        lambda parts, place: way(place).save(parts, place),
        split.shape,
    )


FUSED = one_or_beside("heads")
FAMILY = gpt2.FAMILY.but(
    "gpt_bigcode",
    "GPTBigCodeForCausalLM",
    hf=tuple(replace(rule, how=FUSED if isinstance(rule.ours, tuple) else same) for rule in gpt2.HF),
    rows=(
        *rows.replaced(
            gpt2.FAMILY.rows,
            Field("activation", "activation_function", None, rows.ACTIVATION),
            Field("kv_heads", None, "attention.head_count_kv", missing=rows.same_heads),
        ),
        Field("multi_query", "multi_query", None, FLAG),
        Only("attention_softmax_in_fp32", None, (True,), "a softmax in half precision"),
        Only("scale_attention_softmax_in_fp32", None, (True,), "a softmax in half precision"),
    ),
    defaults={"multi_query": True},
    forget=("kv_heads",),
    fixed={"kv_heads": kv_heads},
    architecture="starcoder",
    harmless=("num_key_value_heads",),
)
