"""Falcon-H1 (2507.22448): Mamba 2 beside attention in each layer, and multipliers of everything."""

from dataclasses import replace

from cutaway.attention.common.heads import Heads
from cutaway.errors import UserError
from cutaway.layers.config import MLP
from cutaway.model.block_config import Beside
from cutaway.model.config import Decoder, Encoder
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families import granitemoehybrid, llama
from cutaway.weights.family import FLAG, NUMBER, Entries, Family, Field, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.named_tensors import Tensors, multiplied
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

ALIASES = ("falcon-h1",)


class Multipliers(Row):
    """Lists of numbers, null for ones: of z, x, B, C and dt, and of the MLP's gate and output."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return {"ssm_multipliers": (1.0,) * 5, "mlp_multipliers": (1.0,) * 2}
        found = {}
        for key, count in (("ssm_multipliers", 5), ("mlp_multipliers", 2)):
            given = (1.0,) * count if fields.get(key) is None else fields.numbers(key)
            if len(given) != count:
                raise fields.refusal(key, f"should be {count} numbers")
            found[key] = given
        return found

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {} if gguf else {key: list(known[key]) for key in ("ssm_multipliers", "mlp_multipliers")}


class Sizes(Row):
    """The heads of Mamba 2."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:  # where a norm is after the gate
            normed = "blk.0.ssm_norm.weight" in fields.tensors
            return {"normed": normed, "norm_first": not normed}
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
        return {} if gguf else {"mamba_n_heads": heads, "mamba_d_head": size, "mamba_d_ssm": heads * size}


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
    plain = decoders.decoder(known | {"scale": None if key == 1.0 else key * known["head_size"] ** -0.5})
    gate, out = known["mlp_multipliers"]
    mlp = MLP(known["hidden"], known["activation"], bias=known["mlp_bias"], gate_scale=gate, out_scale=out)
    block = replace(plain.blocks[0], mlp=mlp, beside=Beside(mamba, inputs, outputs))
    return replace(plain, blocks=(block,) * known["layers"])


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config; UserError if its layers are of another kind."""
    known, first = decoders.settings(config), config.blocks[0]
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


def folded(config: Decoder, tensors: Tensors) -> tuple[Decoder, Tensors, str]:
    """The same function with every multiplier in the weights, as GGUF has it."""
    factors: dict[str, float] = {
        "embedding.weight": config.embedding_scale,
        "head.weight": config.logit_scale,
    }
    blocks, root = [], {"head.weight": "embedding.weight"} if config.tied else {}
    for n, block in enumerate(config.blocks):
        of, mlp, beside = block.attention, block.mlp, block.beside
        if not isinstance(of, Heads) or not isinstance(mlp, MLP) or beside is None:
            return config, tensors, ""
        key = 1.0 if of.scale is None else of.scale * of.key_size**0.5
        (a_in, b_in), (a_out, b_out) = beside.inputs, beside.outputs
        for name in ("query", "key", "value"):
            factors[f"blocks.{n}.attention.{name}.weight"] = a_in * (key if name == "key" else 1.0)
        factors[f"blocks.{n}.attention.key.bias"] = key
        scaled = {"attention.out": a_out, "mlp.gate": mlp.gate_scale, "mlp.down": mlp.out_scale}
        scaled["beside.out"] = b_out
        for name, factor in scaled.items():
            factors |= {f"blocks.{n}.{name}.{part}": factor for part in ("weight", "bias")}
        for name, factor in zip(granitemoehybrid.PARTS, beside.mixer.multipliers, strict=True):
            factors[f"blocks.{n}.beside.{name}.weight"] = b_in * factor
            factors[f"blocks.{n}.beside.{name}.bias"] = factor
        plain = replace(beside.mixer, multipliers=(1.0,) * 5)
        blocks.append(
            replace(
                block,
                attention=replace(of, scale=None),
                mlp=replace(mlp, gate_scale=1.0, out_scale=1.0),
                beside=Beside(plain),
            )
        )
    tied = config.tied and config.embedding_scale == config.logit_scale
    new = replace(config, blocks=tuple(blocks), embedding_scale=1.0, logit_scale=1.0, tied=tied)
    entries = Tensors({name: tensors.later(root.get(name, name)) for name in new.weights()})
    note = "multipliers of the config are multiplied into the weights, as GGUF has them"
    scaled = {name: factor for name, factor in factors.items() if factor != 1.0}
    return new, multiplied(entries, scaled), note


FAMILY = llama.FAMILY.but(
    "falcon_h1",
    "FalconH1ForCausalLM",
    hf=(
        *naming.HF_PRE_FF,
        *granitemoehybrid.hf_mamba("model.layers.{n}.mamba", "blocks.{n}.beside", None),
    ),
    gguf=(
        *naming.GGUF_EMBEDDINGS,
        *naming.GGUF_NORMS[:1],
        Rule("blk.{n}.ffn_norm", "blocks.{n}.mlp_norm.weight", same),
        *naming.GGUF_ATTENTION,
        *naming.pairs(*naming.GGUF_MLP),
        *granitemoehybrid.gguf_mamba("blocks.{n}.beside", None),
    ),
    ignored_gguf=(),
    folded=folded,
    architecture="falcon-h1",
    rows=(
        *rows.replaced(rows.SIZES, without=("activation",)),
        *rows.DENSE[:1],
        *rows.biases("attention_bias"),
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
    gguf_fixed={"embedding_scale": 1.0, "logit_scale": 1.0, "key_multiplier": 1.0, "mamba_out_bias": False}
    | {f"{part}_{way}": 1.0 for part in ("attention", "ssm") for way in ("in", "out")},
    harmless=(
        "mamba_chunk_size",
        "num_logits_to_keep",
        "mamba_use_mlp",
        "expansion_factor",
        "mlp_expansion_factor",
    ),
)
