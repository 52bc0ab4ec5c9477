"""Hugging Face's tokenizer.json, read (hf_json_write.py writes; hf_rules.py: what changes text).

What is supported is named here, part by part; anything else that a file asks for is refused by its name.
Truncation and padding, which a file may ask for, belong to the code that builds batches, not to a
tokenizer.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from cutaway.errors import UserError, quoted
from cutaway.tokenizer.added import AddedToken
from cutaway.tokenizer.bpe import BYTE_TOKENS, Pair
from cutaway.tokenizer.decode import FIRST, KEEP, ONE, Lead, Words
from cutaway.tokenizer.formats.fields import MOST_TOKENS, Fields, limited
from cutaway.tokenizer.formats.hf_rules import flat, normalizer, pattern, pretokenizer, replacement, scheme
from cutaway.tokenizer.formats.merges import checked
from cutaway.tokenizer.pretokenize import SPACE
from cutaway.tokenizer.spec import TokenizerSpec
from cutaway.tokenizer.template import PLAIN, PairTemplate, Piece, bert, roberta
from cutaway.tokenizer.unigram import LONGEST_PIECE
from cutaway.tokenizer.wordpiece import CONTINUES, LONGEST_WORD


def read(whole: Fields) -> TokenizerSpec:
    """The spec of a tokenizer.json. Raises UserError for what is not supported, by name."""
    model = whole.sub("model")
    kind = model.get("type", str, _untyped(model))
    if kind not in _MODELS:
        raise UserError(f"{whole.where}: the model {quoted(kind)} is not supported; {', '.join(_MODELS)} are")
    vocabulary, fields = _MODELS[kind](model)
    added = tuple(_added(entry) for entry in whole.subs("added_tokens"))
    steps, bytewise = pretokenizer(whole)
    if bytewise and kind != "BPE":
        raise UserError(f"{whole.where}: a ByteLevel pre-tokenizer does not belong to a {kind} model")
    tokens = token_list(vocabulary, added, whole.where)
    checked(fields.get("merges", []), vocabulary, whole.where)
    before, behind, named = _processor(whole)
    begin, end = before[0] if before else None, behind[-1] if behind else None
    _are_tokens((*before, *behind, named), tokens, whole)
    template = _stated(whole)
    if template is not None:
        _are_tokens((what for what, _ in template.pair if isinstance(what, int)), tokens, whole)
    decoder = _words(whole) if kind in ("WordPiece", "WordLevel") else None
    fallback = fields.get("fallback", False)
    return TokenizerSpec(
        tokens=tokens,
        vocabulary=vocabulary,
        model=kind,  # pyright: ignore[reportArgumentType]
        **fields,
        bytewise=bytewise,
        normalizer=normalizer(whole),
        pretokenizer=steps,
        added=added,
        lead=Lead() if decoder else _decoder(whole, bytewise, fallback, vocabulary),
        words=decoder,
        drops_first=bytewise and fields.get("unknown") is None,
        bos=begin,
        eos=named if end is None else end,
        add_bos=begin is not None,
        add_eos=end is not None,
        before=before if len(before) > 1 else None,
        behind=behind if len(behind) > 1 else None,
        template=template,
    )


def _are_tokens(ids: Iterable[int | None], tokens: list[str | None], whole: Fields) -> None:
    for id in ids:
        if id is not None and not (0 <= id < len(tokens) and tokens[id]):
            raise UserError(f"{whole.where}: the post-processor names the id {id}, which is no token")


def _untyped(model: Fields) -> str:
    """The kind of a model of an older file, which does not say it."""
    if model.has("merges"):
        return "BPE"
    if isinstance(model.value.get("vocab"), list):
        return "Unigram"
    parts = model.has("continuing_subword_prefix") or model.has("max_input_chars_per_word")
    return "WordPiece" if parts else "WordLevel"


def _bpe(model: Fields) -> tuple[dict[str, int], dict[str, Any]]:
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key, str, ""):
            raise UserError(f"{model.where}: {key} {quoted(model.value[key])} is not supported")
    if model.value.get("dropout"):
        raise UserError(f"{model.where}: dropout {quoted(model.value['dropout'])} is not supported")
    vocabulary = _vocabulary(model)
    return vocabulary, {
        "merges": _merges(model),
        "whole": model.get("ignore_merges", bool, False),
        "fallback": model.get("byte_fallback", bool, False),
        "fuse": model.get("fuse_unk", bool, False),
        "unknown": _unknown(model, vocabulary),
    }


def _wordpiece(model: Fields) -> tuple[dict[str, int], dict[str, Any]]:
    vocabulary = _vocabulary(model)
    longest = model.get("max_input_chars_per_word", int, LONGEST_WORD)
    if longest > _LONGEST_WORD:
        raise UserError(f"{model.where}: max_input_chars_per_word {longest:,} is over {_LONGEST_WORD:,}")
    return vocabulary, {
        "continues": model.get("continuing_subword_prefix", str, CONTINUES),
        "longest": longest,
        "unknown": _unknown(model, vocabulary, "[UNK]"),
    }


def _wordlevel(model: Fields) -> tuple[dict[str, int], dict[str, Any]]:
    vocabulary = _vocabulary(model)
    return vocabulary, {"unknown": _unknown(model, vocabulary, "<unk>")}


def _unigram(model: Fields) -> tuple[dict[str, int], dict[str, Any]]:
    pieces: dict[str, float] = {}
    limited(len(model.need("vocab", list)), model.where)
    for i, piece in enumerate(model.need("vocab", list)):
        match piece:
            case [str(text), float() | int() as score] if abs(score) < _HIGHEST_SCORE and text not in pieces:
                pieces[text] = float(score)
            case _:
                raise UserError(f"{model.where}: vocab[{i}] is {quoted(piece)}, no new piece with a score")
    unknown = model.get("unk_id", int, -1)
    if model.has("unk_id") and not 0 <= unknown < len(pieces):
        raise UserError(f"{model.where}: unk_id is {unknown}, and there are {len(pieces):,} pieces")
    longest = max(map(len, pieces), default=0)
    if longest > LONGEST_PIECE:
        raise UserError(f"{model.where}: a piece has {longest:,} characters; the limit is {LONGEST_PIECE:,}")
    return {text: id for id, text in enumerate(pieces)}, {
        "pieces": pieces,
        "worst": min(pieces.values(), default=0.0),
        "scores": list(pieces.values()),
        "fallback": model.get("byte_fallback", bool, False),
        "fuse": True,
        "unknown": unknown if model.has("unk_id") else None,
    }


_MODELS = {"BPE": _bpe, "WordPiece": _wordpiece, "Unigram": _unigram, "WordLevel": _wordlevel}
_LONGEST_WORD = 1_000  # characters; cutting takes a time that grows with its square
_HIGHEST_SCORE = 1e30  # scores are logarithms of probabilities


def _unknown(model: Fields, vocabulary: Mapping[str, int], usual: str = "") -> int | None:
    text = model.get("unk_token", str, usual)
    if text not in vocabulary and (text or usual):
        raise UserError(f"{model.where}: the unk_token {quoted(text)} is not in the vocabulary")
    return vocabulary[text] if text or usual else None


def token_list(vocabulary: Mapping[str, int], added: Iterable[AddedToken], where: str) -> list[str | None]:
    """Texts by id, None where an id has none.

    Raises UserError for an id that two texts have, a text with two ids, and ids far out of reach.
    """
    texts: dict[int, str] = {}
    for text, id in vocabulary.items():
        if texts.setdefault(id, text) != text:
            raise UserError(f"{where}: {quoted(texts[id])} and {quoted(text)} have the same id {id}")
    for token in added:
        if texts.setdefault(token.id, token.text) != token.text:
            raise UserError(
                f"{where}: the added token {quoted(token.text)} has the id {token.id}, "
                f"which is {quoted(texts[token.id])}"
            )
    limited(len(texts), where)
    top = max(texts, default=-1)
    if min(texts, default=0) < 0 or top > 2 * len(texts) + 100_000:
        raise UserError(f"{where}: ids run from {min(texts)} to {top:,} for {len(texts):,} tokens")
    ids = dict(vocabulary)
    for token in added:
        if ids.setdefault(token.text, token.id) != token.id:
            raise UserError(
                f"{where}: the token {quoted(token.text)} has two ids, {ids[token.text]} and {token.id}"
            )
    tokens: list[str | None] = [None] * (top + 1)
    for id, text in texts.items():
        tokens[id] = text
    return tokens


def _vocabulary(model: Fields) -> dict[str, int]:
    vocabulary = model.need("vocab", dict)
    limited(len(vocabulary), model.where)
    for text, id in vocabulary.items():
        if type(id) is not int:
            raise UserError(f"{model.where}: the id of {quoted(text)} is {quoted(id)}, not a whole number")
    return vocabulary


def _merges(model: Fields) -> list[Pair]:
    out: list[Pair] = []
    merges = model.need("merges", list)
    limited(len(merges), model.where, "merges", 4 * MOST_TOKENS)
    for i, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(side, str) and side for side in pair)
        ):
            raise UserError(f"{model.where}: merges[{i}] is {quoted(merge)}, not two tokens")
        out.append((pair[0], pair[1]))
    return out


def _added(entry: Fields) -> AddedToken:
    special = entry.get("special", bool, False)
    return AddedToken(
        id=entry.get("id", int, -1),
        text=entry.need("content", str),
        special=special,
        lstrip=entry.get("lstrip", bool, False),
        rstrip=entry.get("rstrip", bool, False),
        single_word=entry.get("single_word", bool, False),
        normalized=entry.get("normalized", bool, not special),
    )


# Decoders and post-processors


def _decoder(whole: Fields, bytewise: bool, fallback: bool, vocabulary: Mapping[str, int]) -> Lead:
    """What is taken off the front. Raises UserError where the decoder does not fit the vocabulary."""
    kinds = [(entry.kind(), entry) for entry in flat(whole, "decoder", "decoders")]
    names = [kind for kind, _ in kinds]
    if bytewise:
        if names != ["ByteLevel"]:
            raise UserError(f"{whole.where}: the decoder {_named(names)} does not belong to ByteLevel")
        return Lead()
    lead = Lead()
    spaces = False
    for i, (kind, entry) in enumerate(kinds):
        if kind == "Replace":
            spaces = spaces or _opens_spaces(entry)
        elif kind == "Metaspace":
            spaces = True
            lead = Lead(KEEP if scheme(entry) == "never" else FIRST)
            replacement(entry)
        elif kind == "Strip":
            lead = _stripping(entry, "Fuse" in names[:i])
        elif kind not in ("ByteFallback", "Fuse"):
            raise UserError(f"{entry.where}: the decoder {quoted(kind)} is not supported")
    if not spaces and any(SPACE in text for text in vocabulary):
        raise UserError(f"{whole.where}: the decoder {_named(names)} leaves {SPACE!r} as it is")
    if fallback != ("ByteFallback" in names) and any(token in vocabulary for token in BYTE_TOKENS):
        raise UserError(f"{whole.where}: byte_fallback and the decoder {_named(names)} disagree")
    return lead


def _words(whole: Fields) -> Words:
    """How words are joined to text; without a decoder, with a space between any two tokens."""
    entries = list(flat(whole, "decoder", "decoders"))
    if not entries:
        return Words()
    if [entry.kind() for entry in entries] != ["WordPiece"]:
        named = _named([entry.kind() for entry in entries])
        raise UserError(f"{whole.where}: the decoder {named} does not belong to a vocabulary of words")
    return Words(entries[0].get("prefix", str, CONTINUES), entries[0].get("cleanup", bool, True))


def _opens_spaces(entry: Fields) -> bool:
    if pattern(entry) != (SPACE, True) or entry.get("content", str, "") != " ":
        raise UserError(f"{entry.where}: the decoder Replace is supported for {SPACE!r} and a space only")
    return True


def _stripping(entry: Fields, fused: bool) -> Lead:
    start, stop = entry.get("start", int, 0), entry.get("stop", int, 0)
    if not fused or entry.get("content", str, " ") != " " or start not in (0, 1) or stop:
        raise UserError(f"{entry.where}: the decoder Strip may take one space off fused text, no more")
    return Lead(ONE if start else KEEP)


def _named(names: list[str]) -> str:
    return "null" if not names else quoted(" + ".join(names))


Ids = tuple[int, ...]


def _processor(whole: Fields) -> tuple[Ids, Ids, int | None]:
    """The ids that go in front of a single text and behind it, and the end of text that a template names."""
    before: Ids = ()
    behind: Ids = ()
    named = None
    for entry in flat(whole, "post_processor", "processors"):
        kind = entry.kind()
        if kind == "TemplateProcessing":
            before, behind, named = _template(entry)
        elif kind in ("BertProcessing", "RobertaProcessing"):
            before, behind = (pair_id(entry, "cls"),), (pair_id(entry, "sep"),)
        elif kind != "ByteLevel":
            raise UserError(f"{entry.where}: the post-processor {quoted(kind)} is not supported")
    return before, behind, named


def _template(entry: Fields) -> tuple[Ids, Ids, int | None]:
    sides: tuple[list[int], list[int]] = ([], [])
    after = False
    for piece in entry.subs("single"):
        if piece.has("Sequence"):
            after = True
        else:
            sides[after].extend(template_ids(entry, piece.sub("SpecialToken").need("id", str)))
    return tuple(sides[0]), tuple(sides[1]), _named_end(entry)


def _stated(whole: Fields) -> PairTemplate | None:
    """What is around one text and around two; None where there is no post-processor."""
    found = None
    for entry in flat(whole, "post_processor", "processors"):
        match entry.kind():
            case "TemplateProcessing":
                found = PairTemplate(_pieces(entry, "pair"), _pieces(entry, "single"))
            case "BertProcessing":
                found = bert(pair_id(entry, "cls"), pair_id(entry, "sep"))
            case "RobertaProcessing":
                found = roberta(pair_id(entry, "cls"), pair_id(entry, "sep"))
    return found or (None if whole.value.get("post_processor") is None else PLAIN)


def _pieces(entry: Fields, key: str) -> tuple[Piece, ...]:
    found = list[Piece]()
    for piece in entry.subs(key):
        if piece.has("Sequence"):
            own = piece.sub("Sequence")
            name = own.need("id", str) if key == "pair" else "A"  # whatever a file calls a single text
            if name not in ("A", "B"):
                raise UserError(f"{entry.where}: the template names the text {quoted(name)}, not A or B")
            found.append(Piece(name, own.get("type_id", int, 0)))  # type: ignore[arg-type]
        else:
            own = piece.sub("SpecialToken")
            ids = template_ids(entry, own.need("id", str))
            found += [Piece(id, own.get("type_id", int, 0)) for id in ids]
    return tuple(found)


def _named_end(entry: Fields) -> int | None:
    """The end-of-text token as hf_json_write.py stores it: a template lists it and never uses it."""
    used = {
        piece.sub("SpecialToken").need("id", str)
        for key in ("single", "pair")
        for piece in entry.subs(key)
        if piece.has("SpecialToken")
    }
    unused = [name for name in entry.get("special_tokens", dict, {}) if name not in used]
    ids = template_ids(entry, unused[0]) if len(unused) == 1 else []
    return ids[0] if len(ids) == 1 else None


def template_ids(entry: Fields, name: str) -> list[int]:
    """The ids of a token that a template names."""
    ids = entry.sub("special_tokens").sub(name).need("ids", list)
    if not all(type(id) is int for id in ids):
        raise UserError(f"{entry.where}: the ids of {quoted(name)} are {quoted(ids)}, not whole numbers")
    return ids


def pair_id(entry: Fields, key: str) -> int:
    """The id of a token that is given as its text and its id."""
    pair = entry.need(key, list)
    if len(pair) != 2 or type(pair[1]) is not int:
        raise UserError(f"{entry.where}: {key} is {quoted(pair)}, not a token and its id")
    return pair[1]
