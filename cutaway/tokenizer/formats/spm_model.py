"""SentencePiece's .model: a protocol buffer (sentencepiece_model.proto), read and written.

Of its models BPE, Unigram and character models are supported; word models are refused by name.
"""

import struct
from collections.abc import Iterator
from typing import Any

from cutaway.errors import UserError
from cutaway.tokenizer import sentencepiece
from cutaway.tokenizer.added import AddedToken
from cutaway.tokenizer.bpe import BYTE_TOKENS
from cutaway.tokenizer.charsmap import Charsmap
from cutaway.tokenizer.decode import EACH, KEEP, ONE, Lead
from cutaway.tokenizer.formats.fields import limited
from cutaway.tokenizer.normalize import OneSpace, Prefix, Replace, Rule
from cutaway.tokenizer.pretokenize import SPACE
from cutaway.tokenizer.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER
from cutaway.tokenizer.spec import TokenizerSpec
from cutaway.tokenizer.unigram import LONGEST_PIECE

MODELS = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}


def read(data: bytes, name: str) -> TokenizerSpec:
    """The spec of a .model file. Raises UserError for what is none, or not supported, by name."""
    pieces, trainer, normalizer = _model(data, name)
    kind = MODELS.get(trainer.get(3, 1), "unknown")
    if kind not in ("BPE", "Unigram", "character"):
        raise UserError(f"{name} is a SentencePiece {kind} model; BPE and Unigram are supported")
    if trainer.get(24):
        raise UserError(f"{name}: treat_whitespace_as_suffix is not supported")
    if not pieces:
        raise UserError(f"{name} holds no pieces")
    limited(len(pieces), name)
    tokens = [text for text, _, _ in pieces]
    if kind == "Unigram" and max(map(len, tokens)) > LONGEST_PIECE:
        raise UserError(f"{name} holds a piece of more than {LONGEST_PIECE:,} characters, which is the limit")
    kinds = [kind for _, _, kind in pieces]
    vocabulary = {text: id for id, text in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise UserError(f"{name} holds a piece twice")
    scores = [score for _, score, _ in pieces]
    # Unigram weighs user-defined symbols against other pieces; BPE finds them before all else.
    users = [text for text, _, of in pieces if of == USER] if kind == "Unigram" else []
    found = (UNKNOWN, CONTROL) if kind == "Unigram" else (UNKNOWN, CONTROL, USER)
    rules, lead = _normalization(normalizer, tuple(users), name)
    roles = {role: _role(trainer, field, default, vocabulary) for role, (field, default) in ROLES.items()}
    if UNKNOWN in kinds:
        roles["unknown"] = kinds.index(UNKNOWN)
    return TokenizerSpec(
        tokens=tokens,
        vocabulary=vocabulary,
        **_scored(kind, tokens, scores, kinds),
        scores=scores,
        bytewise=False,
        fallback=bool(trainer.get(35)),
        fuse=True,
        unused=frozenset(id for id, kind in enumerate(kinds) if kind == UNUSED),
        normalizer=rules,
        added=tuple(
            AddedToken(id, tokens[id], special=kind != USER) for id, kind in enumerate(kinds) if kind in found
        ),
        users=frozenset(map(vocabulary.__getitem__, users)),
        lead=lead,
        surface=_text(trainer.get(44, b" \xe2\x81\x87 "), name),
        bos=roles["bos"],
        eos=roles["eos"],
        pad=roles["pad"],
        unknown=roles["unknown"],
        add_bos=roles["bos"] is not None,
    )


def _scored(kind: str, tokens: list[str], scores: list[float], kinds: list[int]) -> dict[str, Any]:
    """What the scores are to the model; a character model merges nothing."""
    if kind == "Unigram":
        pieces, worst = sentencepiece.pieces(tokens, scores, kinds)
        return {"model": "Unigram", "pieces": pieces, "worst": worst, "single": True}
    if kind == "character":
        return {"ranks": {}}
    merged = [text if of in (NORMAL, UNUSED) else None for text, of in zip(tokens, kinds, strict=True)]
    return {"ranks": sentencepiece.ranks(merged, scores)}


ROLES = {"unknown": (45, "<unk>"), "bos": (46, "<s>"), "eos": (47, "</s>"), "pad": (48, "<pad>")}


def _role(trainer: dict[int, Any], field: int, default: str, vocabulary: dict[str, int]) -> int | None:
    value = trainer.get(field, default.encode())
    return vocabulary.get(value.decode("utf-8", "replace")) if isinstance(value, bytes) else None


def _normalization(spec: dict[int, Any], users: tuple[str, ...], name: str) -> tuple[tuple[Rule, ...], Lead]:
    charsmap, prefix, squeeze, escape = spec.get(2, b""), spec.get(3, 1), spec.get(4, 1), spec.get(5, 1)
    if not isinstance(charsmap, bytes):
        raise UserError(f"{name}: the precompiled_charsmap is not bytes")
    rules: list[Rule] = [Charsmap(charsmap, users).checked()] if charsmap else []
    rules += [OneSpace()] if squeeze else []
    rules += [Prefix(" ")] if prefix else []
    rules += [Replace(" ", SPACE)] if escape else []
    return tuple(rules), Lead(EACH if squeeze else ONE if prefix else KEEP)


Piece = tuple[str, float, int]


def _model(data: bytes, name: str) -> tuple[list[Piece], dict[int, Any], dict[int, Any]]:
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for field, value in _fields(data, name):
        if field == 1:
            pieces.append(_piece(value, name))
        elif field == 2:
            trainer.update(_fields(_message(value, name), name))
        elif field == 3:
            normalizer.update(_fields(_message(value, name), name))
        elif field == 5 and dict(_fields(_message(value, name), name)).get(2):
            raise UserError(f"{name}: a denormalizer is not supported")
    return pieces, trainer, normalizer


def _piece(data: Any, name: str) -> Piece:
    fields = dict(_fields(_message(data, name), name))
    text, score, kind = fields.get(1, b""), fields.get(2, 0.0), fields.get(3, NORMAL)
    if not isinstance(score, float) or score != score or kind not in range(1, 7):
        raise UserError(f"{name}: a piece's score or type is impossible")
    return _text(text, name), score, kind


def _message(value: Any, name: str) -> bytes:
    if not isinstance(value, bytes):
        raise UserError(f"{name} is not a SentencePiece model: a field has the wrong type")
    return value


def _text(value: Any, name: str) -> str:
    try:
        return _message(value, name).decode()
    except UnicodeDecodeError:
        raise UserError(f"{name}: a text is not UTF-8") from None


def _fields(data: bytes, name: str) -> Iterator[tuple[int, Any]]:
    """The numbered fields of a message: int, float or bytes. Raises UserError where it is none."""
    place, end, value = 0, len(data), 0
    while place < end:
        key, place = (data[place], place + 1) if data[place] < 128 else _varint(data, place, name)
        field, wire = key >> 3, key & 7
        if wire not in (0, 1, 2, 5):
            raise UserError(f"{name} is not a SentencePiece model: field {field} has wire type {wire}")
        if wire in (0, 2):
            short = place < end and data[place] < 128
            value, place = (data[place], place + 1) if short else _varint(data, place, name)
            if wire == 0:
                yield field, value
                continue
        size = value if wire == 2 else 8 if wire == 1 else 4
        if size > end - place:
            raise UserError(f"{name} is cut short: {size:,} bytes at byte {place:,} are not there")
        taken, place = data[place : place + size], place + size
        yield field, taken if wire == 2 else struct.unpack("<d" if wire == 1 else "<f", taken)[0]


def _varint(data: bytes, place: int, name: str) -> tuple[int, int]:
    value = 0
    for shift, byte in zip(range(0, 70, 7), data[place : place + 10], strict=False):
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place + shift // 7 + 1
    raise UserError(f"{name} is not a SentencePiece model, or is cut short")


# Writing


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
        _put(1, _put_piece(text or "", score, kind))
        for text, score, kind in zip(spec.tokens, spec.scores, kinds(spec), strict=True)
    )
    return pieces + _put(2, _trainer(spec)) + _put(3, _normalizer(spec))


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


