"""The normalisers and pre-tokenisers of a tokenizer.json: each part's name, and what it is here."""

import base64
import json
from collections.abc import Callable, Iterable

import regex

from cutaway.errors import UserError, quoted
from cutaway.tokenizer import normalize
from cutaway.tokenizer.charsmap import Precompiled
from cutaway.tokenizer.formats.fields import Fields
from cutaway.tokenizer.normalize import Rule
from cutaway.tokenizer.pretokenize import GPT2, SPACE, InBytes, Metaspace, PrefixSpace, Split, Step, compiled
from cutaway.tokenizer.wordpiece import BertNormalizer, BertPreTokenizer

BEHAVIOURS = {
    "Isolated": "isolated",
    "Removed": "removed",
    "Contiguous": "contiguous",
    "MergedWithPrevious": "merged_with_previous",
    "MergedWithNext": "merged_with_next",
}
PUNCTUATION = r"[\p{P}$+<=>^`|~]"
WHITESPACE = Split(r"\w+|[^\w\s]+", "removed", invert=True)
WHITESPACE_SPLIT = Split(r"\s", "removed")
DIGITS = r"\p{N}"
DEEPEST = 20  # Sequences in Sequences


def flat(whole: Fields, key: str, inner: str, depth: int = 0) -> Iterable[Fields]:
    """The spec in a field, those of a Sequence one by one."""
    if not whole.has(key):
        return
    yield from _unrolled(whole.sub(key), inner, depth)


def _unrolled(entry: Fields, inner: str, depth: int) -> Iterable[Fields]:
    if depth > DEEPEST:
        raise UserError(f"{entry.where}: Sequences within Sequences, {DEEPEST} deep")
    if entry.kind() != "Sequence":
        yield entry
        return
    for part in entry.subs(inner):
        yield from _unrolled(part, inner, depth + 1)


# Normalisers


def normalizer(whole: Fields) -> tuple[Rule, ...]:
    """The rules of the file's normaliser, in order."""
    return tuple(rule for entry in flat(whole, "normalizer", "normalizers") for rule in _rules(entry))


def _rules(entry: Fields) -> list[Rule]:
    kind = entry.kind()
    if kind in normalize.FORMS:
        return [normalize.FORMS[kind]]
    if kind in _SIMPLE:
        return [_SIMPLE[kind]]
    if kind == "BertNormalizer":
        return [_bert(entry)]
    if kind == "Precompiled":
        return [_precompiled(entry)]
    if kind == "Prepend":
        return [normalize.Prepend(entry.need("prepend", str))]
    if kind == "Strip":
        return [normalize.Strip(entry.get("strip_left", bool, True), entry.get("strip_right", bool, True))]
    if kind == "Replace":
        old, literal = pattern(entry)
        new = entry.get("content", str, "")
        return [normalize.Replace(old, new) if literal else normalize.ReplaceMatches(old, new)]
    raise UserError(f"{entry.where}: the normalizer {quoted(kind)} is not supported")


_SIMPLE: dict[str, Rule] = {"Lowercase": normalize.Lowercase(), "StripAccents": normalize.StripAccents()}


def _bert(entry: Fields) -> Rule:
    flags = {key: entry.get(key, bool, True) for key in ("clean_text", "handle_chinese_chars", "lowercase")}
    accents = entry.get("strip_accents", bool, False) if entry.has("strip_accents") else None
    return BertNormalizer(**flags, strip_accents=accents)


def _precompiled(entry: Fields) -> Rule:
    try:
        data = base64.b64decode(entry.need("precompiled_charsmap", str), validate=True)
    except ValueError:
        raise UserError(f"{entry.where}: the precompiled_charsmap is not base64") from None
    return Precompiled(data).checked()


def pattern(entry: Fields) -> tuple[str, bool]:
    """A pattern, and whether it is a plain text rather than a regular expression."""
    asked = entry.need("pattern", dict)
    for kind in ("String", "Regex"):
        text = asked.get(kind)
        if isinstance(text, str) and text:
            if kind == "Regex":
                compiled(text)
            return text, kind == "String"
    raise UserError(f"{entry.where}: the pattern {json.dumps(asked)[:60]} is neither a String nor a Regex")


# Pre-tokenisers


def pretokenizer(whole: Fields) -> tuple[tuple[Step, ...], bool]:
    """The steps, and whether pieces are bytes."""
    entries = list(flat(whole, "pre_tokenizer", "pretokenizers"))
    steps: list[Step] = []
    within: list[Step] | None = None  # steps behind ByteLevel, which see bytes as its characters
    for entry in entries:
        kind = entry.kind()
        if kind not in _STEPS:
            raise UserError(f"{entry.where}: the pre-tokenizer {quoted(kind)} is not supported")
        if kind == "ByteLevel" and within is not None:
            raise UserError(f"{entry.where}: the pre-tokenizer ByteLevel is there twice")
        (steps if within is None else within).extend(_STEPS[kind](entry))
        within = [] if kind == "ByteLevel" else within
    if within:
        steps.append(InBytes(tuple(within)))
    return tuple(steps), within is not None


def _byte_level(entry: Fields) -> list[Step]:
    prefix: list[Step] = [PrefixSpace()] if entry.get("add_prefix_space", bool, True) else []
    return [*prefix, Split(GPT2)] if entry.get("use_regex", bool, True) else prefix


def _split(entry: Fields) -> list[Step]:
    text, literal = pattern(entry)
    behaviour = _behaviour(entry, entry.need("behavior", str))
    return [Split(regex.escape(text) if literal else text, behaviour, entry.get("invert", bool, False))]


def _behaviour(entry: Fields, name: str) -> str:
    if name not in BEHAVIOURS:
        raise UserError(f"{entry.where}: the behavior {quoted(name)} is not one of {', '.join(BEHAVIOURS)}")
    return BEHAVIOURS[name]


def replacement(entry: Fields) -> str:
    replacement = entry.get("replacement", str, SPACE)
    if replacement != SPACE:
        raise UserError(f"{entry.where}: the replacement is {quoted(replacement)}, not {SPACE!r}")
    return replacement


def scheme(entry: Fields) -> str:
    scheme = entry.get(
        "prepend_scheme", str, "always" if entry.get("add_prefix_space", bool, True) else "never"
    )
    if scheme not in ("always", "first", "never"):
        raise UserError(f"{entry.where}: the prepend_scheme {quoted(scheme)} is not always, first or never")
    return scheme


_STEPS: dict[str, Callable[[Fields], list[Step]]] = {
    "ByteLevel": _byte_level,
    "Split": _split,
    "Digits": lambda e: [
        Split(DIGITS, "isolated" if e.get("individual_digits", bool, False) else "contiguous")
    ],
    "Metaspace": lambda e: [Metaspace(replacement(e), scheme(e), e.get("split", bool, True))],
    "Punctuation": lambda e: [Split(PUNCTUATION, _behaviour(e, e.get("behavior", str, "Isolated")))],
    "BertPreTokenizer": lambda entry: [BertPreTokenizer()],
    "Whitespace": lambda entry: [WHITESPACE],
    "WhitespaceSplit": lambda entry: [WHITESPACE_SPLIT],
}
