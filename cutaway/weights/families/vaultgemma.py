"""VaultGemma (2510.15001): Gemma 2 without the norms after each half."""

from cutaway.weights import naming
from cutaway.weights.families import gemma2

FAMILY = gemma2.FAMILY.but(
    "vaultgemma",
    "VaultGemmaForCausalLM",
    hf=naming.one_more(
        naming.renamed(naming.HF_DECODER, ("post_attention_layernorm", "pre_feedforward_layernorm"))
    ),
    gguf=(),
    forget=("post_norm",),
    folded=None,
)
