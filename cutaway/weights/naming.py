"""Names of weights that families share, in Hugging Face's files and in GGUF's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from cutaway.model.config import Block
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import plus_one, row, same, split, stack


def pairs(*names: tuple[str, str], parts: Sequence[str] = ("weight", "bias")) -> tuple[Rule, ...]:
    """Rules for modules whose weights are stored unchanged."""
    return tuple(Rule(f"{theirs}.{part}", f"{ours}.{part}", same) for theirs, ours in names for part in parts)


def weights(*names: tuple[str, str]) -> tuple[Rule, ...]:
    """The same for modules without a bias."""
    return pairs(*names, parts=("weight",))


def renamed(
    rules: Sequence[Rule], *changes: tuple[str, str], without: Sequence[str] = ()
) -> tuple[Rule, ...]:
    """The rules with a part of their names changed, one change after another, but those that hold a word."""
    kept = []
    for rule in rules:
        theirs = rule.theirs
        if any(word in theirs for word in without):
            continue
        for old, new in changes:
            theirs = theirs.replace(old, new)
        kept.append(replace(rule, theirs=theirs))
    return tuple(kept)


def of_layers(rules: Iterable[Rule], when: Callable[[Block], bool], part: str = "") -> tuple[Rule, ...]:
    """The rules; those with ``part`` in our names apply to some of their layers only."""

    def limited(rule: Rule) -> Rule:
        before = rule.when
        both = when if before is None else lambda block: when(block) and before(block)
        return replace(rule, when=both) if part in str(rule.ours) else rule

    return tuple(map(limited, rules))


MIXER = ".attention."  # in our names of a layer's mixer, but for the norm before it


def query_key_value(part: str) -> tuple[str, str, str]:
    """Our three matrices, or biases, that some families have in one."""
    return tuple(f"blocks.{{n}}.attention.{name}.{part}" for name in ("query", "key", "value"))  # type: ignore[return-value]


def query_key_value_apart(prefix: str) -> tuple[Rule, ...]:
    """Rules of query, key and value as three modules, in encoders."""
    theirs, ours = f"{prefix}layers.{{n}}.self_attn", "blocks.{n}.attention"
    return pairs(*((f"{theirs}.{name[0]}_proj", f"{ours}.{name}") for name in ("query", "key", "value")))


HF_DECODER = (
    *pairs(
        ("model.embed_tokens", "embedding"),
        ("lm_head", "head"),
        ("model.norm", "norm"),
        ("model.layers.{n}.self_attn.q_proj", "blocks.{n}.attention.query"),
        ("model.layers.{n}.self_attn.k_proj", "blocks.{n}.attention.key"),
        ("model.layers.{n}.self_attn.v_proj", "blocks.{n}.attention.value"),
        ("model.layers.{n}.self_attn.o_proj", "blocks.{n}.attention.out"),
        ("model.layers.{n}.mlp.gate_proj", "blocks.{n}.mlp.gate"),
        ("model.layers.{n}.mlp.up_proj", "blocks.{n}.mlp.up"),
        ("model.layers.{n}.mlp.down_proj", "blocks.{n}.mlp.down"),
        ("model.layers.{n}.input_layernorm", "blocks.{n}.attention_norm"),
        ("model.layers.{n}.post_attention_layernorm", "blocks.{n}.mlp_norm"),
    ),
)
HF_SANDWICH = renamed(  # Gemma's names
    (
        *HF_DECODER,
        *pairs(
            ("model.layers.{n}.post_feedforward_layernorm", "blocks.{n}.mlp_post_norm"),
            ("model.layers.{n}.after_attention", "blocks.{n}.attention_post_norm"),
        ),
    ),
    ("post_attention_layernorm", "pre_feedforward_layernorm"),
    ("after_attention", "post_attention_layernorm"),
)
HF_PRE_FF = renamed(  # Jamba's names
    HF_DECODER,
    ("post_attention_layernorm", "pre_ff_layernorm"),
    (".mlp.", ".feed_forward."),
    ("model.norm.", "model.final_layernorm."),
)

HF_GATE_UP = (
    *renamed(HF_DECODER, without=("gate_proj", "up_proj")),
    Rule(
        "model.layers.{n}.mlp.gate_up_proj.weight",
        ("blocks.{n}.mlp.gate.weight", "blocks.{n}.mlp.up.weight"),
        split,
    ),
)
HF_QK_NORM = weights(
    ("model.layers.{n}.self_attn.q_norm", "blocks.{n}.attention.query_norm"),
    ("model.layers.{n}.self_attn.k_norm", "blocks.{n}.attention.key_norm"),
)
HF_EXPERTS = weights(  # of Qwen's mixtures
    ("model.layers.{n}.mlp.gate", "blocks.{n}.mlp.router"),
    ("model.layers.{n}.mlp.experts.{e}.gate_proj", "blocks.{n}.mlp.experts.{e}.gate"),
    ("model.layers.{n}.mlp.experts.{e}.up_proj", "blocks.{n}.mlp.experts.{e}.up"),
    ("model.layers.{n}.mlp.experts.{e}.down_proj", "blocks.{n}.mlp.experts.{e}.down"),
)


def one_more(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules of a family whose norms hold w where x is multiplied by w + 1."""
    return tuple(replace(rule, how=plus_one) if "norm" in rule.ours else rule for rule in rules)


