"""Nemotron-H (2504.03624), Nemotron 3: each layer is Mamba 2, attention without positions, MLP or experts.

A mixer and the MLP or experts that follow it are one block here: fewer than its config's layers. Steps of
Mamba 2 are bounded from below, MLPs are ReLU squared without a gate.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.layers.config import MLP, MoE, Norm, Router
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families import granitemoehybrid, llama
from cutaway.weights.families.granitemoehybrid import LINEAR, attends, is_mamba
from cutaway.weights.family import FLAG, NUMBER, Entries, Family, Field, Only, Row, Settings
from cutaway.weights.fields import LAYERS, Fields
from cutaway.weights.rows import FULL
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

LETTERS = {"M": LINEAR, "E": "moe", "*": FULL, "-": "mlp"}
KINDS = {LINEAR: LINEAR, "mamba": LINEAR, FULL: FULL, "attention": FULL, "moe": "moe", "mlp": "mlp"}
LAYER = "backbone.layers.{n}"
HEADS, HIDDEN = "attention.head_count_kv", "feed_forward_length"
ALIASES = ("nemotron_h", "nemotron_h_moe")
UNUSED = {"experts": 8, "top_k": 2, "expert_hidden": 1, "shared": 1, "groups": 1, "top_groups": 1}
UNUSED |= {"normalised": True, "routed_scale": 1.0}  # by a model without experts


class Pattern(Row):
    """What each layer is, in words or in letters."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return self._from_gguf(fields)
        letters = fields.text("hybrid_override_pattern", None)
        listed = fields.get("layers_block_type")
        if listed is None and letters is not None:
            listed = [LETTERS.get(letter, letter) for letter in letters]
        if listed is None:
            listed = [LINEAR, "moe", FULL, "mlp"]
        fields.get("num_hidden_layers")  # which transformers too reads off the pattern
        if not isinstance(listed, list) or not 0 < len(listed) <= LAYERS:
            raise fields.refusal(
                "layers_block_type", f"should list the layers' kinds, but is {quoted(listed)}"
            )
        return self._of(listed, fields)

    def _of(self, listed: Sequence[object], fields: Fields) -> Settings:
        blocks: list[tuple[str, str | None]] = []
        for word in listed:
            kind = KINDS.get(word) if isinstance(word, str) else None
            if kind is None:
                raise fields.refusal(
                    "layers_block_type", f"has {quoted(word)}, not one of {', '.join(KINDS)}"
                )
            if kind in (LINEAR, FULL):
                blocks.append((kind, None))
            elif blocks and blocks[-1][1] is None:
                blocks[-1] = (blocks[-1][0], kind)
            else:
                raise fields.refusal("layers_block_type", f"has {quoted(word)} that follows no mixer")
        return {"pattern": tuple(blocks), "layers": len(blocks)}

    def _from_gguf(self, fields: Fields) -> Settings:
        """Key-value heads and MLPs are listed for each of their layers; one of Mamba 2 has neither."""
        count, found = fields.integer("block_count", high=LAYERS), []
        fields.get("attention.layer_norm_epsilon")  # of layers that predict further tokens
        for key in (HEADS, HIDDEN):
            listed = fields.get(key)
            if not isinstance(listed, np.ndarray) or len(listed) != count:
                raise fields.refusal(key, f"should list a number for each of {count} layers")
            if len(set(listed.tolist()) - {0}) > 1:
                raise fields.refusal(key, "should list one number and 0")
            found.append([int(each) for each in listed])
        experts = fields.integer("expert_count", 0, low=0)
        feed = "moe" if experts else "mlp"
        words = [FULL if heads else feed if hidden else LINEAR for heads, hidden in zip(*found, strict=True)]
        sizes = {"kv_heads": max(found[0]) or 1, "expert_hidden" if experts else "hidden": max(found[1]) or 1}
        bias = any(name.endswith("ffn_up.bias") for name in fields.tensors)
        return self._of(words, fields) | {"mlp_bias": bias} | ({"hidden": 1} if experts else UNUSED) | sizes

    def write(self, known: Settings, gguf: bool) -> Entries:
        words = [kind for block in known["pattern"] for kind in block if kind]
        if not gguf:
            return {"layers_block_type": words}
        if "mlp" in words and "moe" in words:
            raise UserError("MLPs in some layers and experts in others is not supported in GGUF")
        hidden = known["expert_hidden"] if "moe" in words else known["hidden"]
        return {
            "block_count": len(words),
            HEADS: np.array([known["kv_heads"] if word == FULL else 0 for word in words], np.int32),
            HIDDEN: np.array([hidden if word in ("mlp", "moe") else 0 for word in words], np.int32),
            "attention.layer_norm_epsilon": float(known["eps"]),  # which llama.cpp asks for
        }


