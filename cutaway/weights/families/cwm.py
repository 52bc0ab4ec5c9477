"""CWM (2510.02387): llama's block; of four layers the first is global, the others are local.

In GGUF it is a llama, which has no window.
"""

from cutaway.weights import rows
from cutaway.weights.families import llama

FAMILY = llama.FAMILY.but(
    "cwm",
    "CwmForCausalLM",
    architecture="llama",
    rows=(
        *rows.turning(rows.SIZES, required=True),
        *rows.DENSE,
        llama.FAMILY.rows[-1],
        rows.LayerTypes(4, key=None, usual=rows.all_but_every(4), in_gguf=False),
    ),
    defaults={
        "kv_heads": 8,
        "head_size": 128,
        "context": 131072,
        "eps": 1e-5,
        "rope_base": 1e6,
        "window": 8192,
    },
    fixed={"bias": False, "out_bias": False},
    whole_ids=("bos_token_id",),
)
