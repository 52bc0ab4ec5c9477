"""RoBERTa (1907.11692), XLM-RoBERTa and CamemBERT: BERT whose first position comes after the padding id's."""

from dataclasses import dataclass, replace

from cutaway.gguf import Later
from cutaway.model.config import Encoder
from cutaway.weights import naming, rows
from cutaway.weights.classifier_head import Head
from cutaway.weights.families import bert
from cutaway.weights.family import Entries, Family, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.named_tensors import Tensors

ALIASES = ("xlm-roberta", "camembert")
HEAD = Head("classifier.dense", out="classifier.out_proj")


@dataclass(frozen=True)
class Context(Row):
    """The positions there are, of which as many as the padding id and one more are never used.

    ``usual`` is their number where it is left out; ``pad`` is the padding id where configs do not decide it.
    """

    name = "context"

    usual: int = 512
    pad: int | None = None

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        key = "max_position_embeddings"
        most = fields.integer(key) if fields.stated(key) else self.usual
        stated = self.pad is None and fields.stated("pad_token_id")
        offset = (fields.integer("pad_token_id", low=0) if stated else self.pad or 1) + 1
        if most <= offset:
            raise fields.refusal("max_position_embeddings", f"is {most}, and the first {offset} are not used")
        return {"context": most - offset, "offset": offset}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if not known["offset"]:
            return {"max_position_embeddings": known["context"]}
        return {
            "max_position_embeddings": known["context"] + known["offset"],
            "pad_token_id": known["offset"] - 1,
        }


def folded(config: Encoder, tensors: Tensors) -> tuple[Encoder, Tensors, str]:
    """The same function as a BERT: positions from the first that is used."""
    name = "position.weight"
    if not config.offset:
        return config, tensors, ""
    entry = tensors.later(name)
    used = Later(
        entry.type, (config.context, config.width), lambda: tensors[name].rows(slice(config.offset, None))
    )
    entries = {each: tensors.later(each) for each in tensors} | {name: used}
    note = f"the first {config.offset} positions, which no token has, are left out, as GGUF has it"
    return replace(config, offset=0), Tensors(entries), note


FAMILY = bert.FAMILY.but(
    "roberta",
    "RobertaModel",
    hf=naming.renamed(bert.HF, ("bert.", "roberta.")),
    gguf=(),
    rows=rows.replaced(bert.FAMILY.rows, Context()),
    folded=folded,
    defaults={"vocab": 50265},
    head=HEAD,
    prefix="roberta.",
    ignored_hf=("roberta.embeddings.position_ids", "roberta.pooler.*", "lm_head.*", "classifier.*"),
)
