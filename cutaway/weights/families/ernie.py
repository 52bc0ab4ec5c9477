"""ERNIE (1907.12412, 2107.02137): BERT, to whose embeddings its task's may be added: the first, where none is
named.
"""

from cutaway.weights import naming
from cutaway.weights.families import bert
from cutaway.weights.family import Entries, Family, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same


class Tasks(Row):
    """The number of tasks that have an embedding, if any has."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        used, key = fields.flag("use_task_id", False), "task_type_vocab_size"
        count = fields.integer(key) if fields.stated(key) else 3
        return {"tasks": count if used else 0}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf or not known["tasks"]:
            return {}
        return {"use_task_id": True, "task_type_vocab_size": known["tasks"]}


FAMILY = bert.FAMILY.but(
    "ernie",
    "ErnieModel",
    hf=(
        *naming.renamed(bert.HF, ("bert.", "ernie.")),
        Rule("ernie.embeddings.task_type_embeddings.weight", "task.weight", same),
    ),
    gguf=(),
    rows=(*bert.FAMILY.rows, Tasks()),
    prefix="ernie.",
    ignored_hf=("ernie.embeddings.position_ids", "ernie.pooler.*", "cls.*", "classifier.*"),
)
