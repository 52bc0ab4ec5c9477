"""Match untrusted patterns, from files and requests, in bounded time.

``linear`` compiles one with RE2, whose time is proportional to the text. What a linear engine cannot express
(look-around, references back) is refused, or given to ``backtracking``: the `regex` package, with a timeout,
for patterns whose written-out size is bounded, since neither its compiler nor its search tables are.
"""

from __future__ import annotations

import re
import warnings
from contextlib import suppress
from functools import lru_cache
from typing import Any

from cutaway.errors import UserError, quoted

LONGEST = 1_000  # characters of a linear pattern: its time is its length times the text's, at worst
LARGEST = 2_000  # characters of a backtracking one, counted repetitions written out; a real model's has 800
SECONDS = 1.0  # for a pattern that backtracks over one text
_MEMORY = 1 << 22  # bytes of RE2's program and its automaton

_TOKEN = re.compile(
    r"""(?P<escape>\\(?:[pPN]\{[^}]*\}|.)|\(\?\#[^)]*\))
      | (?P<set>\[\^?\]?(?:\\.|[^]\\])*\])
      | (?P<flags>\(\?(?P<letters>[A-Za-z0-9+-]+)[:)])
      | \{(?P<low>[0-9]*)(?P<comma>,?)(?P<high>[0-9]*)\}
      | (?P<other>.)""",
    re.X | re.S,
)
_ALLOWED = set("imsu-")  # flags; x and V1 change how a pattern is read, R and digits call it again
_RECURSION = re.compile(r"(?<!\\)(?:\\\\)*\((?:\?(?:R|[+-]?\d|&|P>))")


@lru_cache(maxsize=4096)
def linear(pattern: str, where: str) -> Any:
    """A pattern of RE2, with ``fullmatch`` and ``search``. UserError where it is none, too long, or asks for
    what RE2 does not have; ``where`` names it.
    """
    try:
        if "[:" in pattern:  # a class of letters to RE2, characters to Python
            raise ValueError("[: means two things")
        if len(pattern) <= LONGEST:  # RE2 also reads what Python does not: \C, \Q...\E, \p{L}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                re.compile(pattern)
        return _re2(pattern)
    except (re.error, ValueError, RecursionError, OverflowError) as problem:
        raise UserError(
            f"{where}: the pattern {quoted(pattern)} cannot be matched in linear time "
            f"({' '.join(str(problem).split())[:80]}): look-around and references back are not supported"
        ) from None


def _re2(pattern: str) -> Any:
    """A pattern compiled by RE2, ValueError where it cannot be."""
    import re2

    if len(pattern) > LONGEST:
        raise ValueError(f"it has {len(pattern):,} characters, over {LONGEST:,}")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    try:
        return re2.compile(pattern, options)
    except re2.error as problem:
        (text,) = problem.args
        raise ValueError(text.decode("utf-8", "replace")) from None


def search(pattern: str, text: str) -> bool:
    """Whether a JSON schema's pattern is found in a text: linear where it can be, else by backtracking.

    UserError where it is no pattern or takes over SECONDS.
    """
    with suppress(ValueError):
        return _re2(pattern).search(text) is not None
    try:
        return backtracking(pattern, "the pattern").search(text, timeout=SECONDS) is not None
    except (TimeoutError, MemoryError):
        raise UserError(f"the pattern {quoted(pattern)} takes too long on this text") from None


@lru_cache(maxsize=256)
def backtracking(pattern: str, what: str) -> Any:
    """A pattern of the `regex` package, to be called with a timeout. UserError where it is none, is too
    large, or is read or matched in ways that have no bound: calling itself, fuzzy matching, flags but i, m,
    s and u.
    """
    import regex

    if _RECURSION.search(pattern):
        raise UserError(f"{what} {quoted(pattern)} calls itself, which no model's does")
    size = _size(pattern, what)
    if size > LARGEST:
        raise UserError(f"{what} {quoted(pattern)} has {size:,} characters written out, over {LARGEST:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return regex.compile(pattern, regex.V0)
    except (regex.error, RecursionError, OverflowError, Warning) as problem:
        raise UserError(f"{what} {quoted(pattern)} cannot be used: {problem}") from None


def _size(pattern: str, what: str) -> int:
    """The characters of a pattern whose counted repetitions are written out."""
    sizes, last = [0], 0
    for token in _TOKEN.finditer(pattern):
        kind = token.lastgroup
        if token["low"] is not None:
            if not (token["low"] or token["high"]):
                last = 1  # {} and {,} are text
            else:
                count = max(int(token["low"] or 0), int(token["high"] or 0), 1)
                sizes[-1] -= last
                last *= count
            sizes[-1] += last
        elif token["flags"] is not None:
            if set(token["letters"]) - _ALLOWED:
                raise UserError(f"{what} {quoted(pattern)} sets flags other than i, m, s and u")
            last = 1
            if token[0].endswith(":"):
                sizes.append(0)
        elif token[0] == "(":
            sizes.append(0)
        elif token[0] == ")" and len(sizes) > 1:
            last = sizes.pop() + 2
            sizes[-1] += last
        elif token[0] == "{":
            raise UserError(f"{what} {quoted(pattern)} matches fuzzily, or has a {{ that \\{{ should be")
        else:
            last = len(token[0]) if kind != "escape" else 1
            sizes[-1] += last
        if sum(sizes) > LARGEST:
            break
    return sum(sizes)