def mixers(config: Decoder | Encoder) -> Sequence[int]:
    """Their number of each block's mixer."""
    numbers, n = [], 0
    for block in config.blocks:
        numbers.append(n)
        n += 1 if block.mlp is None else 2
    return numbers


def feeds(config: Decoder | Encoder) -> Sequence[int]:
    """Their number of what follows each block's mixer."""
    return [n + 1 for n in mixers(config)]


def numbered(
    rules: Sequence[Rule], number: Callable[[Decoder | Encoder], Sequence[int]], when: Callable[[Block], bool]
) -> tuple[Rule, ...]:
    """The rules, for these blocks, by their numbers."""
    return tuple(replace(rule, number=number, when=when) for rule in rules)


HF = (
    *naming.weights(("backbone.embeddings", "embedding"), ("backbone.norm_f", "norm"), ("lm_head", "head")),
    *numbered(naming.weights((f"{LAYER}.norm", "blocks.{n}.attention_norm")), mixers, lambda block: True),
    *numbered(
        naming.weights((f"{LAYER}.norm", "blocks.{n}.mlp_norm")), feeds, lambda block: block.mlp is not None
    ),
    *numbered(granitemoehybrid.hf_mamba(f"{LAYER}.mixer"), mixers, is_mamba),
    *numbered(
        naming.weights(
            *(
                (f"{LAYER}.mixer.{theirs}_proj", f"blocks.{{n}}.attention.{ours}")
                for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out"))
            )
        ),
        mixers,
        attends,
    ),
    *numbered(
        naming.pairs(
            *((f"{LAYER}.mixer.{name}_proj", f"blocks.{{n}}.mlp.{name}") for name in ("up", "down"))
        ),
        feeds,
        lambda block: isinstance(block.mlp, MLP),
    ),
    *numbered(
        (
            Rule(f"{LAYER}.mixer.gate.e_score_correction_bias", "blocks.{n}.mlp.choice_bias", same),
            *naming.weights(
                (f"{LAYER}.mixer.gate", "blocks.{n}.mlp.router"),
                (f"{LAYER}.mixer.fc1_latent_proj", "blocks.{n}.mlp.latent_down"),
                (f"{LAYER}.mixer.fc2_latent_proj", "blocks.{n}.mlp.latent_up"),
                *(
                    (f"{LAYER}.mixer.{theirs}.{name}_proj", f"blocks.{{n}}.mlp.{ours}.{name}")
                    for theirs, ours in (("experts.{e}", "experts.{e}"), ("shared_experts", "shared"))
                    for name in ("up", "down")
                ),
            ),
        ),
        feeds,
        lambda block: isinstance(block.mlp, MoE),
    ),
)


