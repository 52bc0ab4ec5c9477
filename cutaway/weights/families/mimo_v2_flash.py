"""MiMo-V2-Flash (2601.02780): sinks and twice the key heads in local layers, values narrower than keys."""

from dataclasses import replace

from cutaway.attention.common.heads import Heads
from cutaway.errors import UserError
from cutaway.layers.config import MLP
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.weights import decoders, layer_ropes, mtp, naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import NUMBER, Family, Field, Present, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

LOCAL = 2  # times as many key-value heads


class LayerTypes(rows.LayerTypes):
    """The first layer and every sixth are global; an older key has the window without the own position."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        older = fields.integer("sliding_window_size", None)
        found = super().read(fields, known, own)
        if older is None:
            return found
        return {
            "windows": tuple(window and older + 1 for window in found["windows"]),
            "window": older + 1,
        }


def mixed(layers: int) -> list[bool]:
    """The first layer and every sixth are global."""
    return [n > 0 and bool((n + 1) % 6) for n in range(layers)]


def attention(known: Settings, n: int) -> Heads:
    """The attention of layer n."""
    window = known["windows"][n]
    return decoders.heads(
        known["heads"],
        known["kv_heads"] * (1 if window is None else LOCAL),
        window,
        key_size=known["head_size"],
        value_size=known["value_size"],
        position=known["rope"] if window is None else known["local_rope"],
        bias=known["bias"],
        sinks=window is not None,
        value_scale=known["value_scale"],
    )


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    mixers = tuple(attention(known, n) for n in range(known["layers"]))
    return replace(decoders.decoder(known | {"mixers": mixers, "out_bias": False}), mtp_chained=False)


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    known, first = decoders.settings(config), config.blocks[0].attention
    if not isinstance(first, Heads):
        raise UserError("its first layer is no softmax attention over heads")
    counts = {of.groups // (1 if decoders.window_of(of) is None else LOCAL) for of in _heads(config)}
    own = {"value_size": first.values, "value_scale": first.value_scale, "kv_heads": min(counts)}
    return known | own


def _heads(config: Decoder | Encoder) -> list[Heads]:
    return [block.attention for block in config.blocks if isinstance(block.attention, Heads)]


def dense_local(config: Decoder) -> Block | None:
    """The block of heads that predict further tokens: a local layer with a dense layer's MLP."""
    local = [block for block in config.blocks if decoders.window_of(block.attention) is not None]
    dense = [block.mlp for block in config.blocks if isinstance(block.mlp, MLP)]
    return replace(local[-1], mlp=dense[0]) if local and dense else None


FAMILY = llama.FAMILY.but(
    "mimo_v2_flash",
    "MiMoV2FlashForCausalLM",
    modules=((".attention_sink_bias", ".sinks"),),
    hf=mtp.under(
        (
            *naming.HF_DECODER,
            *naming.HF_DEEPSEEK_EXPERTS,
            Rule("model.layers.{n}.self_attn.attention_sink_bias", "blocks.{n}.attention.sinks", same),
        ),
        "model.mtp.layers.{n}.",
        ("enorm", "hnorm", "eh_proj", "final_layernorm"),
        (".post_attention_layernorm.", ".pre_mlp_layernorm."),
    ),
    ignored_hf=("model.mtp.*", *llama.FAMILY.ignored_hf),
    mtp_block=dense_local,
    gguf=(),
    rows=(
        *rows.replaced(rows.SIZES, without=("rope",)),
        *rows.DENSE[:1],
        *rows.experts("n_routed_experts", rows.EXPERT_HIDDEN, "num_local_experts")[:3],
        *rows.GROUPS,
        Field("routed_scale", "routed_scaling_factor", None, NUMBER),
        rows.MLPTypes(),
        LayerTypes(1, key=None, usual=mixed),
        layer_ropes.RopeOfKinds(part=0.334, bases=(5_000_000.0, 10_000.0), parts=(0.334, 0.334)),
        Field("value_size", "v_head_dim", None),
        Field("value_scale", "attention_value_scale", None, rows.FRACTION),
        Present("bias", "attention_bias", None),
        mtp.Heads("num_nextn_predict_layers", "num_mtp_layers", usual=3),
    ),
    build=decoder,
    describe=settings,
    defaults={"kv_heads": 4, "head_size": 192, "value_size": 128, "context": 131072, "eps": 1e-5}
    | {"window": 129, "value_scale": 0.707, "experts": 256, "top_k": 8, "expert_hidden": 2048}
    | {"groups": 1, "top_groups": 1, "normalised": True, "routed_scale": 1.0},
    nulls={"value_scale": 1.0, "routed_scale": 1.0},
    fixed=rows.SIGMOID,
    forget=("kv_heads", "head_size"),
    sparse=True,
)
