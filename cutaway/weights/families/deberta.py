"""DeBERTa (2006.03654): BERT whose scores are of content with content, with distance and back.

Query, key and value of a head are side by side in one matrix; keys have no bias.
"""

from typing import Any

from cutaway.attention import disentangled
from cutaway.model.config import Encoder
from cutaway.position import distances
from cutaway.weights import decoders, naming, rows
from cutaway.weights.classifier_head import Head
from cutaway.weights.families import bert
from cutaway.weights.family import Entries, Family, Only, Row, Settings, shared
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import beside, same

LAYER, OURS = "deberta.encoder.layer.{n}", "blocks.{n}"
TERMS = {"c2p": "content_to_position", "p2c": "position_to_content"}
TABLE = "blocks.0.attention.relative"


class Learned(Row):
    """Whether embeddings have positions too."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        fields.stated("position_biased_input")
        return {"learned": fields.flag("position_biased_input", True)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"position_biased_input": known["learned"]}


class Terms(Row):
    """The terms of a score, and the distances that they read."""

    name = "mixer"

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        given = fields.get("pos_att_type")
        words = [one.strip() for one in given.lower().split("|")] if isinstance(given, str) else given or []
        if not isinstance(words, list) or not set(words) <= set(TERMS) or len(set(words)) < len(words):
            raise fields.refusal("pos_att_type", "should list c2p and p2c, each at most once")
        relative = fields.flag("relative_attention", False)
        if relative != bool(words):
            raise fields.refusal(
                "relative_attention", "is true where pos_att_type lists something, and only there"
            )
        farthest, span = self.distances(fields, known)
        if not relative:
            return self.without(fields)
        table = distances.Config(span, farthest, self.norm_eps(fields, known))
        terms: dict[str, Any] = {name: word in words for word, name in TERMS.items()}
        mixer = disentangled.Config(
            heads=known["heads"],
            key_size=shared(known),
            relative=table,
            bias=True,
            out_bias=True,
            **terms,
            **self.projections(fields),
        )
        return {"mixer": mixer, "one_relative": True}

    def without(self, fields: Fields) -> Settings:
        """The settings of a model without distances."""
        raise fields.refusal("relative_attention", "is not true: DeBERTa without distances is not supported")

    def distances(self, fields: Fields, known: Settings) -> tuple[int | None, int]:
        """The farthest distance with a vector of its own logarithm, if there are such, and the span."""
        key = "max_relative_positions"
        fields.stated(key)
        most = fields.integer(key, -1, low=-1)
        return None, most if most > 0 else known["context"]

    def norm_eps(self, fields: Fields, known: Settings) -> float | None:
        """The number of the norm of distances' vectors, if there is one."""
        return None

    def projections(self, fields: Fields) -> dict[str, Any]:
        """How keys and distances are projected."""
        return {"distance_bias": False, "key_bias": False}

    def write(self, known: Settings, gguf: bool) -> Entries:
        mixer = known["mixer"]
        if not isinstance(mixer, disentangled.Config):
            return {"relative_attention": False}
        words = [word for word, name in TERMS.items() if getattr(mixer, name)]
        entries = {"relative_attention": True, "pos_att_type": words}
        return entries | {"max_relative_positions": mixer.relative.farthest or mixer.relative.span}


def settings(config: Encoder) -> Settings:
    """The settings of a config."""
    return decoders.settings(config) | {"mixer": config.blocks[0].attention}


FAMILY = bert.FAMILY.but(
    "deberta",
    "DebertaModel",
    hf=(
        *(
            rule
            for rule in naming.renamed(bert.HF, ("bert.", "deberta."))
            if not any(word in rule.theirs for word in ("self.query", "self.key", "self.value"))
        ),
        Rule(f"{LAYER}.attention.self.in_proj.weight", naming.query_key_value("weight"), beside("heads")),
        Rule(f"{LAYER}.attention.self.q_bias", f"{OURS}.attention.query.bias", same),
        Rule(f"{LAYER}.attention.self.v_bias", f"{OURS}.attention.value.bias", same),
        Rule(f"{LAYER}.attention.self.pos_proj.weight", f"{OURS}.attention.distance_key.weight", same),
        *naming.pairs((f"{LAYER}.attention.self.pos_q_proj", f"{OURS}.attention.distance_query")),
        Rule("deberta.encoder.rel_embeddings.weight", f"{TABLE}.weight", same),
    ),
    gguf=(),
    rows=(
        *rows.replaced(bert.FAMILY.rows, bert.Segments("segments", "type_vocab_size", None, bert.FROM_NONE)),
        Learned(),
        Terms(),
        Only("talking_head", None, (False,), "heads that read one another's scores"),
    ),
    describe=settings,
    defaults={"vocab": 50265, "segments": 0, "eps": 1e-7},
    mixers=("disentangled", "bidirectional"),
    head=Head(activation=("pooler_hidden_act", "gelu")),
    prefix="deberta.",
    bypassed=("rel_embeddings",),
    harmless=(
        *bert.FAMILY.harmless,
        *("pooler_*", "legacy", "padding_idx", "position_buckets", "norm_rel_ebd", "share_att_key"),
    ),
    also_ignored=lambda config: () if config.learned else ("deberta.embeddings.position_embeddings.weight",),
    ignored_hf=(
        *("deberta.embeddings.position_ids", "lm_predictions.*", "mask_predictions.*", "cls.*"),
        *("pooler.*", "classifier.*"),
    ),
)
