"""Tool arguments that each have their own tags: `<parameter=place>here</parameter>`, `place='here'`.

The tags are detected like the rest of a format (tool_format.py), from calls with one argument and with two
and from values of each type: strings may have tags of their own (quotes, `string="true"`) or be bare, so that
only the tool's schema decides whether 7 is a number. A string ends at its closing tag if what follows may
follow, so that `</parameter>` inside of it is part of it; a string that holds everything that could follow
cannot be recognized by its end.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cutaway.generate import json_schema
from cutaway.generate.tool_calls.delimiters import head_of, loose, tail_of

KEY, NAME = "\ue001", "\ue002"  # stand for an argument's and a tool's name in the constants of a format
TEXT = "string"
SHOWN: dict[str, Any] = {
    "integer": 7,
    "number": 2.5,
    "boolean": True,
    "null": None,
    "array": ["aB", 3],
    "object": {"kEy": "vAl"},
}
DELICATE = "a<b"  # a text that some templates put into marks of its own
MAX_ENDS = 64  # places that are tried as the end of one value


@dataclass(frozen=True)
class ValueTags:
    """The constants around values of some types: before, between name and value; after, at its end."""

    kinds: frozenset[str]
    before: str
    after: str

    @property
    def quote(self) -> str:
        """The quote around a string, "" for none."""
        last = self.before[-1:]
        return last if self.kinds == {TEXT} and last in ("'", '"') and self.after.startswith(last) else ""


@dataclass(frozen=True)
class TaggedArguments:
    """opening HEAD name before VALUE after between HEAD ... VALUE after.

    ``python`` are the types written in Python's notation and not in JSON's. ``wrapped`` are the tags of
    strings that need escaping, where they differ. ``quoted`` is the quote around strings inside lists and
    objects with bare names, "" where these are JSON or Python.
    """

    opening: str
    head: str
    between: str
    forms: tuple[ValueTags, ...]
    python: frozenset[str] = frozenset()
    wrapped: ValueTags | None = None
    quoted: str = ""

    def form(self, kind: str) -> ValueTags | None:
        """The tags of a type, None where the template cannot write it."""
        return next((form for form in self.forms if kind in form.kinds), None)

    def render(self, arguments: Mapping[str, Any]) -> str:
        """Texts and whole numbers as the template writes them."""
        return self.opening + self.between.join(self._spelt(key, value) for key, value in arguments.items())

    def _spelt(self, key: str, value: Any) -> str:
        form = self.form(TEXT if isinstance(value, str) else "integer")
        assert form is not None
        return self.head + key + form.before.replace(KEY, key) + str(value) + form.after.replace(KEY, key)

    def read(
        self, text: str, place: int, name: str, schema: Mapping[str, Any] | None, end: re.Pattern[str]
    ) -> tuple[dict[str, Any], int] | None:
        """The arguments from a place on, and where the call of ``name`` ends, of which ``end`` is the last;
        None if they are not whole.
        """
        begun = re.compile(loose(self.opening.replace(NAME, name))).match(text, place)
        if begun is None:
            return None
        return _ArgumentsReader(self, text, schema or {}, end).arguments(begun.end())


class _ArgumentsReader:
    """One call that is being read."""

    def __init__(
        self, how: TaggedArguments, text: str, schema: Mapping[str, Any], end: re.Pattern[str]
    ) -> None:
        self.how, self.text, self.schema, self.end = how, text, schema, end
        self.known = schema.get("properties") or {}
        self.found: dict[str, Any] = {}
        forms = [*how.forms, *([] if how.wrapped is None else [how.wrapped])]
        self.forms = sorted(forms, key=lambda form: len(form.before), reverse=True)

    def arguments(self, place: int) -> tuple[dict[str, Any], int] | None:
        while (read := self._argument(place)) is not None:
            key, self.found[key], place = read
        over = self.end.match(self.text, place)
        return None if over is None else (self.found, over.end())

    def _argument(self, place: int) -> tuple[str, Any, int] | None:
        for form in self.forms:
            begun = self._begin(form, first=not self.found).match(self.text, place)
            if begun is None or begun["key"] in self.found:
                continue
            if (value := self._value(form, begun["key"], begun.end())) is not None:
                return begun["key"], *value
        return None

    def _value(self, form: ValueTags, key: str, start: int) -> tuple[Any, int] | None:
        """A value and where it ends: the first place where something follows that may, and that makes
        sense.
        """
        tried = 0
        for over in _closing(form.after.replace(KEY, key)).finditer(self.text, start):
            if not self._may_end(over.end(), key):
                continue
            try:
                return self._meant(form, key, self.text[start : over.start()]), over.end()
            except ValueError:
                tried += 1
            if tried == MAX_ENDS:
                break
        return None

    def _may_end(self, place: int, key: str) -> bool:
        """Whether after a value the call ends, or another argument begins."""
        if self.end.match(self.text, place):
            return True
        begins = (self._begin(form, first=False).match(self.text, place) for form in self.forms)
        return any(begun is not None and begun["key"] not in {*self.found, key} for begun in begins)

    def _begin(self, form: ValueTags, first: bool) -> re.Pattern[str]:
        lead = self.how.head if first else self.how.between + self.how.head
        return _beginning(lead, form.before, tuple(self.known))

    def _meant(self, form: ValueTags, key: str, text: str) -> Any:
        """What a value's text means. Raises ValueError where its form does not fit it."""
        if form.kinds == {TEXT}:
            return _unquoted(form.quote, text)
        if TEXT not in form.kinds:
            return _literal(text, self.how.quoted)
        kinds = json_schema.kinds(self.known.get(key, {}), self.schema)
        if kinds == {TEXT}:
            return text
        try:
            value = _literal(text, self.how.quoted)
        except ValueError:
            return text
        return value if kinds is None or any(json_schema.is_a(value, kind) for kind in kinds) else text


