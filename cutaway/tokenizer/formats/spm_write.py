"""A tokenizer written as SentencePiece's .model, the protocol buffer that spm_model.py reads."""

import struct

from cutaway.errors import UserError
from cutaway.tokenizer.bpe import BYTE_TOKENS
from cutaway.tokenizer.charsmap import Charsmap
from cutaway.tokenizer.normalize import OneSpace, Prefix, Replace, Rule
from cutaway.tokenizer.pretokenize import SPACE
from cutaway.tokenizer.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER
from cutaway.tokenizer.spec import TokenizerSpec

KINDS = {"Unigram": 1, "BPE": 2}


def write_file(parts: TokenizerSpec) -> bytes:
    """The spec as a .model file. Raises UserError for what SentencePiece cannot say."""
    if parts.bytewise or parts.model not in KINDS:
        named = "byte-level BPE" if parts.bytewise else parts.model
        raise UserError(f"a .model file holds SentencePiece's BPE or Unigram, and this is {named}")
    if parts.scores is None or (parts.model == "BPE" and parts.ranks is None):
        raise UserError("a .model file needs the score of every token, which this tokenizer's file has not")
    if parts.unknown is None or None in parts.tokens:
        raise UserError("a .model file needs an unknown piece, and a piece for every id")
    if parts.pretokenizer:
        raise UserError("a .model file cannot say how this tokenizer cuts text before it is encoded")
    pieces = b"".join(
        _message(1, _piece(text or "", score, kind))
        for text, score, kind in zip(parts.tokens, parts.scores, kinds(parts), strict=True)
    )
    return pieces + _message(2, _trainer(parts)) + _message(3, _normalizer(parts))


def kinds(parts: TokenizerSpec) -> list[int]:
    """The kind of every piece."""
    out = [NORMAL] * len(parts.tokens)
    if parts.fallback:
        for token in BYTE_TOKENS:
            if token in parts.vocabulary:
                out[parts.vocabulary[token]] = BYTE
    for id in (*parts.users, *(token.id for token in parts.added if not token.special)):
        out[id] = USER
    for token in parts.added:
        if token.special:
            out[token.id] = CONTROL
    for id in parts.unused:
        out[id] = UNUSED
    if parts.unknown is not None:
        out[parts.unknown] = UNKNOWN
    return out


def _piece(text: str, score: float, kind: int) -> bytes:
    kept = _number(3, kind) if kind != NORMAL else b""
    return _message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + kept


def _trainer(parts: TokenizerSpec) -> bytes:
    out = _number(3, KINDS[parts.model]) + _number(4, len(parts.tokens)) + _number(35, parts.fallback)
    out += _message(44, parts.surface.encode()) if parts.surface is not None else b""
    roles = ((40, 45, parts.unknown), (41, 46, parts.bos), (42, 47, parts.eos), (43, 48, parts.pad))
    for number, name, id in roles:
        out += _number(number, -1 if id is None else id)
        out += _message(name, (parts.tokens[id] or "").encode()) if id is not None else b""
    return out


def _normalizer(parts: TokenizerSpec) -> bytes:
    """SentencePiece's four steps, each of which may be left out. Raises UserError for any other
    normaliser.
    """
    rules = list(parts.normalizer)
    charsmap = rules.pop(0).data if rules and isinstance(rules[0], Charsmap) else b""
    flags = [_taken(rules, rule) for rule in (OneSpace(), Prefix(" "), Replace(" ", SPACE))]
    if rules:
        raise UserError(f"a .model file cannot say how this tokenizer normalises text ({rules[0]})")
    squeeze, prefix, escape = flags
    return (
        _message(1, b"user_defined" if charsmap else b"identity")
        + _message(2, charsmap)
        + _number(3, prefix)
        + _number(4, squeeze)
        + _number(5, escape)
    )


def _taken(rules: list[Rule], rule: Rule) -> bool:
    found = bool(rules) and rules[0] == rule
    if found:
        rules.pop(0)
    return found


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & (1 << 64) - 1)


def _message(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
