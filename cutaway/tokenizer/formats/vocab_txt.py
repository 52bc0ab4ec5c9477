"""BERT's vocab.txt: a token a line, its id the number of the line, from 0.

The file does not say how text is cleaned. A folder's tokenizer_config.json does; without one, text is put in
lower case if no token has a capital letter.
"""

from cutaway.errors import UserError, quoted
from cutaway.tokenizer import template
from cutaway.tokenizer.added import AddedToken
from cutaway.tokenizer.decode import Words
from cutaway.tokenizer.formats.fields import Fields, limited
from cutaway.tokenizer.spec import TokenizerSpec
from cutaway.tokenizer.wordpiece import CONTINUES, BertNormalizer, BertPreTokenizer

CONTROL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def read(data: bytes, name: str, config: Fields | None = None) -> TokenizerSpec:
    """The spec of a vocab.txt, whose text is cleaned as `config` (tokenizer_config.json) says.

    `name` is the file's in messages. Raises UserError for bytes that are not UTF-8, for a token twice, and
    for a vocabulary without [UNK].
    """
    tokens = _lines(data, name)
    limited(len(tokens), name)
    vocabulary = {text: id for id, text in enumerate(tokens)}
    if "[UNK]" not in vocabulary:
        raise UserError(f"{name} is no tokenizer that is known: a vocabulary of words has a line [UNK]")
    if len(vocabulary) != len(tokens):
        twice = next(text for id, text in enumerate(tokens) if vocabulary[text] != id)
        raise UserError(f"{name} holds {quoted(twice)} twice")
    return bert(tokens, _normalizer(tokens, config or Fields({}, name)))


def bert(tokens: list[str], normalizer: BertNormalizer) -> TokenizerSpec:
    """The spec of a BERT with these tokens, in WordPiece's spelling; [UNK] is one of them."""
    vocabulary = {text: id for id, text in enumerate(tokens)}
    begin, end = vocabulary.get("[CLS]"), vocabulary.get("[SEP]")
    return TokenizerSpec(
        tokens=tokens,
        vocabulary=vocabulary,
        model="WordPiece",
        bytewise=False,
        normalizer=(normalizer,),
        pretokenizer=(BertPreTokenizer(),),
        added=tuple(
            AddedToken(vocabulary[text], text, special=True) for text in CONTROL if text in vocabulary
        ),
        words=Words(CONTINUES, cleanup=True),
        bos=begin,
        eos=end,
        pad=vocabulary.get("[PAD]"),
        unknown=vocabulary["[UNK]"],
        add_bos=begin is not None,
        add_eos=end is not None,
        mask=vocabulary.get("[MASK]"),
        template=None if begin is None or end is None else template.bert(begin, end),
    )


def write_file(spec: TokenizerSpec) -> bytes:
    """The spec as a vocab.txt. Raises UserError where BERT's cleaning would not give the same ids."""
    if spec.model != "WordPiece" or spec.continues != CONTINUES:
        raise UserError(f"vocab.txt is for WordPiece with {CONTINUES!r}, and this is a {spec.model}")
    tokens = [text for text in spec.tokens if text is not None]
    if len(tokens) != len(spec.tokens) or any(
        len(text.splitlines()) > 1 or text != text.strip("\r\n") for text in tokens
    ):
        raise UserError("vocab.txt cannot say that an id has no token, or that a token holds a line feed")
    if spec.pretokenizer != (BertPreTokenizer(),) or spec.normalizer != (_guessed(tokens),):
        raise UserError("vocab.txt cannot say how this one cleans and cuts text: write a tokenizer.json")
    return "".join(f"{text}\n" for text in tokens).encode()


def _lines(data: bytes, name: str) -> list[str]:
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{name} is not UTF-8") from None
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def _normalizer(tokens: list[str], config: Fields) -> BertNormalizer:
    """How text is cleaned by tokenizer_config.json; what it leaves out is guessed from the tokens."""
    guessed = _guessed(tokens)
    return BertNormalizer(
        handle_chinese_chars=config.get("tokenize_chinese_chars", bool, True),
        strip_accents=config.get("strip_accents", bool, False) if config.has("strip_accents") else None,
        lowercase=config.get("do_lower_case", bool, guessed.lowercase),
    )


def _guessed(tokens: list[str]) -> BertNormalizer:
    """Text in lower case, unless a token that is no control token has a capital letter."""
    cased = any(text != text.lower() for text in tokens if not text.startswith("["))
    return BertNormalizer(lowercase=not cased)
