"""BioGPT (2210.10341): GPT-2's kin with scaled embeddings and learned positions, two of which are unused."""

from cutaway.position import learned
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families import xglm
from cutaway.weights.families.opt import SIZES, UNUSED
from cutaway.weights.family import Family, Field, Present, shared
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

FAMILY = Family(
    "biogpt",
    "BioGptForCausalLM",
    bypassed=("embed_positions",),
    hf=(
        Rule("biogpt.embed_positions.weight", "position.weight", same),
        *naming.renamed(
            naming.pairs(
                ("model.embed_tokens", "embedding"),
                ("output_projection", "head"),
                ("model.layer_norm", "norm"),
                *xglm.BLOCK,
            ),
            ("model.", "biogpt."),
        ),
    ),
    gguf=(),
    rows=(
        *SIZES,
        Field("hidden", "intermediate_size", None),
        Field("activation", "hidden_act", None, rows.ACTIVATION),
        Present("tied", "tie_word_embeddings", None, absent=True),
        xglm.Scale(),
        *rows.CAUSAL,
    ),
    build=decoders.decoder,
    describe=decoders.settings,
    defaults={"vocab": 42384, "context": 1024, "width": 1024, "hidden": 4096, "layers": 24, "heads": 16}
    | {"activation": "gelu", "tied": True},
    fixed={"head_size": shared, "kv_heads": rows.same_heads, "rope": None, "norm": "layer", "eps": 1e-5}
    | {"gated": False, "bias": True, "out_bias": True, "mlp_bias": True}
    | {"position": lambda known: learned.Config(known["context"], UNUSED)},
    prefix="biogpt.",
    harmless=("layer_norm_eps", "layerdrop", "activation_dropout"),
    ignored_hf=(),
)
