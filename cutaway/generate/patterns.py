r"""Regular expressions that mean ASCII, in a regex and in Lark's notation.

Rust's engine, which llguidance follows, takes `\d` for the digits of every script, `\w` and `\s` likewise,
and `(?i)k` for the Kelvin sign too. A model under such a grammar writes them: seven of eight samples of
SmolLM2's for `\d{4}` were "🯸🯸🯸🯸". llguidance compiles JSON schemas with ASCII classes; here other patterns
are rewritten to them. `(?u)` in a pattern, or the flag `u` behind one of Lark's, asks for Unicode.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

parse: Any = re._parser.parse  # pyright: ignore[reportAttributeAccessIssue]

# Blanks are escaped: the flag x takes them out of classes too.
CLASSES = {"d": "0-9", "w": "0-9A-Za-z_", "s": r"\t\n\x0B\x0C\r\x20"}
FOLDED = "kKsS"  # letters that a character outside of ASCII is another case of
GROUP = re.compile(r"\(\?(?P<on>[a-zA-Z]*)(?:-(?P<off>[a-zA-Z]*))?(?P<end>[:)])")
CLASS_PART = re.compile(r"\\.|\[|\]|[^\\\[\]]+", re.DOTALL)
PLAIN_CLASS = re.compile(
    r"\[(?:\\[^pPuU]|[^\[\]\\^])+\]", re.DOTALL
)  # not of what is left out, or of classes
LONGEST = 64  # characters of a pattern's shortest text
MOST_PATTERNS = 64  # of a grammar
LARK_PART = re.compile(
    r"""
      (?P<string>"(?:\\.|[^"\\])*")(?P<any_case>i?)
    | (?:\#|//)[^\n]*                               # a comment
    | /(?P<regex>(?:\\.|[^/\\])+)/(?P<flags>[a-z]*)
    | <[^<>\s]+>                                    # a control token, which may hold a slash
    | ["/].*                                        # what has no end is left for llguidance to refuse
    """,
    re.DOTALL | re.VERBOSE,
)


def ascii_regex(pattern: str, flags: str = "") -> str:
    """A pattern whose classes and cases are ASCII's, but where it or its flags ask for Unicode."""
    return "".join(_rewritten(pattern, set(flags)))


def ascii_lark(rules: str) -> str:
    """A grammar in Lark's notation whose patterns are ASCII's, but where they ask for Unicode."""

    def rewritten(part: re.Match[str]) -> str:
        if part["regex"]:
            return f"/{ascii_regex(part['regex'], part['flags'])}/{part['flags']}"
        if part["any_case"] and set(part["string"]) & set(FOLDED):
            return _any_case(part["string"]) or part[0]
        return part[0]

    return LARK_PART.sub(rewritten, rules)


def lark_regex(pattern: str) -> str:
    """A pattern as a terminal of Lark, whose bare slashes are escaped."""
    return (
        "/" + re.sub(r"\\.|/", lambda part: r"\/" if part[0] == "/" else part[0], pattern, flags=re.S) + "/"
    )


def shortest_text(pattern: str) -> str:
    """A text that a pattern asks for at least, as far as Python reads it: of each class and each choice the
    simplest, and nothing that may be left out. Cut at its beginning to the last LONGEST characters.
    """
    try:
        return _shortest(parse(pattern))
    except (re.error, RecursionError, OverflowError):
        return ""


def _shortest(parts: Any) -> str:
    text = ""
    for kind, given in parts:
        match str(kind):
            case "LITERAL":
                text += chr(given)
            case "ANY" | "NOT_LITERAL":
                text += "a"
            case "IN":
                text += _member(given)
            case "BRANCH":
                text += min(map(_shortest, given[1]), key=len)
            case "SUBPATTERN":
                text += _shortest(given[-1])
            case "ATOMIC_GROUP":
                text += _shortest(given)
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                text += _shortest(given[2]) * min(given[0], LONGEST)
        text = text[-LONGEST:]
    return text


def _member(members: Any) -> str:
    """A character of a class: the first that it names."""
    kind, given = members[0]
    named = {"CATEGORY_DIGIT": "0", "CATEGORY_SPACE": " "}.get(str(given), "a")
    return {"LITERAL": lambda: chr(given), "RANGE": lambda: chr(given[0])}.get(str(kind), lambda: named)()


def patterns_of(kind: str, text: str) -> list[str]:
    """The patterns in a schema, a regex or a grammar in Lark's notation."""
    if kind == "regex":
        return [text]
    found = [json.loads(one) for one in re.findall(r'"pattern"\s*:\s*("(?:\\.|[^"\\])*")', text)]
    if kind == "grammar":
        found += [part["regex"].replace(r"\/", "/") for part in LARK_PART.finditer(text) if part["regex"]]
    return found[:MOST_PATTERNS]


def _any_case(string: str) -> str | None:
    """A text in any case as a pattern, None for one that llguidance is to refuse."""
    try:
        text = json.loads(string)
    except ValueError:
        return None
    spelt = re.escape(text).replace("\n", "n")  # behind its backslash
    return f"{lark_regex(ascii_regex(spelt, 'i'))}i"


def _rewritten(pattern: str, flags: set[str]) -> Iterator[str]:
    """A pattern's parts; flags hold from where they are set to the end of their group."""
    scopes, at = [flags], 0
    while at < len(pattern):
        here, part = scopes[-1], pattern[at]
        if part == "\\":
            part = pattern[at : at + 2]
            yield part if "u" in here else _ascii_class(_class(part), "i" in here)
        elif part == "[":
            part = _whole_class(pattern, at)
            yield part if "u" in here else _ascii_class(part, "i" in here)
        elif part == "(":
            group = GROUP.match(pattern, at)
            part = group[0] if group else part
            scope = (here | set(group["on"])) - set(group["off"] or "") if group else set(here)
            if group and group["end"] == ")":
                scopes[-1] = scope
            else:
                scopes.append(scope)
            yield part
        elif part == "#" and "x" in here:
            end = pattern.find("\n", at)
            part = pattern[at : end if end >= 0 else None]
            yield part
        else:
            if part == ")" and len(scopes) > 1:
                scopes.pop()
            yield f"(?-u:{part})" if part in FOLDED and "i" in here and "u" not in here else part
        at += len(part)


def _class(escape: str, within: bool = False) -> str:
    """The ASCII class of an escape such as `\\d`, ``within`` another class; another escape as it is."""
    ranges = CLASSES.get(escape[1:].lower())
    if ranges is None or (within and escape[1].islower()):
        return ranges or escape
    return f"[{'^' if escape[1].isupper() else ''}{ranges}]"


def _whole_class(pattern: str, start: int) -> str:
    """The class in brackets that begins here, to its end or the pattern's."""
    depth, at, opened = 0, start, -1
    for part in CLASS_PART.finditer(pattern, start):
        at = part.end()
        if part[0] == "[":
            depth, opened = depth + 1, at
        elif part[0] == "]" and not (opened == part.start() or pattern[opened : part.start()] == "^"):
            depth -= 1
        if depth == 0:
            break
    return pattern[start:at]


def _ascii_class(text: str, any_case: bool) -> str:
    """A class whose escapes are ASCII's; in any case too, where it lists what it holds."""
    text = re.sub(r"\\.", lambda part: _class(part[0], within=True), text, flags=re.DOTALL)
    return f"(?-u:{text})" if any_case and text.isascii() and PLAIN_CLASS.fullmatch(text) else text
