"""A tokenizer written as GGUF metadata (`tokenizer.ggml.*`), with which llama.cpp gives the same ids."""

import io
import warnings
from typing import Any

import numpy as np

from cutaway import gguf as container
from cutaway.errors import UserError
from cutaway.tokenizer import pretokenize
from cutaway.tokenizer.bpe import BYTE_TOKENS
from cutaway.tokenizer.charsmap import Charsmap
from cutaway.tokenizer.formats.gguf import IDS, SEPARATOR, SQUEEZED, K
from cutaway.tokenizer.formats.merges import all_splits
from cutaway.tokenizer.normalize import OneSpace, Prefix, Prepend, Replace, Unicode
from cutaway.tokenizer.pretokenize import SPACE, Split
from cutaway.tokenizer.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER
from cutaway.tokenizer.spec import TokenizerSpec
from cutaway.tokenizer.wordpiece import CONTINUES, BertNormalizer, BertPreTokenizer

ARCHITECTURES = {"WordPiece": "bert", "Unigram": "t5"}


def write_file(spec: TokenizerSpec) -> bytes:
    """A GGUF file that holds a vocabulary and no model, as llama.cpp's own ggml-vocab files do."""
    about = {"general.architecture": ARCHITECTURES.get(spec.model, "llama")}
    out = io.BytesIO()
    container.write(out, about | write(spec), {})
    return out.getvalue()


def write(spec: TokenizerSpec, size: int | None = None) -> dict[str, Any]:
    """The spec as GGUF metadata; vocabularies are filled up to `size` tokens.

    Raises UserError for what GGUF cannot say.
    """
    out = _write_model(spec)
    count = max(size or 0, len(spec.tokens))
    if size is not None and size < len(spec.tokens):
        raise UserError(f"there are {len(spec.tokens):,} tokens, and {size:,} rows of the embedding")
    out[K + "tokens"] = _filled(_spelt(spec), count)
    out[K + "token_type"] = _kinds(spec, count)
    if spec.scores is not None:
        out[K + "scores"] = np.array([*spec.scores, *[-1000.0] * (count - len(spec.scores))], np.float32)
    ids = {f"{K}{key}_token_id": getattr(spec, field) for field, key in IDS.items()}
    out |= {key: np.uint32(id) for key, id in ids.items() if id is not None}
    out |= {f"{K}{key}_token_id": np.uint32(id) for key, id in zip(("eot", "eom"), _eot(spec), strict=False)}
    out |= {K + "add_bos_token": spec.add_bos, K + "add_eos_token": spec.add_eos}
    if spec.chat_template is not None:
        out["tokenizer.chat_template"] = spec.chat_template
    return out


def _write_model(spec: TokenizerSpec) -> dict[str, Any]:
    """What belongs to one of llama.cpp's kinds of tokenizer."""
    if spec.model == "WordPiece":
        return _write_wordpiece(spec)
    if spec.model == "Unigram":
        return _write_unigram(spec)
    if spec.model != "BPE":
        raise UserError(f"GGUF has no {spec.model} tokenizer")
    if spec.bytewise:
        pre = _pre(spec)
        _only(spec, (Unicode("NFC"),))
        return {K + "model": "gpt2", K + "pre": pre, K + "merges": _lines(spec)}
    if spec.pre == "gemma4":
        return {K + "model": "gemma4", K + "merges": _lines(spec)}
    return _write_scored(spec)


def _write_wordpiece(spec: TokenizerSpec) -> dict[str, Any]:
    """BERT, which llama.cpp cleans in one way."""
    if (spec.normalizer, spec.pretokenizer) != ((BertNormalizer(),), (BertPreTokenizer(),)):
        raise UserError("llama.cpp cleans and cuts text for a bert as the uncased BERT does, unlike this one")
    if spec.continues != CONTINUES or spec.unknown is None:
        raise UserError(f"GGUF's bert has an unknown token, and {CONTINUES!r} before tokens that go on")
    begin, end = spec.bos, spec.eos
    ids = {"cls": begin, SEPARATOR[0]: end}
    named = {f"{K}{key}_token_id": np.uint32(id) for key, id in ids.items() if id is not None}
    return {K + "model": "bert", K + "pre": "default", K + "token_type_count": np.uint32(2), **named}


def _write_unigram(spec: TokenizerSpec) -> dict[str, Any]:
    """SentencePiece's Unigram: its map of characters, and what happens to spaces."""
    rules = list(spec.normalizer)
    charsmap = rules.pop(0).data if rules and isinstance(rules[0], Charsmap) else b""
    spoken = next((flags for *flags, known in _UNIGRAM_RULES if rules == known), None)
    if spoken is None or spec.pretokenizer or spec.unknown is None:
        raise UserError(f"GGUF cannot say how this tokenizer normalises and cuts text ({spec.normalizer})")
    squeeze, prefix = spoken
    spaces = {K + "add_space_prefix": prefix, K + "remove_extra_whitespaces": squeeze}
    mapped = {K + "precompiled_charsmap": np.frombuffer(charsmap, np.uint8)} if charsmap else {}
    return {K + "model": "t5", K + "pre": "default", **spaces, **mapped}


