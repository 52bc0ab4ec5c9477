"""Three tokenizers without an algorithm, to compare the others with: a token a word, a character, a byte.

Words need a vocabulary without end, and every new one is unknown; bytes and characters never are unknown, and
make texts long. Subwords stand between.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from cutaway.errors import UserError
from cutaway.tokenizer.bpe import BYTES
from cutaway.tokenizer.cache import Cache
from cutaway.tokenizer.decode import Words
from cutaway.tokenizer.pretokenize import Split
from cutaway.tokenizer.spec import TokenizerSpec

WORD = r"\w+|[^\w\s]+"
UNKNOWN = "<unk>"


class WordLevel:
    """A piece is a token or unknown; nothing is cut."""

    def __init__(self, ids: Mapping[str, int], unknown: int) -> None:
        self.ids = ids
        self.unknown = unknown
        self.cache = Cache(self.encode)

    def encode(self, word: str) -> list[int]:
        """The id of one word, alone in its list."""
        return [self.ids.get(word, self.unknown)]


def words(texts: Iterable[str], size: int) -> TokenizerSpec:
    """The `size` - 1 most frequent words (of equals the first met), and the unknown one."""
    if size < 1:
        raise UserError(f"a vocabulary of {size} words has no room for the unknown one")
    import regex

    counts = Counter(word for text in texts for word in regex.findall(WORD, text) if word != UNKNOWN)
    tokens = [UNKNOWN, *(word for word, _ in counts.most_common(size - 1))]
    return TokenizerSpec(
        tokens=tokens,
        vocabulary={text: id for id, text in enumerate(tokens)},
        model="WordLevel",
        bytewise=False,
        pretokenizer=(Split(WORD, "removed", invert=True),),
        words=Words(),
        unknown=0,
    )


def characters(texts: Iterable[str]) -> TokenizerSpec:
    """Every character of some texts, in the order of Unicode, behind the unknown one."""
    tokens = [UNKNOWN, *sorted(set().union(*texts))]
    return TokenizerSpec(
        tokens=tokens,
        vocabulary={text: id for id, text in enumerate(tokens)},
        merges=(),
        bytewise=False,
        unknown=0,
    )


def bytewise() -> TokenizerSpec:
    """The 256 bytes: id and byte are the same number."""
    tokens = [BYTES[byte] for byte in range(256)]
    return TokenizerSpec(tokens=tokens, vocabulary={text: id for id, text in enumerate(tokens)}, merges=())