def _put_piece(text: str, score: float, kind: int) -> bytes:
    kept = _put_number(3, kind) if kind != NORMAL else b""
    return _put(1, text.encode()) + b"\x15" + struct.pack("<f", score) + kept


def _trainer(spec: TokenizerSpec) -> bytes:
    out = (
        _put_number(3, KINDS[spec.model]) + _put_number(4, len(spec.tokens)) + _put_number(35, spec.fallback)
    )
    out += _put(44, spec.surface.encode()) if spec.surface is not None else b""
    roles = ((40, 45, spec.unknown), (41, 46, spec.bos), (42, 47, spec.eos), (43, 48, spec.pad))
    for number, name, id in roles:
        out += _put_number(number, -1 if id is None else id)
        out += _put(name, (spec.tokens[id] or "").encode()) if id is not None else b""
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
        _put(1, b"user_defined" if charsmap else b"identity")
        + _put(2, charsmap)
        + _put_number(3, prefix)
        + _put_number(4, squeeze)
        + _put_number(5, escape)
    )


def _taken(rules: list[Rule], rule: Rule) -> bool:
    found = bool(rules) and rules[0] == rule
    if found:
        rules.pop(0)
    return found


def _put_number(field: int, value: int) -> bytes:
    return _put_varint(field << 3) + _put_varint(value & (1 << 64) - 1)


def _put(field: int, data: bytes) -> bytes:
    return _put_varint(field << 3 | 2) + _put_varint(len(data)) + data


def _put_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
