"""Mamba 2 (2405.21060): nothing but its mixer in each layer, no attention and no MLP."""

from cutaway.layers.config import Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families import granitemoehybrid
from cutaway.weights.families.mamba import LAYER, NAMES, SIZES
from cutaway.weights.family import FLAG, Entries, Family, Field, Only, Row, Settings
from cutaway.weights.fields import Fields


class Expand(Row):
    """How many times wider a mixer is than the model, which its heads say too."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return {}
        inner = (fields.integer("expand") if fields.stated("expand") else 2) * known["width"]
        if inner != known["mamba_heads"] * known["mamba_size"]:
            shape = f"{known['mamba_heads']} heads of {known['mamba_size']}"
            raise fields.refusal("expand", f"makes {inner} numbers of a token, which {shape} are not")
        return {}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:  # which llama.cpp asks for
            return {"feed_forward_length": 0, "attention.head_count": 0}
        return {"expand": known["mamba_heads"] * known["mamba_size"] // known["width"]}


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    norm = Norm("rms", known["eps"])
    block = Block(granitemoehybrid.mamba2(known), None, norm)
    return Decoder(
        known["vocab"], known["width"], known["context"], (block,) * known["layers"], norm, known["tied"]
    )


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    return decoders.settings(config) | granitemoehybrid.described(block.attention for block in config.blocks)


FAMILY = Family(
    "mamba2",
    "Mamba2ForCausalLM",
    hf=(
        *NAMES,
        *granitemoehybrid.hf_mamba(f"{LAYER}.mixer"),
    ),
    gguf=(
        *naming.GGUF_EMBEDDINGS,
        *naming.GGUF_NORMS[:1],
        *granitemoehybrid.gguf_mamba(),
    ),
    rows=(
        *SIZES,
        Field("mamba_heads", "num_heads", None),
        Field("mamba_size", "head_dim", None),
        Field("state_size", "state_size", None),
        Field("mamba_groups", "n_groups", None),
        Field("conv", "conv_kernel", None),
        Field("mamba_bias", "use_bias", None, FLAG),
        Field("conv_bias", "use_conv_bias", None, FLAG),
        Expand(),
        granitemoehybrid.InGGUF(),
        Only(None, "feed_forward_length", (0,), "an MLP beside Mamba 2"),
        Only(None, "attention.head_count", (0,), "heads of attention beside Mamba 2"),
        Only("hidden_act", None, ("silu",), "another activation"),
        Only("time_step_limit", None, granitemoehybrid.UNLIMITED, "clamped steps"),
        # Transformers divides the outputs' matrices by it once more, each time it opens a file.
        Only("rescale_prenorm_residual", None, (False,), "rescaling weights that are there"),
        *rows.CAUSAL,
    ),
    build=decoder,
    describe=settings,
    defaults={"vocab": 32768, "width": 4096, "layers": 64, "eps": 1e-5, "tied": False, "context": 1 << 20}
    | {"mamba_heads": 128, "mamba_size": 64, "state_size": 128, "mamba_groups": 8, "conv": 4}
    | {"mamba_bias": False, "conv_bias": True},
    sparse=False,
    mixers=("mamba2",),
    prefix="backbone.",
    harmless=(*("chunk_size", "residual_in_fp32", "time_step_*", "rms_norm", "norm_before_gate"),),
    ignored_hf=(),
)
