"""Two texts as one input (BERT, 1810.04805): what is around them, and the segment of each part.

A tokenizer.json says it in its post-processor. Without that file a pair has the marks of a single text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from cutaway.errors import UserError
from cutaway.store.reading import parsed
from cutaway.tokenizer.formats.fields import Fields
from cutaway.tokenizer.formats.hf_json import pair_id, template_ids
from cutaway.tokenizer.formats.hf_rules import flat

if TYPE_CHECKING:
    from cutaway.tokenizer import Tokenizer

# Tokenizers of transformers 5 that give segments; the others give none, whatever a template has.
TYPED = ("Bert", "Electra", "Deberta", "DebertaV2", "SqueezeBert", "ConvBert", "MobileBert", "LayoutLM")


class Piece(NamedTuple):
    """An id or one of the texts, and the segment that it is in."""

    what: int | Literal["A", "B"]
    segment: int


class PairTemplate(NamedTuple):
    """The pieces of an input of two texts, and of one of a single text."""

    pair: tuple[Piece, ...]
    single: tuple[Piece, ...]

    def joined(self, first: Sequence[int], second: Sequence[int] | None) -> tuple[list[int], list[int]]:
        """The ids of an input, and the segment of each."""
        ids, segments = list[int](), list[int]()
        for what, segment in self.single if second is None else self.pair:
            own = [what] if isinstance(what, int) else first if what == "A" else second or ()
            ids += own
            segments += [segment] * len(own)
        return ids, segments

    @property
    def added(self) -> int:
        """How many ids are around two texts."""
        return sum(isinstance(what, int) for what, _ in self.pair)


def read(folder: Path, tokenizer: Tokenizer) -> PairTemplate:
    """A folder's template; UserError for a tokenizer that has no marks to set around a pair."""
    path = folder / "tokenizer.json"
    found = _stated(Fields(parsed(path), str(path))) if path.is_file() else None
    return found or usual(tokenizer, folder)


def usual(tokenizer: Tokenizer, where: object) -> PairTemplate:
    """[begin] A [end] B [end], as BERT has it."""
    begin, end = tokenizer.bos, tokenizer.eos
    if begin is None or end is None:
        raise UserError(f"{where}: its tokenizer lacks the marks around a pair of texts")
    first = (Piece(begin, 0), Piece("A", 0), Piece(end, 0))
    return PairTemplate((*first, Piece("B", 1), Piece(end, 1)), first)


def gives_segments(config: dict) -> bool | None:
    """Whether the tokenizer of a tokenizer_config.json gives segments in transformers, None if unsaid."""
    names = config.get("model_input_names")
    if isinstance(names, list):
        return "token_type_ids" in names
    named = str(config.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer")
    return named in TYPED if named else None


def _stated(whole: Fields) -> PairTemplate | None:
    found = None
    for entry in flat(whole, "post_processor", "processors"):
        match entry.kind():
            case "TemplateProcessing":
                found = PairTemplate(_pieces(entry, "pair"), _pieces(entry, "single"))
            case "BertProcessing" | "RobertaProcessing" as kind:
                begin, end = pair_id(entry, "cls"), pair_id(entry, "sep")
                second = int(kind == "BertProcessing")
                first = (Piece(begin, 0), Piece("A", 0), Piece(end, 0))
                between = () if second else (Piece(end, 0),)
                found = PairTemplate((*first, *between, Piece("B", second), Piece(end, second)), first)
    return found or (None if whole.value.get("post_processor") is None else PLAIN)


def _pieces(entry: Fields, key: str) -> tuple[Piece, ...]:
    found = list[Piece]()
    for piece in entry.subs(key):
        if piece.has("Sequence"):
            own = piece.sub("Sequence")
            name = own.need("id", str)
            if name not in ("A", "B"):
                raise UserError(f"{entry.where}: the template names the text {name!r}, not A or B")
            found.append(Piece(name, own.get("type_id", int, 0)))  # type: ignore[arg-type]
        else:
            own = piece.sub("SpecialToken")
            ids = template_ids(entry, own.need("id", str))
            found += [Piece(id, own.get("type_id", int, 0)) for id in ids]
    return tuple(found)


PLAIN = PairTemplate((Piece("A", 0), Piece("B", 0)), (Piece("A", 0),))
