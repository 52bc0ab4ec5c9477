"""Falcon (2311.16867): attention and MLP side by side behind one layer norm or two; few key-value heads."""

from cutaway.model.block_config import Block
from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.families.gpt_bigcode import one_or_beside
from cutaway.weights.family import NUMBER, Entries, Family, Field, Only, Present, Row, Settings, shared
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same, split

LAYER = "transformer.h.{n}"


def two_norms(block: Block) -> bool:
    """Whether attention and MLP have norms of their own, as in Falcon 40B."""
    return block.parallel == "own"


def norm(theirs: str, ours: str, two: bool) -> tuple[Rule, ...]:
    """A norm's names where there are two of them in parallel, or otherwise."""
    return tuple(
        Rule(f"{theirs}.{part}", f"blocks.{{n}}.{ours}.{part}", same, lambda b: two_norms(b) is two)
        for part in ("weight", "bias")
    )


class Layout(Row):
    """Key-value heads and norms: Falcon 40B's ("new"), Falcon 7B's (one key, one norm), or GPT-2's."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return {"parallel": "own" if "blk.0.attn_norm_2.weight" in fields.tensors else "shared"}
        usual = {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True}
        new, multi, parallel = (  # a null is no, as transformers takes it
            fields.flag(key, False if fields.has(key) else default) for key, default in usual.items()
        )
        norms = fields.integer("num_ln_in_parallel_attn", None)
        heads = fields.integer("num_kv_heads", known["heads"])
        if (new and not parallel) or (not new and norms not in (None, 1)):
            raise fields.refusal("parallel_attn", "and the number of norms are of no Falcon")
        if new:
            return {"kv_heads": heads, "parallel": "shared" if norms == 1 else "own"}
        if not multi and heads != known["heads"]:
            raise fields.refusal("num_kv_heads", "needs multi_query or new_decoder_architecture")
        return {"kv_heads": 1 if multi else heads, "parallel": "shared" if parallel else None}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            return {}
        heads, parallel = known["kv_heads"], known["parallel"]
        new = parallel == "own" or 1 < heads < known["heads"]
        own = {"new_decoder_architecture": new, "multi_query": heads == 1 and not new, "num_kv_heads": heads}
        norms = {"num_ln_in_parallel_attn": 2 if parallel == "own" else 1 if new else None}
        return own | norms | {"parallel_attn": parallel is not None}


FAMILY = llama.FAMILY.but(
    "falcon",
    "FalconForCausalLM",
    hf=(
        *naming.pairs(
            ("transformer.word_embeddings", "embedding"),
            (f"{LAYER}.self_attention.dense", "blocks.{n}.attention.out"),
            (f"{LAYER}.mlp.dense_h_to_4h", "blocks.{n}.mlp.up"),
            (f"{LAYER}.mlp.dense_4h_to_h", "blocks.{n}.mlp.down"),
            ("transformer.ln_f", "norm"),
            ("lm_head", "head"),
        ),
        *norm(f"{LAYER}.post_attention_layernorm", "mlp_norm", False),
        *norm(f"{LAYER}.input_layernorm", "attention_norm", False),
        *norm(f"{LAYER}.ln_attn", "attention_norm", True),
        *norm(f"{LAYER}.ln_mlp", "mlp_norm", True),
        *(
            Rule(
                f"{LAYER}.self_attention.query_key_value.{part}",
                naming.query_key_value(part),
                one_or_beside("groups"),
            )
            for part in ("weight", "bias")
        ),
    ),
    gguf=(
        *naming.pairs(("token_embd", "embedding"), ("output", "head"), ("output_norm", "norm")),
        *norm("blk.{n}.attn_norm", "attention_norm", False),
        *norm("blk.{n}.attn_norm_2", "attention_norm", True),
        *norm("blk.{n}.attn_norm", "mlp_norm", True),
        Rule("blk.{n}.attn_qkv.weight", naming.query_key_value("weight"), split),
        *naming.weights(naming.GGUF_OUT, *naming.GGUF_MLP[1:]),
    ),
    rows=(
        *rows.replaced(
            rows.SIZES,
            Field("kv_heads", None, "attention.head_count_kv", missing=rows.same_heads),
            Field("head_size", None, None),
            Field("eps", "layer_norm_epsilon", "attention.layer_norm_epsilon", NUMBER),
            Field("activation", "activation", None, rows.ACTIVATION),
        ),
        Field("hidden", "ffn_hidden_size", "feed_forward_length", each_layer=True),
        *rows.ONE_MLP,
        *(Present(name, "bias", None) for name in ("bias", "out_bias", "mlp_bias")),
        Only(
            "alibi",
            None,
            (False,),
            "ALiBi of biases that transformers rounds to bfloat16, whatever the dtype,",
        ),
        Layout(),
    ),
    defaults={"eps": 1e-5, "activation": "gelu", "tied": True, "hidden": lambda known: 4 * known["width"]},
    nulls={"hidden": lambda known: 4 * known["width"]},
    fixed={"norm": "layer", "gated": False},
    gguf_fixed={"head_size": shared, "activation": "gelu", "bias": False, "out_bias": False}
    | {"mlp_bias": False},
    ignored_gguf=(),
    prefix="transformer.",
    ignored_hf=(f"{LAYER.replace('{n}', '*')}.self_attention.rotary_emb.inv_freq",),
)