GGUF = (
    *naming.GGUF_EMBEDDINGS,
    *numbered(naming.GGUF_NORMS[:1], mixers, lambda block: True),
    *numbered(
        naming.weights(("blk.{n}.attn_norm", "blocks.{n}.mlp_norm")),
        feeds,
        lambda block: block.mlp is not None,
    ),
    *numbered(granitemoehybrid.gguf_mamba(), mixers, is_mamba),
    *numbered(naming.weights(*naming.GGUF_QUERY_KEY, naming.GGUF_VALUE, naming.GGUF_OUT), mixers, attends),
    *numbered(naming.pairs(*naming.GGUF_MLP[1:]), feeds, lambda block: isinstance(block.mlp, MLP)),
    *numbered(
        (
            *(rule for rule in naming.GGUF_EXPERTS if "gate_exps" not in rule.theirs),
            *naming.GGUF_CHOICE_BIAS,
            *naming.GGUF_SHARED_EXPERT[2:],
            *naming.weights(
                ("blk.{n}.ffn_latent_down", "blocks.{n}.mlp.latent_down"),
                ("blk.{n}.ffn_latent_up", "blocks.{n}.mlp.latent_up"),
            ),
        ),
        feeds,
        lambda block: isinstance(block.mlp, MoE),
    ),
)


