"""Constrained decoding: before each choice, the tokens that the grammar forbids are masked.

    grammar = json_schema({"type": "object", "properties": {"name": {"type": "string"}}})
    constraint = grammar.begin(tokenizer)
    constraint.mask(logits); constraint.accept(id); constraint.done

llguidance walks the vocabulary's trie with an Earley parser over derivatives of regexes (github.com/
guidance-ai/llguidance), some 50 microseconds a token. It is given the bytes of each token, as the tokenizer
knows them, so that a token with half a character in it is allowed exactly where that half fits. A grammar
is untrusted: its length and depth are limited, it is compiled first in a helper process that may die
(grammar_compiler.py), and llguidance limits the cost of each step.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from cutaway.errors import UserError
from cutaway.extras import need
from cutaway.generate import grammar_compiler
from cutaway.generate.endings import Endings
from cutaway.generate.grammar_compiler import one_line
from cutaway.generate.json_schema import readable
from cutaway.generate.patterns import ascii_lark, ascii_regex

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_CHARACTERS = 64 * 1024  # of a grammar or a schema
MAX_DEPTH = 32  # lists and objects inside each other in a schema
CACHE_SIZE = 64  # compiled grammars, so that a schema that comes with every request is compiled once


@runtime_checkable
class Vocabulary(Protocol):
    """What constraints need of a tokenizer: each token's bytes, and which are control tokens."""

    bos: int | None
    eos_ids: tuple[int, ...]
    special: dict[str, int]

    def __len__(self) -> int: ...

    def encode(self, text: str, /) -> list[int]: ...

    def token_bytes(self, id: int, /) -> bytes: ...


@dataclass(frozen=True)
class Grammar:
    """A grammar as llguidance reads it. Made by `json_object`, `json_schema`, `regex` and `lark`."""

    compiled: str
    shortest: tuple[str, ...] = ()  # texts of its patterns

    def begin(self, tokenizer: Vocabulary, ends: Sequence[int] = ()) -> Constraint:
        """The constraint at a text's first token; ids in `ends` end it too, where it may end.

        UserError for a grammar that is wrong, or that takes too much to follow.
        """
        from llguidance import LLMatcher, LLParserLimits

        every, limits = sorted({*tokenizer.eos_ids, *ends}), LLParserLimits(**grammar_compiler.LIMITS)
        matcher = LLMatcher(_trie(tokenizer, every), self.compiled, log_level=0, limits=limits)
        if matcher.is_error():
            raise UserError(f"the grammar cannot be followed: {one_line(matcher.get_error())}")
        return Constraint(matcher, tokenizer, every, Endings(self.shortest, tokenizer))


