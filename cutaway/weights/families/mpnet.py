"""MPNet (2004.09297): BERT with T5's relative positions beside the absolute ones, and no segments."""

from cutaway.position import t5
from cutaway.weights import naming, rows
from cutaway.weights.families import bert, roberta
from cutaway.weights.family import Only
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

LAYER, OURS = "mpnet.encoder.layer.{n}", "blocks.{n}"
BUCKETS = 32  # which transformers takes whatever a config says

FAMILY = bert.FAMILY.but(
    "mpnet",
    "MPNetModel",
    hf=(
        *naming.renamed(bert.HF[:2], ("bert.", "mpnet.")),
        *naming.pairs(
            ("mpnet.embeddings.LayerNorm", "norm"),
            *(
                (f"{LAYER}.attention.attn.{theirs}", f"{OURS}.attention.{ours}")
                for theirs, ours in {"q": "query", "k": "key", "v": "value", "o": "out"}.items()
            ),
            (f"{LAYER}.attention.LayerNorm", f"{OURS}.attention_norm"),
            (f"{LAYER}.intermediate.dense", f"{OURS}.mlp.up"),
            (f"{LAYER}.output.dense", f"{OURS}.mlp.down"),
            (f"{LAYER}.output.LayerNorm", f"{OURS}.mlp_norm"),
        ),
        Rule("mpnet.encoder.relative_attention_bias.weight", "blocks.0.attention.relative.weight", same),
    ),
    gguf=(),
    rows=(
        *rows.replaced(bert.FAMILY.rows, roberta.Context(pad=1), without=("segments",)),
        Only(
            "relative_attention_num_buckets", None, (BUCKETS,), "another number of buckets than transformers'"
        ),
    ),
    defaults={"vocab": 30527},
    fixed={"segments": 0, "one_relative": True, "relative": t5.Config(BUCKETS, both_ways=True)},
    head=roberta.HEAD,
    prefix="mpnet.",
    ignored_hf=("mpnet.embeddings.position_ids", "mpnet.pooler.*", "lm_head.*", "classifier.*"),
)
