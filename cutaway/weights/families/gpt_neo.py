"""GPT-Neo (2021): learned positions, every other layer local, scores that are not scaled."""

from typing import Any

from cutaway.position import learned
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families.gpt2 import WORDS, hidden
from cutaway.weights.family import (
    LAYER_COUNT,
    NUMBER,
    Entries,
    Family,
    Field,
    Present,
    Row,
    Settings,
    shared,
    words,
)
from cutaway.weights.fields import LAYERS, Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

LAYER = "transformer.h.{n}"
KINDS = ("global", "local")


class Layers(Row):
    """Which layers are local: ``attention_types`` lists patterns and how often each comes."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        window = fields.integer("window_size") if fields.stated("window_size") else 256
        types, layers = fields.get("attention_types"), known["layers"]
        kinds = _expanded([[["global", "local"], 12]] if types is None else types)
        if kinds is None or len(kinds) != layers or not set(kinds) <= set(KINDS):
            raise fields.refusal(
                "attention_types",
                f"should be patterns of global and local for {layers} layers, each with a number",
            )
        if fields.has("attention_layers") and fields.each_layer("attention_layers", layers, KINDS) != kinds:
            raise fields.refusal("attention_layers", "and attention_types disagree")
        return {"windows": tuple(window if kind == "local" else None for kind in kinds), "window": window}

    def write(self, known: Settings, gguf: bool) -> Entries:
        windows = known["windows"]
        kinds = ["global" if window is None else "local" for window in windows]
        size = next(filter(None, windows), 256)
        return {
            "attention_types": [[[kind], 1] for kind in kinds],
            "attention_layers": kinds,
            "window_size": size,
        }


def _expanded(types: Any) -> list[str] | None:
    """The kind of each layer, or None where ``types`` is no list of patterns and numbers."""
    kinds: list[str] = []
    for each in types if isinstance(types, list) else [None]:
        match each:
            case [list() as pattern, int() as times] if 0 <= len(pattern) * times <= LAYERS:
                kinds += [str(kind) for kind in pattern] * times
            case _:
                return None
    return kinds


FAMILY = Family(
    "gpt_neo",
    "GPTNeoForCausalLM",
    hf=(
        Rule("transformer.wpe.weight", "position.weight", same),
        *naming.pairs(
            ("transformer.wte", "embedding"),
            ("lm_head", "head"),
            ("transformer.ln_f", "norm"),
            (f"{LAYER}.ln_1", "blocks.{n}.attention_norm"),
            (f"{LAYER}.ln_2", "blocks.{n}.mlp_norm"),
            (f"{LAYER}.attn.attention.q_proj", "blocks.{n}.attention.query"),
            (f"{LAYER}.attn.attention.k_proj", "blocks.{n}.attention.key"),
            (f"{LAYER}.attn.attention.v_proj", "blocks.{n}.attention.value"),
            (f"{LAYER}.attn.attention.out_proj", "blocks.{n}.attention.out"),
            (f"{LAYER}.mlp.c_fc", "blocks.{n}.mlp.up"),
            (f"{LAYER}.mlp.c_proj", "blocks.{n}.mlp.down"),
        ),
    ),
    gguf=(),
    rows=(
        Field("layers", "num_layers", None, LAYER_COUNT, alias="num_hidden_layers"),
        rows.Vocab("vocab", "vocab_size", None),
        Field("width", "hidden_size", None),
        Field("context", "max_position_embeddings", None),
        Field("heads", "num_heads", None, alias="num_attention_heads"),
        Field("hidden", "intermediate_size", None),
        Field("eps", "layer_norm_epsilon", None, NUMBER),
        Field("activation", "activation_function", None, words(rows.ACTIVATIONS, WORDS)),
        Present("tied", "tie_word_embeddings", None, absent=True),
        Layers(),
        *rows.CAUSAL,
    ),
    build=decoders.decoder,
    describe=decoders.settings,
    defaults={"vocab": 50257, "width": 2048, "context": 2048, "layers": 24, "heads": 16, "eps": 1e-5}
    | {"hidden": hidden, "activation": "gelu_tanh", "tied": True},
    nulls={"hidden": hidden},
    fixed={"head_size": shared, "kv_heads": rows.same_heads, "rope": None, "norm": "layer", "scale": 1.0}
    | {"gated": False, "mlp_bias": True, "out_bias": True}
    | {"position": lambda known: learned.Config(known["context"])},
    prefix="transformer.",
    harmless=("resid_dropout", "embed_dropout", "gradient_checkpointing"),
    ignored_hf=tuple(f"transformer.h.*.attn.attention.{name}" for name in ("bias", "masked_bias")),
)