class Constraint:
    """One answer under a grammar; `done` once nothing can follow. The ids of `ends` end it where it may."""

    def __init__(
        self, matcher: LLMatcher, tokenizer: Vocabulary, ends: Sequence[int], endings: Endings
    ) -> None:
        self._matcher, self._tokenizer = matcher, tokenizer  # which the matcher does not keep
        self._endings = endings
        self._begun: list[int] = []  # ids that each of its texts begins with
        self.ends = ends
        self.done = matcher.is_stopped()

    def fresh(self) -> Constraint:
        """The same grammar for another text, from its beginning, without compiling it again."""
        matcher = self._matcher.deep_copy()
        matcher.reset()
        return Constraint(matcher, self._tokenizer, self.ends, self._endings)._after_begun(self._begun)

    def begun(self, text: str) -> Constraint:
        """The same grammar for what follows a text that is written already; UserError where none does."""
        ids = _trie(self._tokenizer, self.ends).tokenize_str(text)
        if self._matcher.validate_tokens(ids) != len(ids):
            raise UserError("the text to go on with does not begin what the grammar asks for")
        made = self.fresh()._after_begun(ids)
        if made.done:
            raise UserError("the text to go on with is all that the grammar asks for: nothing can follow it")
        return made

    def _after_begun(self, ids: list[int]) -> Constraint:
        self._begun = ids
        self._matcher.consume_tokens(ids)
        self.done = self._matcher.is_stopped()
        return self

    def mask(self, logits: np.ndarray) -> None:
        """Set the logits [v] that may not come next to -inf, in place; UserError past the limits."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        words = min(len(logits), 8 * len(bits))
        allowed = np.unpackbits(bits, count=words, bitorder="little").astype(bool)
        logits[:words][~allowed] = -np.inf
        logits[words:] = -np.inf

    def accept(self, id: int) -> None:
        """Advance by the chosen id, one that `mask` left and no end token."""
        self._matcher.consume_token(id)
        self._check()
        self.done = self._matcher.is_stopped()

    def after(self, id: int) -> Constraint | None:
        """The constraint one token on, itself unchanged; None for an end token, and for one not allowed."""
        matcher = self._matcher.deep_copy()
        if matcher.is_stopped() or matcher.validate_tokens([id]) != 1 or not matcher.consume_token(id):
            return None
        if matcher.stop_reason() == "EndOfSentence":
            return None
        return Constraint(matcher, self._tokenizer, self.ends, self._endings)

    def completion(self, most: int) -> list[int] | None:
        """Ids that bring the text to an end of the grammar: a short way, at most ``most`` ids, or None."""
        return self._endings.of(self._matcher, most, self.ends[0])

    def ends_after(self, ids: Sequence[int]) -> bool:
        """Whether these ids are a completion too: nothing can follow them, or there are none to write."""
        matcher = self._matcher.deep_copy()
        return matcher.consume_tokens(list(ids)) and (
            matcher.is_stopped() or (not ids and matcher.is_accepting())
        )

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UserError(f"the grammar could not be followed on: {one_line(self._matcher.get_error())}")


def json_object() -> Grammar:
    """Any JSON object."""
    return json_schema({"type": "object"})


def json_schema(schema: Any) -> Grammar:
    """JSON of a schema, on one line; UserError for one too large or deep, or an unknown keyword."""
    if not isinstance(schema, dict):
        raise UserError(f"a JSON schema is an object, not {json.dumps(schema):.60}")
    check_size(schema)
    return _compiled("schema", json.dumps(schema))


def schema_error(schema: Any, text: str) -> str | None:
    """Why a text is no JSON that fits a schema, None if it is; UserError for what is no schema. It runs in
    the helper process, where a pattern that never ends costs half a second. A pattern that cannot be read
    is not asked.
    """
    need("checking a text by a JSON schema", "jsonschema")
    schema, _ = readable(schema)
    return grammar_compiler.helper.ask({"text": json.dumps(schema), "value": text})["wrong"]


def gbnf(rules: str) -> Grammar:
    """A context-free grammar in llama.cpp's notation, or in Lark's."""
    need("a grammar for the answer", "llguidance")
    from llguidance.gbnf_to_lark import any_to_lark

    _check_length(rules, "grammar")
    try:
        converted = any_to_lark(rules)
    except Exception as error:  # of many classes: Exception itself, IndexError, RecursionError
        raise UserError(f"the grammar cannot be read: {one_line(str(error))}") from None
    return lark(converted)


def regex(pattern: str) -> Grammar:
    """A text that matches a regular expression from end to end; no look-around, no references back. Its
    classes are ASCII's unless it asks for Unicode by ``(?u)``.
    """
    _check_length(pattern, "regex")
    return _compiled("regex", ascii_regex(pattern))


def lark(rules: str) -> Grammar:
    """A context-free grammar in Lark's notation, as llguidance reads it; its first rule is `start`. Its
    patterns are ASCII's unless they have the flag ``u``.
    """
    _check_length(rules, "grammar")
    return _compiled("grammar", ascii_lark(rules))


@lru_cache(CACHE_SIZE)
def _compiled(kind: str, text: str) -> Grammar:
    need(f"a {kind} for the answer", "llguidance", "jsonschema")
    answer = grammar_compiler.helper.ask({"kind": kind, "text": text})
    return Grammar(answer["compiled"], tuple(answer["shortest"]))


def check_size(schema: Any) -> None:
    """UserError for a schema that is too deep or too long, found without recursion."""
    level, depth = [schema], 0
    while level:
        if depth > MAX_DEPTH:
            raise UserError(f"the schema is more than {MAX_DEPTH} levels deep: make it flatter")
        inside = [value for one in level for value in _inside(one)]
        level, depth = inside, depth + 1
    _check_length(json.dumps(schema), "schema")


def _inside(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else ()


def _check_length(text: str, what: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"the {what} has {len(text):,} characters, and at most {MAX_CHARACTERS:,} are taken")


_tries: weakref.WeakKeyDictionary[Any, dict[tuple[int, ...], LLTokenizer]] = weakref.WeakKeyDictionary()


def _trie(tokenizer: Vocabulary, ends: Sequence[int]) -> LLTokenizer:
    """The vocabulary as llguidance walks it, made once."""
    from llguidance import LLTokenizer, TokenizerWrapper

    if not ends:
        raise UserError("the model has no end token, so an answer under a grammar could not end")
    made = _tries.setdefault(tokenizer, {})
    if (key := tuple(ends)) not in made:
        wrapped = TokenizerWrapper(_TokenBytes(tokenizer, ends[0]))
        made[key] = LLTokenizer(wrapped, n_vocab=len(tokenizer), eos_token=list(ends))
    return made[key]


class _TokenBytes:
    """The vocabulary under the names that llguidance asks by.

    It keeps no tokenizer: `_tries` would never forget that of an unloaded model.
    """

    def __init__(self, tokenizer: Vocabulary, end: int) -> None:
        self.eos_token_id, self.bos_token_id = end, tokenizer.bos
        self.special_token_ids = list(tokenizer.special.values())
        self.tokens: list[bytes] = []
        for id in range(len(tokenizer)):
            try:
                self.tokens.append(tokenizer.token_bytes(id))
            except UserError:  # a row of the table that no token has
                self.tokens.append(b"")
        self._tokenizer = weakref.ref(tokenizer)

    def __call__(self, text: bytes | str) -> list[int]:
        """The tokens of text inside a text: without what the vocabulary puts before a first word."""
        tokenizer = self._tokenizer()
        assert tokenizer is not None  # each Constraint keeps it
        wanted = text.encode() if isinstance(text, str) else text
        ids = tokenizer.encode("\n" + wanted.decode("utf-8", "replace"))
        for i in range(1, len(ids)):
            if b"".join(self.tokens[id] for id in ids[i:]) == wanted:
                return ids[i:]
        return tokenizer.encode(wanted.decode("utf-8", "replace"))
