"""jina-embeddings-v3 (2409.10173) without the adapters of its tasks: XLM-RoBERTa that rotates."""

from cutaway.weights import naming, rotary
from cutaway.weights.families import bert, roberta
from cutaway.weights.family import Field, shared
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same, split

ALIASES = ("jina-bert-v3",)
LAYER, OURS = "roberta.encoder.layers.{n}", "blocks.{n}"

FAMILY = bert.FAMILY.but(
    "jina_embeddings_v3",
    "JinaEmbeddingsV3Model",
    modules=(
        *naming.query_key_value_apart("roberta."),
        (".emb_ln.", ".embeddings.LayerNorm."),
        (".encoder.layers.", ".layers."),
        (".mixer.out_proj.", ".self_attn.o_proj."),
        (".norm1.", ".post_attention_layernorm."),
        (".norm2.", ".post_mlp_layernorm."),
    ),
    hf=(
        *naming.renamed((bert.HF[0], bert.HF[2]), ("bert.", "roberta.")),
        *naming.pairs(
            ("roberta.emb_ln", "norm"),
            (f"{LAYER}.mixer.out_proj", f"{OURS}.attention.out"),
            (f"{LAYER}.norm1", f"{OURS}.attention_norm"),
            (f"{LAYER}.mlp.fc1", f"{OURS}.mlp.up"),
            (f"{LAYER}.mlp.fc2", f"{OURS}.mlp.down"),
            (f"{LAYER}.norm2", f"{OURS}.mlp_norm"),
        ),
        *(
            Rule(f"{LAYER}.mixer.Wqkv.{part}", naming.query_key_value(part), split)
            for part in ("weight", "bias")
        ),
    ),
    gguf=(
        Rule("token_embd.weight", "embedding.weight", same),
        Rule("token_types.weight", "segment.weight", same),
        *naming.pairs(
            ("token_embd_norm", "norm"),
            ("blk.{n}.attn_output_norm", "blocks.{n}.attention_norm"),
            ("blk.{n}.layer_output_norm", "blocks.{n}.mlp_norm"),
            naming.GGUF_OUT,
            *naming.GGUF_MLP[1:],
        ),
        *(
            Rule(f"blk.{{n}}.attn_qkv.{part}", naming.query_key_value(part), split)
            for part in ("weight", "bias")
        ),
    ),
    rows=(*bert.FAMILY.rows, Field("head_size", None, None), rotary.Rope()),
    defaults={"vocab": 250002, "width": 1024, "hidden": 4096, "layers": 24, "heads": 16, "context": 8194}
    | {"segments": 1, "eps": 1e-5, "head_size": shared, "rope_base": 20000.0},
    fixed={"learned": False},
    gguf_fixed={"head_size": shared},
    architecture="jina-bert-v3",
    head=roberta.HEAD,
    prefix="roberta.",
    ignored_hf=("roberta.pooler.*", "lm_head.*", "classifier.*"),
)
