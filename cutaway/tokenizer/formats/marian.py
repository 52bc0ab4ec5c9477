"""Marian's folder, as OPUS-MT has it: vocab.json, and SentencePiece's source.spm and target.spm.

A text is cut by source.spm, and each piece is the id that vocab.json has for it, the unknown's where it has
none. A target is written in target.spm's pieces, which are ids of the same vocabulary and need no scores. The
languages of a model of several (``>>fra<<``) are found at the beginning of a text; one that it has not is
text. Punctuation is not normalised first, as sacremoses does for transformers where it is installed.
"""

import re
from dataclasses import replace
from pathlib import Path

from cutaway.errors import UserError, quoted
from cutaway.store.files import contents
from cutaway.tokenizer.added import AddedToken
from cutaway.tokenizer.formats import folder, spm_model
from cutaway.tokenizer.formats.fields import Fields, limited, parsed
from cutaway.tokenizer.spec import TokenizerSpec

FILES = ("source.spm", "target.spm", "vocab.json")
CONTROL = ("</s>", "<unk>", "<pad>")
LANGUAGE = re.compile(r">>[^<>]+<<")


def read(place: Path) -> TokenizerSpec:
    """The spec of a folder with ``FILES``. UserError for a file that is not what it should be."""
    path = place / FILES[2]
    ids = _ids(parsed(contents(path), path.name))
    spec = spm_model.read(contents(place / FILES[0]), FILES[0])
    if spec.model != "Unigram":
        raise UserError(f"{FILES[0]}: Marian's pieces are of a Unigram model, and this is {spec.model}")
    spm_model.read(contents(place / FILES[1]), FILES[1])
    unknown = ids["<unk>"]
    tokens: list[str | None] = [None] * len(ids)
    for text, id in ids.items():
        tokens[id] = text
    languages = [text for text in ids if LANGUAGE.fullmatch(text)]
    control = [text for text in (*CONTROL, *languages) if text in ids]
    pieces = spec.pieces or {}
    made = replace(
        spec,
        tokens=tokens,
        vocabulary={piece: ids.get(piece, unknown) for piece in pieces} | ids,
        scores=None,
        fallback=False,
        unused=frozenset(),
        users=frozenset(),
        added=tuple(AddedToken(ids[text], text, special=True) for text in control),
        beyond={text: id for text, id in ids.items() if text not in pieces and text not in control},
        openers=tuple(ids[text] for text in languages),
        surface=None,
        bos=None,
        eos=ids["</s>"],
        pad=ids.get("<pad>"),
        unknown=unknown,
        add_bos=False,
        add_eos=True,
    )
    return replace(folder.completed(made, place), add_bos=False, add_eos=True)


def _ids(fields: Fields) -> dict[str, int]:
    """Each piece's id: all from 0 on, once."""
    ids = {text: id for text, id in fields.value.items() if type(id) is int}
    limited(len(ids), fields.where)
    if sorted(ids.values()) != list(range(len(fields.value))):
        raise UserError(f"{fields.where}: should give each text an id of its own, from 0 on")
    for text in CONTROL[:2]:
        if text not in ids:
            raise UserError(f"{fields.where}: has no {quoted(text)}")
    return ids
