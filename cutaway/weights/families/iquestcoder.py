"""IQuest-Coder (2026): llama's block. In GGUF it is a llama."""

from cutaway.weights.families import llama
from cutaway.weights.family import Only

FAMILY = llama.FAMILY.but(
    "iquestcoder",
    "IQuestCoderForCausalLM",
    architecture="llama",
    rows=(
        *llama.FAMILY.rows,
        Only("clip_qkv", None, (None,), "clipped queries, keys and values"),
        Only("use_sliding_window", None, (False,), "a sliding window"),
    ),
    defaults={"kv_heads": 8, "head_size": 128, "context": 131072, "eps": 1e-5},
    harmless=("sliding_window", "max_window_layers"),
)
