"""`cutaway embed neighbors` and `analogy`: which words are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.commands import console
from cutaway.commands.embed.sources import known, opened
from cutaway.commands.options import Flag, Json
from cutaway.embedding import neighbours
from cutaway.errors import UserError

if TYPE_CHECKING:
    from cutaway.embedding.vectors import Near, Vectors


def neighbors(
    source: str, /, *words: str, count: int = 10, approximate: Flag = False, as_json: Json = False
) -> None:
    """The words whose vectors point most nearly the same way, by cosine, best first.

    **Examples:**

    cutaway embed neighbors words.safetensors river lake

    cutaway embed neighbors smollm2 " king"

    :param source: A file of word vectors, or a model, whose own table is asked.
    :param words: What to look for; a token that begins with a space is written so, in quotes.
    :param count: How many neighbours.
    :param approximate: Build an index (usearch) that may miss a neighbour: for many words in a table of
        millions.
    """
    if not words or count < 1:
        raise UserError("give a word and a count of 1 or more: cutaway embed neighbors FILE WORD")
    found = opened(source)
    for word in words:
        known(found, word)
    ask = _Approximate(found).nearest if approximate else found.nearest
    if not approximate and len(found) >= neighbours.MANY and len(words) > 100:
        console.note(f"{len(found)} vectors are compared for each word; --approximate is faster")
    answers = {word: ask(word, count) for word in words}
    if as_json:
        console.print_json({word: [near._asdict() for near in answer] for word, answer in answers.items()})
        return
    for word, answer in answers.items():
        if len(words) > 1:
            print(word)
        _print(answer)
        if (spaced := f" {word}") in found and not word.startswith(" "):
            console.note(f"{spaced!r}, as it is inside a sentence, is another token: ask for it in quotes.")


@dataclass
class _Approximate:
    """Vectors behind an index."""

    vectors: Vectors

    def __post_init__(self) -> None:
        self.index = neighbours.Index(self.vectors.table)

    def nearest(self, word: str, count: int) -> list[Near]:
        from cutaway.embedding.vectors import Near

        ids, cosines = self.index.search(self.vectors.vector(word)[None], count + 1)
        pairs = zip(ids[0].tolist(), cosines[0].tolist(), strict=True)
        others = [
            Near(self.vectors.words[int(id)], cosine)
            for id, cosine in pairs
            if id != self.vectors.ids.get(word)
        ]
        return others[:count]


def analogy(source: str, a: str, b: str, c: str, /, *, count: int = 5, as_json: Json = False) -> None:
    """What is to C as B is to A: the words nearest to B - A + C, of vectors made equally long.

    **Examples:**

    cutaway embed analogy glove.txt man king woman

    cutaway embed analogy smollm2 " France" " Paris" " Italy"

    :param source: A file of word vectors, or a model, whose own table is asked.
    :param a: A is to B ...
    :param b: ... as
    :param c: C is to the answer.
    :param count: How many answers.
    """
    if count < 1:
        raise UserError("give a count of 1 or more")
    found = opened(source)
    for word in (a, b, c):
        known(found, word)
    answer = found.analogy(a, b, c, count)
    if as_json:
        console.print_json([near._asdict() for near in answer])
        return
    _print(answer)


def _print(answer: list[Near]) -> None:
    for near in answer:
        print(f"{near.cosine:6.3f}  {near.word if near.word.strip() == near.word else repr(near.word)}")
