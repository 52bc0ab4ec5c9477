"""Trinity (Arcee, 2025): gated attention, norms before and after each half, sigmoid-scored experts.

Of four layers three are local; the global ones have no positions.
"""

from typing import Any

from cutaway.errors import UserError
from cutaway.layers.config import Norm
from cutaway.model.config import Decoder
from cutaway.model.kinds import mixer
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import NUMBER, Entries, Family, Field, Only, Row, Settings
from cutaway.weights.fields import Fields

EVERY = 4  # of so many layers one is global


def decoder(known: Settings, **more: Any) -> Decoder:
    """The decoder of these settings, whose attention is gated."""
    norm = Norm("rms", known["eps"])
    ropes = known.get("ropes") or decoders.positions(known, known["windows"])
    mixers = tuple(
        mixer(
            "gated" if window is None else "gated_local",
            heads=heads,
            kv_heads=known["kv_heads"],
            key_size=known["head_size"],
            position=position,
            qk_norm=norm,
            **({} if window is None else {"window": window}),
            **more,
        )
        for window, position, heads in zip(
            known["windows"],
            ropes,
            known.get("heads_of_layers") or (known["heads"],) * known["layers"],
            strict=True,
        )
    )
    return decoders.decoder(known | {"mixers": mixers})


class Embedding(Row):
    """Whether embeddings are multiplied by the root of the width."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        scaled = fields.gguf or fields.flag("mup_enabled", False)  # llama.cpp always does so
        return {"embedding_scale": known["width"] ** 0.5 if scaled else 1.0}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {} if gguf else {"mup_enabled": known["embedding_scale"] != 1.0}


class LayerTypes(rows.LayerTypes):
    """A key says of how many layers one is global."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        every = EVERY if fields.gguf else fields.integer("global_attn_every_n_layers", EVERY)
        return rows.LayerTypes(every, key=None).read(fields, known, own)

    def write(self, known: Settings, gguf: bool) -> Entries:
        is_local = [window is not None for window in known["windows"]]
        if gguf and is_local != rows.every(EVERY, len(is_local)):
            raise UserError(f"another pattern than a global layer in {EVERY} is not supported by llama.cpp")
        return super().write(known, gguf)


FAMILY = llama.FAMILY.but(
    "afmoe",
    "AfmoeForCausalLM",
    hf=(
        *naming.renamed(
            naming.HF_SANDWICH,
            ("pre_feedforward_layernorm", "pre_mlp_layernorm"),
            ("post_feedforward_layernorm", "post_mlp_layernorm"),
        ),
        *naming.HF_QK_NORM,
        *naming.weights(("model.layers.{n}.self_attn.gate_proj", "blocks.{n}.attention.gate")),
        *naming.renamed(
            naming.HF_DEEPSEEK_EXPERTS,
            ("mlp.gate.e_score_correction_bias", "mlp.expert_bias"),
            ("mlp.gate.", "mlp.router.gate."),
        ),
    ),
    gguf=(
        *naming.GGUF_PLAIN,
        *naming.GGUF_SANDWICH,
        *naming.GGUF_QK_NORM,
        *naming.weights(("blk.{n}.attn_gate", "blocks.{n}.attention.gate")),
        *naming.GGUF_DEEPSEEK_EXPERTS,
    ),
    rows=(
        *rows.SIZES,
        *rows.DENSE[:1],
        *rows.experts("num_experts", rows.EXPERT_HIDDEN)[:3],
        rows.SigmoidScores(),
        rows.Normalised(),
        rows.NO_GROUPS,
        Field("routed_scale", "route_scale", "expert_weights_scale", NUMBER, missing=1.0),
        rows.SharedExperts("num_shared_experts"),
        rows.FirstDense("num_dense_layers"),
        LayerTypes(EVERY, key=None),
        Embedding(),
        Only("attention_bias", None, (False,), "biases of gated attention"),
        Only("score_func", None, ("sigmoid",), "another score of experts"),
        Only("route_norm", None, (True,), "weighing experts otherwise"),
        Only("n_group", None, (1,), "routing to groups of experts"),
        Only("num_expert_groups", None, (1,), "routing to groups of experts"),
    ),
    build=decoder,
    defaults={"head_size": 128, "context": 16384, "eps": 1e-5, "window": 1024}
    | {"experts": 64, "top_k": 6, "expert_hidden": 1408, "shared": 2, "routed_scale": 1.0},
    fixed={"nope": rows.nope_where_full, "post_norm": True, "normalised": True, **rows.SIGMOID},
    sparse=True,
    mixers=("gated", "gated_local"),
    harmless=("topk_group", "num_limited_groups", "load_balance_coeff"),
)
