"""The encoder of BERT for generation (1907.12461): BERT without segments."""

from cutaway.weights import naming, rows
from cutaway.weights.families import bert

ALIASES = ("bert-generation",)

FAMILY = bert.FAMILY.but(
    "bert_generation",
    "BertGenerationEncoder",
    hf_type="bert-generation",
    hf=naming.renamed(bert.HF, ("bert.", ""), without=("token_type_embeddings",)),
    gguf=(),
    rows=rows.replaced(bert.FAMILY.rows, without=("segments",)),
    defaults={"vocab": 50358, "width": 1024, "hidden": 4096, "layers": 24, "heads": 16},
    fixed={"segments": 0},
    head=None,
    prefix="",
    ignored_hf=("embeddings.position_ids",),
)
