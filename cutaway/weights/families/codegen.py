"""CodeGen (2203.13474): GPT-J, with query, value and key in one matrix, each in four parts."""

from cutaway.weights.families import gptj
from cutaway.weights.family import Family, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import beside

PARTS = 4  # processors of the machine that trained it
QUERY_VALUE_KEY = tuple(f"blocks.{{n}}.attention.{name}.weight" for name in ("query", "value", "key"))


class Parts(Row):
    """The width is cut into equal parts."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if known["width"] % PARTS:
            raise fields.refusal("n_embd", f"is {known['width']}: it must be a multiple of {PARTS}")
        return {}


FAMILY = gptj.FAMILY.but(
    "codegen",
    "CodeGenForCausalLM",
    hf=(
        *(rule for rule in gptj.HF if not any(f".{name}_proj." in rule.theirs for name in "qkv")),
        Rule("transformer.h.{n}.attn.qkv_proj.weight", QUERY_VALUE_KEY, beside(PARTS)),
    ),
    rows=(*gptj.FAMILY.rows, Parts()),
)