HF_DEEPSEEK_EXPERTS = (
    *HF_EXPERTS,
    Rule("model.layers.{n}.mlp.gate.e_score_correction_bias", "blocks.{n}.mlp.choice_bias", same),
    *weights(
        ("model.layers.{n}.mlp.shared_experts.gate_proj", "blocks.{n}.mlp.shared.gate"),
        ("model.layers.{n}.mlp.shared_experts.up_proj", "blocks.{n}.mlp.shared.up"),
        ("model.layers.{n}.mlp.shared_experts.down_proj", "blocks.{n}.mlp.shared.down"),
    ),
)
GGUF_EMBEDDINGS = weights(("token_embd", "embedding"), ("output", "head"), ("output_norm", "norm"))
GGUF_QUERY_KEY = (
    ("blk.{n}.attn_q", "blocks.{n}.attention.query"),
    ("blk.{n}.attn_k", "blocks.{n}.attention.key"),
)
GGUF_VALUE = ("blk.{n}.attn_v", "blocks.{n}.attention.value")
GGUF_OUT = ("blk.{n}.attn_output", "blocks.{n}.attention.out")
GGUF_MLP = (
    ("blk.{n}.ffn_gate", "blocks.{n}.mlp.gate"),
    ("blk.{n}.ffn_up", "blocks.{n}.mlp.up"),
    ("blk.{n}.ffn_down", "blocks.{n}.mlp.down"),
)
GGUF_NORMS = weights(
    ("blk.{n}.attn_norm", "blocks.{n}.attention_norm"), ("blk.{n}.ffn_norm", "blocks.{n}.mlp_norm")
)
GGUF_ATTENTION = weights(*GGUF_QUERY_KEY, GGUF_VALUE, GGUF_OUT)

GGUF_PLAIN = (  # without biases, which llama.cpp does not read in most families
    *GGUF_EMBEDDINGS,
    *GGUF_NORMS,
    *GGUF_ATTENTION,
    *weights(*GGUF_MLP),
)
GGUF_BIASED = pairs(  # with biases, also those of layer norms
    ("token_embd", "embedding"),
    ("output", "head"),
    ("output_norm", "norm"),
    ("blk.{n}.attn_norm", "blocks.{n}.attention_norm"),
    ("blk.{n}.ffn_norm", "blocks.{n}.mlp_norm"),
    *GGUF_QUERY_KEY,
    GGUF_VALUE,
    GGUF_OUT,
    *GGUF_MLP,
)
GGUF_BIASED_QKV = (  # the same, with query, key and value in one
    *renamed(GGUF_BIASED, without=("attn_q", "attn_k", "attn_v")),
    *(Rule(f"blk.{{n}}.attn_qkv.{part}", query_key_value(part), split) for part in ("weight", "bias")),
)
GGUF_SANDWICH = weights(
    ("blk.{n}.post_attention_norm", "blocks.{n}.attention_post_norm"),
    ("blk.{n}.post_ffw_norm", "blocks.{n}.mlp_post_norm"),
)
GGUF_GATE_UP = (
    *GGUF_EMBEDDINGS,
    *GGUF_NORMS,
    *pairs(*GGUF_QUERY_KEY, GGUF_VALUE),
    *weights(GGUF_OUT, GGUF_MLP[2]),
    Rule("blk.{n}.ffn_up.weight", ("blocks.{n}.mlp.gate.weight", "blocks.{n}.mlp.up.weight"), split),
)
GGUF_QK_NORM = weights(
    ("blk.{n}.attn_q_norm", "blocks.{n}.attention.query_norm"),
    ("blk.{n}.attn_k_norm", "blocks.{n}.attention.key_norm"),
)
GGUF_EXPERTS = (
    *weights(("blk.{n}.ffn_gate_inp", "blocks.{n}.mlp.router")),
    Rule("blk.{n}.ffn_gate_exps.weight", "blocks.{n}.mlp.experts.{e}.gate.weight", stack),
    Rule("blk.{n}.ffn_up_exps.weight", "blocks.{n}.mlp.experts.{e}.up.weight", stack),
    Rule("blk.{n}.ffn_down_exps.weight", "blocks.{n}.mlp.experts.{e}.down.weight", stack),
)
GGUF_CHOICE_BIAS = (Rule("blk.{n}.exp_probs_b.bias", "blocks.{n}.mlp.choice_bias", same),)
GGUF_SHARED_EXPERT = (
    Rule("blk.{n}.ffn_gate_inp_shexp.weight", "blocks.{n}.mlp.shared_gate.weight", row),
    *weights(
        ("blk.{n}.ffn_gate_shexp", "blocks.{n}.mlp.shared.gate"),
        ("blk.{n}.ffn_up_shexp", "blocks.{n}.mlp.shared.up"),
        ("blk.{n}.ffn_down_shexp", "blocks.{n}.mlp.shared.down"),
    ),
)
GGUF_DEEPSEEK_EXPERTS = (*GGUF_EXPERTS, *GGUF_CHOICE_BIAS, *GGUF_SHARED_EXPERT[1:])
