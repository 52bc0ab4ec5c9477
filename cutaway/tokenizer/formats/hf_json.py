"""Hugging Face's tokenizer.json: read, and written so that their `tokenizers` gives the same ids.

What is supported is named here, part by part; anything else that a file asks for is refused by its name.
Truncation and padding, which a file may ask for, belong to whoever builds batches and are not done by a
tokenizer.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import regex

from cutaway.errors import Failed, Refused
from cutaway.tokenizer import normalize
from cutaway.tokenizer.added import AddedToken
from cutaway.tokenizer.bpe import BYTE_TOKENS, Pair
from cutaway.tokenizer.decode import FIRST, KEEP, ONE, Lead
from cutaway.tokenizer.formats.fields import Fields
from cutaway.tokenizer.formats.merges import all_splits
from cutaway.tokenizer.normalize import Rule
from cutaway.tokenizer.parts import Parts
from cutaway.tokenizer.pretokenize import GPT2, SPACE, Metaspace, PrefixSpace, Split, Step, compiled

BEHAVIOURS = {
    "Isolated": "isolated",
    "Removed": "removed",
    "Contiguous": "contiguous",
    "MergedWithPrevious": "merged_with_previous",
    "MergedWithNext": "merged_with_next",
}
PUNCTUATION = r"[\p{P}$+<=>^`|~]"
DEEPEST = 20  # Sequences in Sequences


def read(whole: Fields) -> Parts:
    """The parts of a tokenizer.json. Raises Refused for what is not supported, by name."""
    model = whole.sub("model")
    kind = model.get("type", str, "BPE" if model.has("merges") else "none")
    if kind != "BPE":
        raise Refused(f"{whole.where}: the model {kind} is not supported; BPE is")
    _refuse_fields(model)
    vocabulary = _vocabulary(model)
    added = tuple(_added(entry) for entry in whole.subs("added_tokens"))
    steps, bytewise = _pretokenizer(whole)
    fallback = model.get("byte_fallback", bool, False)
    unknown = model.get("unk_token", str, "")
    if unknown and unknown not in vocabulary:
        raise Refused(f"{whole.where}: the unk_token {unknown!r} is not in the vocabulary")
    begin, end = _processor(whole)
    return Parts(
        tokens=token_list(vocabulary, added, whole.where),
        vocabulary=vocabulary,
        merges=_merges(model),
        bytewise=bytewise,
        whole=model.get("ignore_merges", bool, False),
        fallback=fallback,
        fuse=model.get("fuse_unk", bool, False),
        normalizer=_normalizer(whole),
        pretokenizer=steps,
        added=added,
        lead=_decoder(whole, bytewise, fallback, vocabulary),
        bos=begin,
        eos=end,
        unknown=vocabulary[unknown] if unknown else None,
        add_bos=begin is not None,
        add_eos=end is not None,
    )


def token_list(vocabulary: Mapping[str, int], added: Iterable[AddedToken], where: str) -> list[str | None]:
    """Texts by id, None where an id has none.

    Raises Refused for ids that are taken twice or far out of reach.
    """
    texts: dict[int, str] = {}
    for text, id in vocabulary.items():
        if texts.setdefault(id, text) != text:
            raise Refused(f"{where}: {texts[id]!r} and {text!r} have the same id {id}")
    for token in added:
        texts[token.id] = token.text
    top = max(texts, default=-1)
    if min(texts, default=0) < 0 or top > 2 * len(texts) + 100_000:
        raise Refused(f"{where}: ids run from {min(texts)} to {top:,} for {len(texts):,} tokens")
    tokens: list[str | None] = [None] * (top + 1)
    for id, text in texts.items():
        tokens[id] = text
    return tokens


def _refuse_fields(model: Fields) -> None:
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key, str, ""):
            raise Refused(f"{model.where}: {key} {model.value[key]!r} is not supported")
    if model.value.get("dropout"):
        raise Refused(
            f"{model.where}: dropout {model.value['dropout']!r} is not supported: ids would be random"
        )


def _vocabulary(model: Fields) -> dict[str, int]:
    vocabulary = model.need("vocab", dict)
    for text, id in vocabulary.items():
        if type(id) is not int:
            raise Refused(f"{model.where}: the id of {text!r} is {id!r}, not a whole number")
    return vocabulary


def _merges(model: Fields) -> list[Pair]:
    out: list[Pair] = []
    for i, merge in enumerate(model.need("merges", list)):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(side, str) and side for side in pair)
        ):
            raise Refused(f"{model.where}: merges[{i}] is {merge!r}, not two tokens")
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


# Normalisers


def _normalizer(whole: Fields) -> tuple[Rule, ...]:
    return tuple(rule for entry in _flat(whole, "normalizer", "normalizers") for rule in _rules(entry))


def _rules(entry: Fields) -> list[Rule]:
    kind = entry.kind()
    if kind in normalize.FORMS:
        return [normalize.FORMS[kind]]
    if kind == "Lowercase":
        return [normalize.Lowercase()]
    if kind == "Prepend":
        return [normalize.Prepend(entry.need("prepend", str))]
    if kind == "Strip":
        return [normalize.Strip(entry.get("strip_left", bool, True), entry.get("strip_right", bool, True))]
    if kind == "Replace":
        old, literal = _pattern(entry)
        new = entry.get("content", str, "")
        return [normalize.Replace(old, new) if literal else normalize.ReplaceMatches(old, new)]
    raise Refused(f"{entry.where}: the normalizer {kind} is not supported")


def _pattern(entry: Fields) -> tuple[str, bool]:
    """A pattern, and whether it is a plain text rather than a regular expression."""
    pattern = entry.need("pattern", dict)
    for kind in ("String", "Regex"):
        text = pattern.get(kind)
        if isinstance(text, str) and text:
            if kind == "Regex":
                compiled(text)
            return text, kind == "String"
    raise Refused(f"{entry.where}: the pattern {json.dumps(pattern)[:60]} is neither a String nor a Regex")


# Pre-tokenisers


def _pretokenizer(whole: Fields) -> tuple[tuple[Step, ...], bool]:
    """The steps, and whether pieces are bytes."""
    entries = list(_flat(whole, "pre_tokenizer", "pretokenizers"))
    bytewise = bool(entries) and entries[-1].kind() == "ByteLevel"
    steps: list[Step] = []
    for i, entry in enumerate(entries):
        kind = entry.kind()
        if kind not in _STEPS:
            raise Refused(f"{entry.where}: the pre-tokenizer {kind} is not supported")
        if kind == "ByteLevel" and i + 1 < len(entries):
            raise Refused(f"{entry.where}: the pre-tokenizer ByteLevel is only supported as the last one")
        steps += _STEPS[kind](entry)
    return tuple(steps), bytewise


def _byte_level(entry: Fields) -> list[Step]:
    prefix: list[Step] = [PrefixSpace()] if entry.get("add_prefix_space", bool, True) else []
    return [*prefix, Split(GPT2)] if entry.get("use_regex", bool, True) else prefix


def _split(entry: Fields) -> list[Step]:
    pattern, literal = _pattern(entry)
    behaviour = _behaviour(entry, entry.need("behavior", str))
    return [Split(regex.escape(pattern) if literal else pattern, behaviour, entry.get("invert", bool, False))]


def _behaviour(entry: Fields, name: str) -> str:
    if name not in BEHAVIOURS:
        raise Refused(f"{entry.where}: the behavior {name!r} is not one of {', '.join(BEHAVIOURS)}")
    return BEHAVIOURS[name]


def _digits(entry: Fields) -> list[Step]:
    return [Split(r"\p{N}", "isolated" if entry.get("individual_digits", bool, False) else "contiguous")]


def _punctuation(entry: Fields) -> list[Step]:
    return [Split(PUNCTUATION, _behaviour(entry, entry.get("behavior", str, "Isolated")))]


def _metaspace(entry: Fields) -> list[Step]:
    return [Metaspace(_replacement(entry), _scheme(entry), entry.get("split", bool, True))]


def _replacement(entry: Fields) -> str:
    replacement = entry.get("replacement", str, SPACE)
    if replacement != SPACE:
        raise Refused(f"{entry.where}: the replacement {replacement!r} is not supported; {SPACE!r} is")
    return replacement


def _scheme(entry: Fields) -> str:
    scheme = entry.get(
        "prepend_scheme", str, "always" if entry.get("add_prefix_space", bool, True) else "never"
    )
    if scheme not in ("always", "first", "never"):
        raise Refused(f"{entry.where}: the prepend_scheme {scheme!r} is not always, first or never")
    return scheme


_STEPS: dict[str, Callable[[Fields], list[Step]]] = {
    "ByteLevel": _byte_level,
    "Split": _split,
    "Digits": _digits,
    "Metaspace": _metaspace,
    "Punctuation": _punctuation,
    "Whitespace": lambda entry: [Split(r"\w+|[^\w\s]+", "removed", invert=True)],
    "WhitespaceSplit": lambda entry: [Split(r"\s", "removed")],
}


# Decoders and post-processors


def _decoder(whole: Fields, bytewise: bool, fallback: bool, vocabulary: Mapping[str, int]) -> Lead:
    """What is taken off the front. Raises Refused where the decoder does not fit the vocabulary."""
    kinds = [(entry.kind(), entry) for entry in _flat(whole, "decoder", "decoders")]
    names = [kind for kind, _ in kinds]
    if bytewise:
        if names != ["ByteLevel"]:
            raise Refused(
                f"{whole.where}: the decoder {_named(names)} does not belong to a ByteLevel pre-tokenizer"
            )
        return Lead()
    lead = Lead()
    spaces = False
    for i, (kind, entry) in enumerate(kinds):
        if kind == "Replace":
            spaces = spaces or _opens_spaces(entry)
        elif kind == "Metaspace":
            spaces = True
            lead = Lead(KEEP if _scheme(entry) == "never" else FIRST)
            _replacement(entry)
        elif kind == "Strip":
            lead = _stripping(entry, "Fuse" in names[:i])
        elif kind not in ("ByteFallback", "Fuse"):
            raise Refused(f"{entry.where}: the decoder {kind} is not supported")
    if not spaces and any(SPACE in text for text in vocabulary):
        raise Refused(
            f"{whole.where}: the decoder {_named(names)} leaves {SPACE!r} as it is, which is not supported"
        )
    if fallback != ("ByteFallback" in names) and any(token in vocabulary for token in BYTE_TOKENS):
        raise Refused(
            f"{whole.where}: the model's byte_fallback and the decoder {_named(names)} do not agree"
        )
    return lead


def _opens_spaces(entry: Fields) -> bool:
    if _pattern(entry) != (SPACE, True) or entry.get("content", str, "") != " ":
        raise Refused(f"{entry.where}: the decoder Replace is supported for {SPACE!r} and a space only")
    return True


def _stripping(entry: Fields, fused: bool) -> Lead:
    start, stop = entry.get("start", int, 0), entry.get("stop", int, 0)
    if not fused or entry.get("content", str, " ") != " " or start not in (0, 1) or stop:
        raise Refused(
            f"{entry.where}: the decoder Strip is supported for one space in front of fused text only"
        )
    return Lead(ONE if start else KEEP)


def _named(names: list[str]) -> str:
    return "null" if not names else " + ".join(names)


def _processor(whole: Fields) -> tuple[int | None, int | None]:
    """The ids that go in front of a single text and behind it."""
    begin = end = None
    for entry in _flat(whole, "post_processor", "processors"):
        kind = entry.kind()
        if kind == "TemplateProcessing":
            begin, end = _template(entry)
        elif kind in ("BertProcessing", "RobertaProcessing"):
            begin, end = _pair_id(entry, "cls"), _pair_id(entry, "sep")
        elif kind != "ByteLevel":
            raise Refused(f"{entry.where}: the post-processor {kind} is not supported")
    return begin, end


def _template(entry: Fields) -> tuple[int | None, int | None]:
    sides: tuple[list[int], list[int]] = ([], [])
    after = False
    for piece in entry.subs("single"):
        if piece.has("Sequence"):
            after = True
        else:
            sides[after].extend(_template_ids(entry, piece.sub("SpecialToken").need("id", str)))
    if any(len(side) > 1 for side in sides):
        raise Refused(f"{entry.where}: a template with several tokens on one side of a text is not supported")
    return tuple(side[0] if side else None for side in sides)  # pyright: ignore[reportReturnType]


def _template_ids(entry: Fields, name: str) -> list[int]:
    ids = entry.sub("special_tokens").sub(name).need("ids", list)
    if not all(type(id) is int for id in ids):
        raise Refused(f"{entry.where}: the ids of {name!r} are {ids!r}, not whole numbers")
    return ids


def _pair_id(entry: Fields, key: str) -> int:
    pair = entry.need(key, list)
    if len(pair) != 2 or type(pair[1]) is not int:
        raise Refused(f"{entry.where}: {key} is {pair!r}, not a token and its id")
    return pair[1]


def _flat(whole: Fields, key: str, inner: str, depth: int = 0) -> Iterable[Fields]:
    """The parts in a field, those of a Sequence one by one."""
    if not whole.has(key):
        return
    yield from _unrolled(whole.sub(key), inner, depth)


def _unrolled(entry: Fields, inner: str, depth: int) -> Iterable[Fields]:
    if depth > DEEPEST:
        raise Refused(f"{entry.where}: Sequences within Sequences, {DEEPEST} deep")
    if entry.kind() != "Sequence":
        yield entry
        return
    for part in entry.subs(inner):
        yield from _unrolled(part, inner, depth + 1)


# Writing


def save(parts: Parts, path: str | os.PathLike[str]) -> Path:
    """Write parts as tokenizer.json, whole or not at all; a folder gets one inside.

    Returns the file's path.
    """
    target = Path(path)
    target = target / "tokenizer.json" if target.is_dir() else target
    text = json.dumps(write(parts), ensure_ascii=False, indent=2)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(target)
    except OSError as problem:
        scratch.unlink(missing_ok=True)
        raise Failed(f"{target} cannot be written: {problem.strerror or problem}") from None
    return target


def write(parts: Parts) -> dict[str, Any]:
    """Parts as the object of a tokenizer.json. Raises Refused for what the format cannot say."""
    if parts.unused:
        raise Refused("tokenizer.json cannot say that a token is unused, as this vocabulary does")
    unknown = None if parts.unknown is None else parts.tokens[parts.unknown]
    merges = parts.merges if parts.merges is not None else all_splits(parts)
    pretokenizer, normalizer = _write_steps(parts), _write_rules(parts)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_write_added(token) for token in sorted(parts.added, key=lambda token: token.id)],
        "normalizer": _sequence(normalizer, "normalizers"),
        "pre_tokenizer": _sequence(pretokenizer, "pretokenizers"),
        "post_processor": _write_processor(parts),
        "decoder": _write_decoder(parts),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if parts.bytewise or unknown not in parts.vocabulary else unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": parts.fuse,
            "byte_fallback": parts.fallback,
            "ignore_merges": parts.whole,
            "vocab": dict(sorted(_written_vocabulary(parts).items(), key=lambda item: item[1])),
            "merges": [list(pair) for pair in merges],
        },
    }


def _written_vocabulary(parts: Parts) -> dict[str, int]:
    """The model's vocabulary, with the added tokens where they would not get their own ids otherwise.

    The reader gives an added token that the vocabulary lacks the next free id, whatever its entry says.
    """
    vocabulary = dict(parts.vocabulary)
    lacking = sorted((token.id, token.text) for token in parts.added if token.text not in vocabulary)
    if [id for id, _ in lacking] != list(range(len(vocabulary), len(vocabulary) + len(lacking))):
        vocabulary |= {text: id for id, text in lacking}
    return vocabulary


def _write_added(token: AddedToken) -> dict[str, Any]:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": token.id, "content": token.text, **{flag: getattr(token, flag) for flag in flags}}


def _write_rules(parts: Parts) -> list[dict[str, Any]]:
    """The normalisers.

    SentencePiece's, which know where a text begins, can be said where nothing cuts the text.
    """
    knowing = any(isinstance(rule, (normalize.Prefix, normalize.OneSpace)) for rule in parts.normalizer)
    if knowing and not all(token.special for token in parts.added):
        raise Refused(
            "tokenizer.json cannot say that a space goes in front of a text but not behind an added token"
        )
    return [entry for rule in parts.normalizer for entry in _write_rule(rule)]


def _write_rule(rule: Rule) -> list[dict[str, Any]]:
    match rule:
        case normalize.OneSpace():
            runs = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
            return [runs, {"type": "Replace", "pattern": {"Regex": r"\A | \z"}, "content": ""}]
        case _:
            return [_write_simple(rule)]


def _write_simple(rule: Rule) -> dict[str, Any]:
    match rule:
        case normalize.Unicode(form):
            return {"type": form}
        case normalize.Lowercase():
            return {"type": "Lowercase"}
        case normalize.Replace(old, new):
            return {"type": "Replace", "pattern": {"String": old}, "content": new}
        case normalize.ReplaceMatches(pattern, new):
            return {"type": "Replace", "pattern": {"Regex": pattern}, "content": new}
        case normalize.Prepend(prefix) | normalize.Prefix(prefix):
            return {"type": "Prepend", "prepend": prefix}
        case normalize.Strip(left, right):
            return {"type": "Strip", "strip_left": left, "strip_right": right}
    raise Refused(f"tokenizer.json cannot say what the normaliser {type(rule).__name__} does")


def _write_steps(parts: Parts) -> list[dict[str, Any]]:
    steps = list(parts.pretokenizer)
    last = []
    if parts.bytewise:
        regular = len(steps) > 1 and steps[-2:] == [PrefixSpace(), Split(GPT2)]
        steps = steps[:-1] if regular else steps
        prefix = bool(steps) and steps[-1] == PrefixSpace()
        steps = steps[:-1] if prefix else steps
        last = [{"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regular}]
    return [_write_step(step) for step in steps] + last


def _write_step(step: Step) -> dict[str, Any]:
    match step:
        case Split(pattern, behaviour, invert):
            name = next(name for name, ours in BEHAVIOURS.items() if ours == behaviour)
            return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": name, "invert": invert}
        case Metaspace(replacement, prepend, split):
            return {
                "type": "Metaspace",
                "replacement": replacement,
                "prepend_scheme": prepend,
                "split": split,
            }
    raise Refused(
        f"tokenizer.json cannot say what the pre-tokeniser {type(step).__name__} does in this place"
    )


def _write_decoder(parts: Parts) -> dict[str, Any]:
    if parts.bytewise:
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    if parts.lead.rule == FIRST:
        return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    decoders: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    decoders += [{"type": "ByteFallback"}] if parts.fallback else []
    decoders.append({"type": "Fuse"})
    if parts.lead.rule != KEEP:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": decoders}


def _write_processor(parts: Parts) -> dict[str, Any] | None:
    begin = parts.bos if parts.add_bos else None
    end = parts.eos if parts.add_eos else None
    if begin is None and end is None:
        return (
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
            if (parts.bytewise)
            else None
        )
    around = [
        [] if id is None else [{"SpecialToken": {"id": parts.tokens[id], "type_id": 0}}]
        for id in (begin, end)
    ]
    second = [
        [] if id is None else [{"SpecialToken": {"id": parts.tokens[id], "type_id": 1}}]
        for id in (begin, end)
    ]
    first = [*around[0], {"Sequence": {"id": "A", "type_id": 0}}, *around[1]]
    names = [parts.tokens[id] for id in (begin, end) if id is not None]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *second[0], {"Sequence": {"id": "B", "type_id": 1}}, *second[1]],
        "special_tokens": {
            name: {"id": name, "ids": [id], "tokens": [name]}
            for name, id in zip(names, [id for id in (begin, end) if id is not None], strict=True)
        },
    }


def _sequence(entries: list[dict[str, Any]], inner: str) -> dict[str, Any] | None:
    if not entries:
        return None
    return entries[0] if len(entries) == 1 else {"type": "Sequence", inner: entries}
