"""ESM-1b and ESM-2 (2206.13517), of proteins: norms before each half of a block, learned or rotary positions.

Masked amino acids have no embedding, and the others grow instead (``token_dropout``).
"""

from cutaway.position import rope
from cutaway.weights import naming, rows
from cutaway.weights.families import bert, roberta
from cutaway.weights.family import FLAG, Entries, Family, Field, Only, Row, Settings, shared
from cutaway.weights.fields import Fields


class Positions(Row):
    """Whether positions are learned or rotate queries and keys."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        key = "position_embedding_type"
        rotates = fields.choice(key, {"absolute": False, "rotary": True}, "absolute")
        base = fields.number("rope_theta", 10000.0, low=1.0)
        return {"rope": rope.Config(shared(known), base), "learned": False} if rotates else {"rope": None}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf or known["rope"] is None:
            return {}
        return {"position_embedding_type": "rotary", "rope_theta": known["rope"].base}


class Masked(Row):
    """The id of a masked token, where its embedding is dropped."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        dropped = fields.flag("token_dropout", False)
        return {"mask": fields.integer("mask_token_id", low=0) if dropped else None}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf or known["mask"] is None:
            return {}
        return {"token_dropout": True, "mask_token_id": known["mask"]}


class Norms(Field):
    """Whether a norm follows the embeddings; null is none."""

    def _stated(self, fields: Fields, key: str, known: Settings, own: Family) -> bool:
        return fields.flag(key, False)


FAMILY = bert.FAMILY.but(
    "esm",
    "EsmModel",
    hf=(
        *naming.renamed(
            bert.HF,
            ("bert.", "esm."),
            ("embeddings.LayerNorm", "embeddings.layer_norm"),
            ("attention.output.LayerNorm", "attention.LayerNorm"),
            ("{n}.output.LayerNorm", "{n}.LayerNorm"),
            without=("token_type",),
        ),
        *naming.pairs(("esm.encoder.emb_layer_norm_after", "last_norm")),
    ),
    gguf=(),
    rows=(
        *rows.replaced(
            bert.FAMILY.rows,
            roberta.Context(1026),
            without=("segments", "position_embedding_type", "activation"),
        ),
        Positions(),
        Masked(),
        Norms("embedding_norm", "emb_layer_norm_before", None, FLAG),
        Only("hidden_act", None, ("gelu",), "another activation than GELU"),
        Only("is_folding_model", None, (False,), "the folding of proteins"),
        Only("esmfold_config", None, (None,), "the folding of proteins"),
    ),
    defaults={"embedding_norm": False},
    fixed={"segments": 0, "norm_first": True, "activation": "gelu"},
    head=roberta.HEAD,
    prefix="esm.",
    harmless=(*bert.FAMILY.harmless, "vocab_list"),
    also_ignored=lambda config: () if config.learned else ("esm.embeddings.position_embeddings.weight",),
    ignored_hf=(
        *("esm.embeddings.position_ids", "esm.contact_head.*", "esm.pooler.*", "lm_head.*", "classifier.*"),
        *("esm.rotary_embeddings.inv_freq", "esm.encoder.layer.*.attention.self.rotary_embeddings.inv_freq"),
    ),
)
