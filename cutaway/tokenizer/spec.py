"""A tokenizer as data (TokenizerSpec): formats read and write it, ``Tokenizer`` encodes with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cutaway.tokenizer.added import AddedToken
from cutaway.tokenizer.bpe import Pair
from cutaway.tokenizer.decode import NOTHING, Lead, Words
from cutaway.tokenizer.normalize import Rule
from cutaway.tokenizer.pretokenize import Step
from cutaway.tokenizer.template import PairTemplate
from cutaway.tokenizer.wordpiece import CONTINUES, LONGEST_WORD

# Control tokens that end an answer, whatever a file calls its end token. A token of another kind never does.
_ENDS = """<|im_end|> <|eot_id|> <|eom_id|> <|end|> <|endoftext|> <|end_of_text|> <|end_of_turn|>
<end_of_turn> <turn|> <end_of_utterance> <eos> </s> <EOT> <|EOT|> [EOS] [EOT] <|return|> <|call|>
<｜end▁of▁sentence｜>"""
ENDS = frozenset(_ENDS.split())


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer's vocabulary and rules.

    `model` says which algorithm makes tokens of a piece. `tokens` is every token's text by id (None where an
    id has none), `vocabulary` those that the model knows; `scores` are SentencePiece's, by id.

    BPE: `merges` are learned pairs in order; without them any two neighbours merge whose text has a rank in
    `ranks`. `bytewise`, `whole`, `fallback`, `fuse` and `unused` as in `bpe.BPE`.

    Unigram: `pieces` are the scores of the texts that text can come to, summed in 32 bits if `single`,
    `worst` the score that the unknown is counted from, `users` the ids of user-defined symbols among them.

    WordPiece: `continues` precedes a token that goes on, a word over `longest` characters is unknown.

    `beyond` are ids of texts that no piece covers (Marian's target), `openers` the control tokens that a text
    may name at its beginning, as it names a language.

    `before` and `behind` are the ids around a text where those are not one `bos` if `add_bos`, and one `eos`
    if `add_eos`; `template` is what is around two, where that is known.

    `pre` is the name that GGUF files give the pre-tokeniser. `lead` says what decoding takes off the front,
    `words` how tokens that are words are joined, `surface` how the unknown token reads when it is not its own
    text. With `verbatim`, added tokens decode to their own text (llama.cpp), else by the rules of all tokens
    (`tokenizers`, SentencePiece). With `drops_first`, a byte without a token is left out before merging
    (`tokenizers`), else behind it (llama.cpp).
    """

    tokens: Sequence[str | None]
    vocabulary: Mapping[str, int]
    model: Literal["BPE", "WordPiece", "Unigram", "WordLevel"] = "BPE"
    merges: Sequence[Pair] | None = None
    ranks: Mapping[str, int] | None = None
    scores: Sequence[float] | None = None
    bytewise: bool = True
    whole: bool = False
    fallback: bool = False
    fuse: bool = False
    pieces: Mapping[str, float] | None = None
    worst: float | None = None
    single: bool = False
    beyond: Mapping[str, int] | None = None
    openers: tuple[int, ...] = ()
    continues: str = CONTINUES
    longest: int = LONGEST_WORD
    unused: frozenset[int] = frozenset()
    users: frozenset[int] = frozenset()
    normalizer: tuple[Rule, ...] = ()
    pretokenizer: tuple[Step, ...] = ()
    pre: str | None = None
    added: tuple[AddedToken, ...] = ()
    lead: Lead = NOTHING
    words: Words | None = None
    surface: str | None = None
    verbatim: bool = False
    drops_first: bool = False
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    unknown: int | None = None
    mask: int | None = None
    eot: tuple[int, ...] = ()
    add_bos: bool = False
    add_eos: bool = False
    before: tuple[int, ...] | None = None
    behind: tuple[int, ...] | None = None
    template: PairTemplate | None = None
    chat_template: str | None = None

    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that go in front of a text and behind it."""
        first = (self.bos,) if self.add_bos and self.bos is not None else ()
        last = (self.eos,) if self.add_eos and self.eos is not None else ()
        return first if self.before is None else self.before, last if self.behind is None else self.behind

    def ends(self) -> tuple[int, ...]:
        """The ids that end an answer: the end token, those the file names, and control tokens in ENDS."""
        control = [token.id for token in self.added if token.special and token.text in ENDS]
        named = [] if self.eos is None else [self.eos]
        return tuple(dict.fromkeys([*named, *self.eot, *control]))
