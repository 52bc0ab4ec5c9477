"""Two texts as one input: what a folder's tokenizer sets around them, and whether it gives segments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cutaway.errors import UserError
from cutaway.tokenizer import template
from cutaway.tokenizer.template import PairTemplate

if TYPE_CHECKING:
    from cutaway.tokenizer import Tokenizer

# Tokenizers of transformers 5 that give segments; the others give none, whatever a template has.
TYPED = ("Bert", "Electra", "Deberta", "DebertaV2", "SqueezeBert", "ConvBert", "MobileBert", "LayoutLM")


def read_pair_template(folder: Path, tokenizer: Tokenizer) -> PairTemplate:
    """A folder's template; UserError for a tokenizer that has no marks to set around a pair."""
    if (found := tokenizer.spec.template) is not None:
        return found
    begin, end = tokenizer.bos, tokenizer.eos
    if begin is None or end is None:
        raise UserError(f"{folder}: its tokenizer lacks the marks around a pair of texts")
    return template.bert(begin, end)


def gives_segments(config: dict) -> bool | None:
    """Whether the tokenizer of a tokenizer_config.json gives segments in transformers, None if unsaid."""
    names = config.get("model_input_names")
    if isinstance(names, list):
        return "token_type_ids" in names
    named = str(config.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer")
    return named in TYPED if named else None