@lru_cache(maxsize=256)
def _beginning(lead: str, before: str, known: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern of what comes before a value, its name in the group `key`: one of a schema's, or a word."""
    names = [re.escape(name) for name in sorted(known, key=len, reverse=True)]
    key = "|".join([*names, r"[\w.-]+"])
    core, space = before.rstrip(), before[len(before.rstrip()) :]
    between = "(?P=key)".join(map(re.escape, core.split(KEY)))
    return re.compile(rf"{loose(lead)}(?P<key>{key}){between}(?:{re.escape(space)})?")


@lru_cache(maxsize=1024)
def _closing(after: str) -> re.Pattern[str]:
    """A pattern of what ends a value: white space that belongs to the mark is not the value's."""
    core = after.lstrip()
    space = after[: len(after) - len(core)]
    return re.compile(rf"(?:{re.escape(space)})?{re.escape(core.rstrip())}")


def _unquoted(quote: str, text: str) -> str:
    """A text between quotes: with its escapes, as JSON or Python has them, or as it is."""
    if not quote or "\\" not in text:
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            return read(quote + text + quote)
        except (ValueError, SyntaxError):
            continue
    return text


def _literal(text: str, quoted: str) -> Any:
    """A value in JSON, in Python's notation, or with bare names and ``quoted`` around texts. Raises
    ValueError for what is none of these, or has no JSON form.
    """
    text = text.strip()
    if quoted:
        text = _as_json(text, quoted)
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
            json.dumps(value, allow_nan=False)
            return value
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    raise ValueError("neither JSON nor Python")


def _as_json(text: str, quoted: str) -> str:
    """Texts between marks, and names without any, in JSON's quotes."""
    mark = re.escape(quoted)

    def quote(found: re.Match[str]) -> str:
        if found["text"] is not None:
            return json.dumps(found["text"])
        return f"{found['lead']}{json.dumps(found['name'])}:"

    pattern = rf"{mark}(?P<text>.*?){mark}|(?P<lead>[{{,]\s*)(?P<name>[\w.-]+)\s*:"
    return re.sub(pattern, quote, text, flags=re.DOTALL)


# ---- detecting the tags ------------------------------------------------------------------------------------


def detect_arguments(
    written: Callable[[Mapping[str, Any]], str], special: Sequence[str] = ()
) -> TaggedArguments | None:
    """The tags of a template that writes arguments so after a call's name; None for another."""
    one, two = written({"plaCe": "heRe"}), written({"plaCe": "heRe", "toWn": "thEre"})
    first, both = _parted(one, "plaCe", "heRe"), _parted(two, "plaCe", "heRe")
    if first is None or both is None or "toWn" not in both[2]:
        return None
    lead, before, last = first
    inner = both[2][: both[2].index("toWn")]
    after = tail_of(last, inner, special)
    head = head_of(lead, inner[len(after) :], special)
    opening, between = lead[: len(lead) - len(head)], inner[len(after) : len(inner) - len(head)]
    end = last[len(after) :]
    forms = {TEXT: (before, after)}
    pythons, quoted = [], ""
    for kind, value in SHOWN.items():
        body = written({"plaCe": value})
        if not (body.startswith(opening + head + "plaCe") and body.endswith(end)):
            continue
        body = body[len(opening + head + "plaCe") : len(body) - len(end)].replace("plaCe", KEY)
        shown = _shown(body, value, _own(before, after))
        if shown is not None:
            found, at, text = shown
            forms[kind] = body[:at], body[at + len(text) :]
            pythons += [kind] if found == "python" else []
            quoted = _own(before, after) if found == "quoted" else quoted
    how = TaggedArguments(
        opening, head, between, _grouped(forms), frozenset(pythons), _wrapped(written, after), quoted
    )
    if how.form("integer") is None:
        return None
    three = {"plaCe": "heRe", "siZe": 7, "toWn": "thEre"}
    return how if written(three).startswith(how.render(three)) else None


def _parted(text: str, key: str, value: str) -> tuple[str, str, str] | None:
    """What comes before a key, between it and its value, and after that."""
    at = text.find(key)
    start = text.find(value, at + len(key))
    if at < 0 or start < 0:
        return None
    rest = text[start + len(value) :].replace(key, KEY)
    return text[:at], text[at + len(key) : start].replace(key, KEY), rest


def _own(before: str, after: str) -> str:
    """The longest constant on both sides of a string: its quote."""
    return next((after[:size] for size in range(len(after), 0, -1) if before.endswith(after[:size])), "")


def _shown(body: str, value: Any, own: str) -> tuple[str, int, str] | None:
    """In which notation a value is in what was written, where, and as which text."""
    spellings = [("json", json.dumps(value)), ("json", json.dumps(value, separators=(",", ":")))]
    spellings.append(("python", repr(value)))
    if own and isinstance(value, list | dict):
        bare = json.dumps(value, separators=(",", ":")).replace('"', own)
        spellings.append(("quoted", re.sub(rf"{re.escape(own)}(\w+){re.escape(own)}:", r"\1:", bare)))
    return next(((how, at, text) for how, text in spellings if (at := body.rfind(text)) >= 0), None)


def _grouped(forms: Mapping[str, tuple[str, str]]) -> tuple[ValueTags, ...]:
    """Types with the same tags together, strings first."""
    kinds: dict[tuple[str, str], set[str]] = {}
    for kind, marks in forms.items():
        kinds.setdefault(marks, set()).add(kind)
    return tuple(ValueTags(frozenset(own), *marks) for marks, own in kinds.items())


def _wrapped(written: Callable[[Mapping[str, Any]], str], after: str) -> ValueTags | None:
    """The tags of strings that need escaping, if they differ."""
    parts = _parted(written({"plaCe": DELICATE}), "plaCe", DELICATE)
    plain = _parted(written({"plaCe": "heRe"}), "plaCe", "heRe")
    if parts is None or plain is None or parts[1:] == plain[1:]:
        return None
    ending = len(parts[2]) - (len(plain[2]) - len(after))
    return ValueTags(frozenset({TEXT}), parts[1], parts[2][:ending])
