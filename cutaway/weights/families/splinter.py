"""Splinter (2101.00438): BERT; the head that selects the answer's span is not read."""

from cutaway.weights import naming
from cutaway.weights.families import bert

FAMILY = bert.FAMILY.but(
    "splinter",
    "SplinterModel",
    hf=naming.renamed(bert.HF, ("bert.", "splinter.")),
    gguf=(),
    head=None,
    prefix="splinter.",
    ignored_hf=("splinter.embeddings.position_ids", "splinter_qass.*"),
)
