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


def write_file(spec: TokenizerSpec) -> bytes:
    """The spec as a .model file. Raises UserError for what SentencePiece cannot say."""
    if spec.bytewise or spec.model not in KINDS:
        named = "byte-level BPE" if spec.bytewise else spec.model
        raise UserError(f"a .model file holds SentencePiece's BPE or Unigram, and this is {named}")
    if spec.scores is None or (spec.model == "BPE" and spec.ranks is None):
        raise UserError("a .model file needs the score of every token, which this tokenizer's file has not")
    if spec.unknown is None or None in spec.tokens:
        raise UserError("a .model file needs an unknown piece, and a piece for every id")
    if spec.pretokenizer:
        raise UserError("a .model file cannot say how this tokenizer cuts text before it is encoded")
    pieces = b"".join(
        _message(1, _piece(text or "", score, kind))
        for text, score, kind in zip(spec.tokens, spec.scores, kinds(spec), strict=True)
    )
    return pieces + _message(2, _trainer(spec)) + _message(3, _normalizer(spec))


def kinds(spec: TokenizerSpec) -> list[int]:
    """The kind of every piece."""
    out = [NORMAL] * len(spec.tokens)
    if spec.fallback:
        for token in BYTE_TOKENS:
            if token in spec.vocabulary:
                out[spec.vocabulary[token]] = BYTE
    for id in (*spec.users, *(token.id for token in spec.added if not token.special)):
        out[id] = USER
    for token in spec.added:
        if token.special:
            out[token.id] = CONTROL
    for id in spec.unused:
        out[id] = UNUSED
    if spec.unknown is not None:
        out[spec.unknown] = UNKNOWN
    return out


def _piece(text: str, score: float, kind: int) -> bytes:
    kept = _number(3, kind) if kind != NORMAL else b""
    return _message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + kept


def _trainer(spec: TokenizerSpec) -> bytes:
    out = _number(3, KINDS[spec.model]) + _number(4, len(spec.tokens)) + _number(35, spec.fallback)
    out += _message(44, spec.surface.encode()) if spec.surface is not None else b""
    roles = ((40, 45, spec.unknown), (41, 46, spec.bos), (42, 47, spec.eos), (43, 48, spec.pad))
    for number, name, id in roles:
        out += _number(number, -1 if id is None else id)
        out += _message(name, (spec.tokens[id] or "").encode()) if id is not None else b""
    return out


def _normalizer(spec: TokenizerSpec) -> bytes:
    """SentencePiece's four optional steps; UserError for any other normaliser."""
    rules = list(spec.normalizer)
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
