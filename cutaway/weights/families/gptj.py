"""GPT-J (2021): attention and MLP side by side behind one layer norm, neighbouring pairs, a biased head."""

from cutaway.errors import UserError
from cutaway.position import rope
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families.gpt2 import WORDS, hidden
from cutaway.weights.family import (
    LAYER_COUNT,
    NUMBER,
    Entries,
    Family,
    Field,
    Only,
    Row,
    Settings,
    shared,
    words,
)
from cutaway.weights.fields import Fields

LAYER = "transformer.h.{n}"


class Rope(Row):
    """Its configs say how many dimensions of a head rotate; the base is always the same."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        size = fields.integer("rotary_dim") if fields.stated("rotary_dim") else 64
        return {"rope": rope.Config(size, interleaved=True)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if known["rope"] is None:
            raise UserError("none of its layers rotates")
        return {"rotary_dim": known["rope"].size}


HF = naming.pairs(
    ("transformer.wte", "embedding"),
    ("lm_head", "head"),
    ("transformer.ln_f", "norm"),
    (f"{LAYER}.ln_1", "blocks.{n}.attention_norm"),
    (f"{LAYER}.attn.q_proj", "blocks.{n}.attention.query"),
    (f"{LAYER}.attn.k_proj", "blocks.{n}.attention.key"),
    (f"{LAYER}.attn.v_proj", "blocks.{n}.attention.value"),
    (f"{LAYER}.attn.out_proj", "blocks.{n}.attention.out"),
    (f"{LAYER}.mlp.fc_in", "blocks.{n}.mlp.up"),
    (f"{LAYER}.mlp.fc_out", "blocks.{n}.mlp.down"),
)

FAMILY = Family(
    "gptj",
    "GPTJForCausalLM",
    hf=HF,
    gguf=(),
    rows=(
        Field("layers", "n_layer", None, LAYER_COUNT, alias="num_hidden_layers"),
        rows.Vocab("vocab", "vocab_size", None),
        Field("width", "n_embd", None, alias="hidden_size"),
        Field("context", "n_positions", None, alias="max_position_embeddings"),
        Field("heads", "n_head", None, alias="num_attention_heads"),
        Field("hidden", "n_inner", None),
        Field("eps", "layer_norm_epsilon", None, NUMBER),
        Field("activation", "activation_function", None, words(rows.ACTIVATIONS, WORDS)),
        Rope(),
        Only("tie_word_embeddings", None, (False,), "a tied head with a bias"),
        *rows.CAUSAL,
    ),
    build=decoders.decoder,
    describe=decoders.settings,
    defaults={"vocab": 50400, "width": 4096, "context": 2048, "layers": 28, "heads": 16, "eps": 1e-5}
    | {"hidden": hidden, "activation": "gelu_tanh"},
    nulls={"hidden": hidden},
    fixed={"head_size": shared, "kv_heads": rows.same_heads, "norm": "layer", "parallel": "shared"}
    | {"gated": False, "mlp_bias": True, "tied": False, "head_bias": True},
    prefix="transformer.",
    harmless=("n_ctx", "rotary", "scale_attn_weights"),
    ignored_hf=tuple(f"transformer.h.*.attn.{name}" for name in ("bias", "masked_bias", "causal_mask")),
)