_UNIGRAM_RULES = [
    (squeeze, prefix, [*squeezing, *prefixing, Replace(" ", SPACE)])
    for squeezes, prefixes in (([OneSpace()], [Prefix(" ")]), (list(SQUEEZED), [Prepend(SPACE)]))
    for squeeze, squeezing in ((True, squeezes), (False, []))
    for prefix, prefixing in ((True, prefixes), (False, []))
]


def _pre(spec: TokenizerSpec) -> str:
    """The name that llama.cpp knows the pre-tokeniser by."""
    if spec.pre is not None:
        return spec.pre
    for pre, patterns in pretokenize.SPELLINGS:
        if spec.pretokenizer == tuple(Split(p) for p in patterns) and spec.whole == (
            pre in pretokenize.WHOLE
        ):
            return pre
    raise UserError("GGUF has no name for this tokenizer's pre-tokeniser: llama.cpp would split otherwise")


def _only(spec: TokenizerSpec, allowed: tuple[Any, ...]) -> None:
    """UserError for a normaliser that is lost; Qwen's NFC, which GGUF has no field for, is a warning."""
    for rule in spec.normalizer:
        if rule not in allowed:
            raise UserError(f"GGUF cannot say that text is normalised ({rule})")
        warnings.warn(
            "GGUF has no field for a normaliser: text that is not in NFC gets other ids in the written file",
            RuntimeWarning,
            stacklevel=5,
        )


def _write_scored(spec: TokenizerSpec) -> dict[str, Any]:
    """SentencePiece's BPE: scores, and whether a space goes in front."""
    space = pretokenize.SPACE
    ways: dict[tuple[Any, ...], bool] = {
        (Prepend(space), Replace(" ", space)): True,
        (Prefix(" "), Replace(" ", space)): True,
        (Replace(" ", space),): False,
    }
    if spec.scores is None:
        raise UserError("GGUF needs a score for every token: load the model's tokenizer.model")
    if spec.pretokenizer or spec.normalizer not in ways:
        raise UserError(f"GGUF cannot say how this tokenizer normalises text ({spec.normalizer})")
    if not spec.fallback:
        raise UserError("llama.cpp writes what a vocabulary lacks as bytes, and this one has no byte tokens")
    return {K + "model": "llama", K + "pre": "default", K + "add_space_prefix": ways[spec.normalizer]}


def _lines(spec: TokenizerSpec) -> list[str]:
    pairs = spec.merges if spec.merges is not None else all_splits(spec)
    return [f"{left} {right}" for left, right in pairs]


def _spelt(spec: TokenizerSpec) -> list[str | None]:
    """Every token's text in GGUF's spelling: BERT's words begin with U+2581, their spec with nothing."""
    if spec.model != "WordPiece":
        return list(spec.tokens)
    control = {token.id for token in spec.added if token.special}
    return [text if id in control else _bert_spelling(text) for id, text in enumerate(spec.tokens)]


def _bert_spelling(text: str | None) -> str | None:
    if text is None or (text.startswith("[") and text.endswith("]")):
        return text
    return text.removeprefix(CONTINUES) if text.startswith(CONTINUES) else SPACE + text


def _filled(tokens: list[str | None], count: int) -> list[str]:
    """Every token's text; ids that have none are padding."""
    texts = [*tokens, *[None] * (count - len(tokens))]
    return [f"[PAD{id}]" if text is None else text for id, text in enumerate(texts)]


def _kinds(spec: TokenizerSpec, count: int) -> np.ndarray:
    """Every token's kind, int32 [count]."""
    kinds = np.full(count, NORMAL, np.int32)
    if spec.fallback:
        kinds[[spec.vocabulary[token] for token in BYTE_TOKENS if token in spec.vocabulary]] = BYTE
    for token in spec.added:
        kinds[token.id] = CONTROL if token.special else USER
    if spec.unknown is not None and spec.merges is None and kinds[spec.unknown] == CONTROL:
        kinds[spec.unknown] = UNKNOWN
    kinds[list(spec.users)] = USER
    nameless = [id for id, text in enumerate(spec.tokens) if text is None]
    kinds[[*nameless, *spec.unused, *range(len(spec.tokens), count)]] = UNUSED
    return kinds


def _eot(spec: TokenizerSpec) -> list[int]:
    return [id for id in spec.ends() if id != spec.eos and id in spec.eot][:2]
