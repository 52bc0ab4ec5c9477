"""Qwen 3.5 (2026), text: Qwen3-Next's mixers, whose projections are apart, and a dense MLP."""

from cutaway.weights import common
from cutaway.weights.families import qwen3_next
from cutaway.weights.families.qwen3_next import HF_DELTA, HF_GATED, THEIRS, of_linear, ours
from cutaway.weights.family import Only
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule, split

ALIASES = ("qwen3_5_text",)

HF = (
    *HF_GATED,
    *HF_DELTA,
    *of_linear(
        (
            Rule(f"{THEIRS}.in_proj_qkv.weight", ours("query", "key", "value"), split),
            *common.weights(
                (f"{THEIRS}.in_proj_z", "blocks.{n}.attention.gate"),
                (f"{THEIRS}.in_proj_b", "blocks.{n}.attention.beta"),
                (f"{THEIRS}.in_proj_a", "blocks.{n}.attention.forget"),
            ),
        )
    ),
)


class Rope(common.Rope):
    """The three coordinates of an image's patch are equal in a text, so sections change nothing."""

    def of(self, given: Fields | None, *rest):  # type: ignore[no-untyped-def]
        if given is not None:
            for key in ("mrope_section", "mrope_interleaved"):
                given.get(key)
        return super().of(given, *rest)


DELTA = (*qwen3_next.DELTA, Only("attn_output_gate", None, (True,), "attention without a gate"))
FAMILY = qwen3_next.FAMILY.but(
    "qwen3_5",
    "Qwen3_5ForCausalLM",
    hf_type="qwen3_5_text",
    hf=HF,
    rows=(
        *(Rope(part=0.25) if isinstance(row, common.Rope) else row for row in common.SIZES),
        *common.DENSE,
        *DELTA,
    ),
    defaults={"kv_heads": 4},
    sparse=False,
    harmless=("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "mamba_ssm_dtype"),
)
