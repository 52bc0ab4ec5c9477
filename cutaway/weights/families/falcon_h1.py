"""Falcon-H1 (2507.22448): Mamba 2 beside attention in each layer, and multipliers of everything."""

from dataclasses import replace

from cutaway.errors import UserError
from cutaway.layers.config import MLP
from cutaway.model.config import Beside, Decoder, Encoder
from cutaway.weights import common
from cutaway.weights.families import granitemoehybrid, llama
from cutaway.weights.family import FLAG, NUMBER, Entries, Family, Field, Row, Settings
from cutaway.weights.fields import Fields


class Multipliers(Row):
    """Lists of numbers, null for ones: of z, x, B, C and dt, and of the MLP's gate and output."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        found = {}
        for key, count in (("ssm_multipliers", 5), ("mlp_multipliers", 2)):
            given = (1.0,) * count if fields.get(key) is None else fields.numbers(key)
            if len(given) != count:
                raise fields.refusal(key, f"should be {count} numbers")
            found[key] = given
        return found

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {key: list(known[key]) for key in ("ssm_multipliers", "mlp_multipliers")}


class Sizes(Row):
    """The heads of Mamba 2."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        heads, expand = (
            fields.integer(key, usual) for key, usual in (("mamba_n_heads", 128), ("mamba_expand", 2))
        )
        stated = fields.integer("mamba_d_ssm", None) if fields.has("mamba_d_ssm") else 1024
        inner = stated or expand * known["width"]
        auto = not fields.has("mamba_d_head") or fields.get("mamba_d_head") == "auto"
        size = inner // heads if auto else fields.integer("mamba_d_head")
        if size * heads != inner:
            raise fields.refusal("mamba_d_head", f"is {size}: {heads} heads of it are not {inner} numbers")
        return {"mamba_heads": heads, "mamba_size": size}

    def write(self, known: Settings, gguf: bool) -> Entries:
        heads, size = known["mamba_heads"], known["mamba_size"]
        return {"mamba_n_heads": heads, "mamba_d_head": size, "mamba_d_ssm": heads * size}


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    order = {True: "first", False: "gated"}[known["norm_first"]]
    mamba = granitemoehybrid.mamba2(
        known,
        out_bias=None if known["mamba_out_bias"] == known["mamba_bias"] else known["mamba_out_bias"],
        normed=order if known["normed"] else None,
        multipliers=known["ssm_multipliers"],
    )
    inputs, outputs = ((known[f"attention_{way}"], known[f"ssm_{way}"]) for way in ("in", "out"))
    key = known["key_multiplier"]
    plain = common.decoder(known | {"scale": None if key == 1.0 else key * known["head_size"] ** -0.5})
    gate, out = known["mlp_multipliers"]
    mlp = MLP(known["hidden"], known["activation"], bias=known["mlp_bias"], gate_scale=gate, out_scale=out)
    block = replace(plain.blocks[0], mlp=mlp, beside=Beside(mamba, inputs, outputs))
    return replace(plain, blocks=(block,) * known["layers"])


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config; UserError if its layers are of another kind."""
    known, first = common.settings(config), config.blocks[0]
    mlp, beside = first.mlp, first.beside
    if beside is None or not isinstance(mlp, MLP):
        raise UserError("its first layer has no Mamba 2 beside attention, or no dense MLP")
    mamba = beside.mixer
    scale = known["scale"]
    known |= granitemoehybrid.described([mamba]) | {
        "mamba_out_bias": mamba.bias if mamba.out_bias is None else mamba.out_bias,
        "normed": mamba.normed is not None,
        "norm_first": mamba.normed != "gated",
        "ssm_multipliers": mamba.multipliers,
        "mlp_multipliers": (mlp.gate_scale, mlp.out_scale),
        "key_multiplier": 1.0 if scale is None else float(f"{scale * known['head_size'] ** 0.5:.12g}"),
    }
    known["attention_in"], known["ssm_in"] = beside.inputs
    known["attention_out"], known["ssm_out"] = beside.outputs
    return known


FAMILY = llama.FAMILY.but(
    "falcon_h1",
    "FalconH1ForCausalLM",
    hf=(
        *common.renamed(
            common.HF_DECODER,
            ("post_attention_layernorm", "pre_ff_layernorm"),
            (".mlp.", ".feed_forward."),
            ("model.norm.", "model.final_layernorm."),
        ),
        *granitemoehybrid.hf_mamba("model.layers.{n}.mamba", "blocks.{n}.beside", None),
    ),
    gguf=(),
    rows=(
        *(row for row in common.SIZES if row is not common.ACTIVATION_ROW),
        *common.DENSE[:1],
        *common.biases("attention_bias"),
        *llama.FAMILY.rows[-1:],
        *granitemoehybrid.MAMBA[:-1],
        Field("mamba_out_bias", "projectors_bias", None, FLAG),
        Field("normed", "mamba_rms_norm", None, FLAG),
        Field("norm_first", "mamba_norm_before_gate", None, FLAG),
        Sizes(),
        Multipliers(),
        Field("embedding_scale", "embedding_multiplier", None, NUMBER),
        Field("logit_scale", "lm_head_multiplier", None, NUMBER),
        Field("key_multiplier", "key_multiplier", None, NUMBER),
        *(
            Field(f"{part}_{way}", f"{part}_{way}_multiplier", None, NUMBER)
            for part in ("attention", "ssm")
            for way in ("in", "out")
        ),
    ),
    build=decoder,
    describe=settings,
    defaults={"vocab": 128000, "width": 4096, "hidden": 14336, "layers": 32, "heads": 32, "kv_heads": 8}
    | {"context": 8192, "eps": 1e-5, "conv": 4, "state_size": 256, "mamba_groups": 1, "conv_bias": True}
    | {"mamba_bias": False, "mamba_out_bias": False, "normed": False, "norm_first": True}
    | {"embedding_scale": 1.0, "logit_scale": 1.0, "key_multiplier": 1.0}
    | {"attention_in": 1.0, "attention_out": 1.0, "ssm_in": 1.0, "ssm_out": 1.0},
    fixed={"activation": "silu"},
    harmless=(
        "mamba_chunk_size",
        "num_logits_to_keep",
        "mamba_use_mlp",
        "expansion_factor",
        "mlp_expansion_factor",
    ),
)
