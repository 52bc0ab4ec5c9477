"""InternLM3 (2025): llama's block; one key says whether all matrices have biases. In GGUF it is a llama."""

from cutaway.weights import rows
from cutaway.weights.families import llama
from cutaway.weights.family import FLAG, Family, Present, Settings
from cutaway.weights.fields import Fields


class MLPBias(Present):
    """Transformers has one class for both keys, and refuses two that disagree."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        found = super().read(fields, known, own)
        if not fields.gguf and found["mlp_bias"] != known["bias"]:
            raise fields.refusal("bias", "and qkv_bias disagree")
        return found


FAMILY = llama.FAMILY.but(
    "internlm3",
    "InternLM3ForCausalLM",
    architecture="llama",
    rows=(
        *rows.SIZES,
        *rows.DENSE,
        *rows.biases("attention_bias", alias="qkv_bias"),
        MLPBias("mlp_bias", "mlp_bias", "blk.0.ffn_up.bias", FLAG, alias="bias"),
    ),
    defaults={"kv_heads": 2, "head_size": 128, "context": 32768, "eps": 1e-5},
)
