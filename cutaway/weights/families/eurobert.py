"""EuroBERT (2503.05500): Llama whose tokens see both sides."""

from cutaway.model.config import Encoder
from cutaway.weights import bidirectional_decoders, naming, rows
from cutaway.weights.bidirectional_decoders import last_norm
from cutaway.weights.classifier_head import Head
from cutaway.weights.families import llama
from cutaway.weights.family import Only, shared

FAMILY = llama.FAMILY.but(
    "eurobert",
    "EuroBertModel",
    hf=last_norm(naming.HF_DECODER, "model.norm."),
    gguf=last_norm(naming.GGUF_PLAIN, "output_norm."),
    rows=(
        *rows.replaced(llama.FAMILY.rows, without=("tied", "is_causal")),
        Only("is_causal", "attention.causal", (False,), "attention to earlier tokens alone"),
    ),
    defaults={"vocab": 128256, "width": 768, "hidden": 3072, "layers": 12, "heads": 12, "context": 8192}
    | {"eps": 1e-5},
    gguf_fixed={"head_size": shared},
    build=bidirectional_decoders.encoder,
    describe=bidirectional_decoders.settings,
    config=Encoder,
    head=Head("dense", "gelu", pooling="late", others=("bos", "mean", "late")),
    harmless=("tie_word_embeddings", "classifier_pooling", "clf_pooling"),
    ignored_hf=(*llama.FAMILY.ignored_hf, "lm_head.*", "dense.*", "classifier.*"),
)