class Experts(Row):
    """The keys of experts in GGUF, where there are any."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if not fields.gguf or not fields.integer("expert_count", 0, low=0):
            return {}
        found = {name: fields.integer(key) for name, key in EXPERT_KEYS.items()}
        found |= {name: fields.integer(key, 1) for name, key in GROUP_KEYS.items()}
        fields.only("expert_shared_count", (1,), "several shared experts")
        fields.only("expert_feed_forward_length", (known["expert_hidden"],), "experts of another width")
        found["normalised"] = fields.flag("expert_weights_norm", False)
        return found | {"routed_scale": fields.number("expert_weights_scale", 1.0)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if not gguf or "experts" not in known or all(kind != "moe" for _, kind in known["pattern"]):
            return {}
        return {
            **{key: known[name] for name, key in (EXPERT_KEYS | GROUP_KEYS).items()},
            "expert_shared_count": 1,
            "expert_feed_forward_length": known["expert_hidden"],
            "expert_weights_norm": known["normalised"],
            "expert_weights_scale": float(known["routed_scale"]),
        }


EXPERT_KEYS = {"experts": "expert_count", "top_k": "expert_used_count"}
EXPERT_KEYS |= {"shared": "expert_shared_feed_forward_length"}
GROUP_KEYS = {"groups": "expert_group_count", "top_groups": "expert_group_used_count"}


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    norm, activation = Norm("rms", known["eps"]), known["activation"]
    mixes = {
        LINEAR: granitemoehybrid.mamba2(known, least=known["least"]),
        FULL: decoders.heads(known["heads"], known["kv_heads"], key_size=known["head_size"]),
    }
    router = Router(
        "sigmoid",
        choice_bias=True,
        groups=known["groups"],
        top_groups=known["top_groups"],
        group_of_two=True,
        scale=known["routed_scale"],
    )
    experts = MoE(
        known["experts"],
        known["top_k"],
        known["expert_hidden"],
        activation,
        gated=False,
        normalised=known["normalised"],
        shared=known["shared"],
        router=router,
        latent=known["latent"],
    )
    mlp = MLP(known["hidden"], activation, gated=False, bias=known["mlp_bias"])
    if known["mlp_bias"] and any(kind == "moe" for _, kind in known["pattern"]):
        raise Fields({}, known["where"]).refusal("mlp_bias", "is true: biases of experts are not supported")
    return Decoder(
        known["vocab"],
        known["width"],
        known["context"],
        tuple(
            Block(mixes[mixer], {"mlp": mlp, "moe": experts, None: None}[kind], norm)
            for mixer, kind in known["pattern"]
        ),
        norm,
        known["tied"],
    )


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    each = [block.attention for block in config.blocks if is_mamba(block)]
    kinds = {MLP: "mlp", MoE: "moe", type(None): None}
    pattern = ((LINEAR if is_mamba(block) else FULL, kinds[type(block.mlp)]) for block in config.blocks)
    known = decoders.settings(config) | granitemoehybrid.described(each) | {"pattern": tuple(pattern)}
    latents = [block.mlp.latent for block in config.blocks if isinstance(block.mlp, MoE)]
    known["latent"] = latents[0] if latents else None
    return known | {"least": each[0].least} if each else known


SIZES = rows.replaced(
    rows.SIZES,
    Field("eps", "layer_norm_epsilon", "attention.layer_norm_rms_epsilon", NUMBER),
    Field("kv_heads", "num_key_value_heads", None),
    Field("activation", "mlp_hidden_act", None, rows.ACTIVATION),
    without=("rope", "layers"),
)
FAMILY = llama.FAMILY.but(
    "nemotron_h",
    "NemotronHForCausalLM",
    modules=(("backbone.", "model."),),
    hf=HF,
    gguf=GGUF,
    architecture="nemotron_h",
    sparse_architecture="nemotron_h_moe",
    ignored_gguf=(),
    rows=(
        Pattern(),
        *SIZES,
        granitemoehybrid.InGGUF(),
        Experts(),
        Field("hidden", "intermediate_size", None),
        Field("mlp_bias", "mlp_bias", None, FLAG),
        Field("mamba_heads", "mamba_num_heads", None),
        Field("mamba_size", "mamba_head_dim", None),
        Field("state_size", "ssm_state_size", None),
        Field("mamba_groups", "n_groups", None, alias="mamba_n_groups"),
        Field("conv", "conv_kernel", None, alias="mamba_d_conv"),
        Field("conv_bias", "use_conv_bias", None, FLAG, alias="mamba_conv_bias"),
        Field("mamba_bias", "use_bias", None, FLAG),
        Field("least", "time_step_min", None, NUMBER, alias="mamba_dt_min"),
        Field("experts", "n_routed_experts", None, rows.TOP_K),
        Field("top_k", "num_experts_per_tok", None, rows.TOP_K),
        Field("expert_hidden", "moe_intermediate_size", None),
        *rows.GROUPS,
        rows.ROUTED_SCALE,
        Field("shared", "moe_shared_expert_intermediate_size", None),
        Only("mamba_hidden_act", None, ("silu",), "another activation"),
        Field("latent", "moe_latent_size", "moe_latent_size", missing=None),
        Only("sliding_window", None, (None,), "a sliding window"),
    ),
    build=decoder,
    describe=settings,
    defaults={"vocab": 131072, "width": 4096, "heads": 32, "kv_heads": 8, "head_size": 128, "context": 4096}
    | {"eps": 1e-5, "activation": "relu2", "hidden": 21504, "mamba_heads": 128, "mamba_size": 64}
    | {
        "state_size": 128,
        "mamba_groups": 8,
        "conv": 4,
        "conv_bias": True,
        "mamba_bias": False,
        "least": 0.001,
    }
    | {"experts": 8, "top_k": 2, "expert_hidden": 7688, "shared": 7688, "groups": 1, "top_groups": 1}
    | {"normalised": True, "routed_scale": 1.0, "latent": None},
    nulls={"latent": None},
    # llama.cpp bounds no step; 0.001 is the bound of every published model.
    gguf_fixed={"activation": "relu2", "least": 0.001},
    forget=("head_size",),
    sparse=None,
    mixers=("mamba2", "mha", "gqa", "mqa"),
    prefix="backbone.",
    harmless=(
        *("attention_bias", "chunk_size", "mamba_chunk_size", "expand", "mamba_expand", "mamba_proj_bias"),
        *("mamba_ssm_cache_dtype", "moe_shared_expert_overlap", "mtp_*", "n_shared_experts", "time_step_*"),
        *("num_logits_to_keep", "num_nextn_predict_layers", "rescale_prenorm_residual", "residual_in_fp32"),
        *("use_mamba_kernels", "mamba_dt_*", "rope_theta", "partial_rotary_factor"),
    ),
    ignored_hf=("mtp.*",),
)
