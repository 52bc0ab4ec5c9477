"""Grammars that answers must follow, judged by Python's own json and re, and by a slow mask made by asking of
each token alone."""

import json
import re
import resource
from typing import Any

import numpy as np
import pytest

from cutaway.errors import UserError
from cutaway.generate import constrain, grammar_compiler
from cutaway.generate.bounded import BoundedConstraint
from cutaway.generate.json_schema import unread
from cutaway.generate.patterns import ascii_lark, lark_regex, shortest_text
from cutaway.generate.tool_calls.constraint import held_schema, left_out_warnings, refuse_misspelt
from cutaway.tokenizer import Tokenizer
from tests import inputs
from tests.drawn import drawn

pytest.importorskip("llguidance")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load("smollm2")


def written(tokenizer: Tokenizer, grammar: constrain.Grammar, seed: int) -> tuple[str, bool]:
    """A text drawn at random from what the grammar leaves, and whether it came to an end."""
    return drawn(grammar.begin(tokenizer), tokenizer, seed)


def left(constraint: constrain.Constraint, size: int) -> set[int]:
    """The ids that a constraint allows next."""
    logits = np.zeros(size, np.float32)
    constraint.mask(logits)
    return set(np.flatnonzero(logits == 0).tolist())


def test_random_tokens_under_a_schema_are_json_of_that_schema(tokenizer: Tokenizer) -> None:
    ended = 0
    for seed in range(12):
        text, done = written(tokenizer, constrain.json_schema(PERSON), seed)
        if done:
            ended += 1
            made = json.loads(text)
            assert list(made) == ["name", "age", "tags"]
            assert isinstance(made["name"], str) and len(made["name"]) <= 12
            assert isinstance(made["age"], int) and 0 <= made["age"] <= 150
            assert set(made["tags"]) <= {"a", "b", None} and len(made["tags"]) <= 3
    assert ended >= 10


PLACES = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "minLength": 3},
        "sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 2},
        "kind": {"enum": ["town", "city"]},
        "near": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "far": {"type": "boolean"}},
                "required": ["name", "far"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["code", "sizes", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "begun",
    [
        *("", "{", '{"code"', '{"code": "}]', '{"code": "abc", "sizes": [', '{"code": "abc", "sizes": [1'),
        '{"code": "abc", "sizes": [1, 2], "kind": "to',
        '{"code": "abc", "sizes": [1, 2], "kind": "city", ',
        '{"code": "abc", "sizes": [1, 2], "kind": "city", "near": [{"name": "x\\',
    ],
)
def test_a_completion_ends_the_json_that_was_begun(tokenizer: Tokenizer, begun: str) -> None:
    constraint = constrain.json_schema(PLACES).begin(tokenizer)
    for id in tokenizer.encode(begun):
        constraint.accept(id)
    ids = constraint.completion(100)
    assert ids is not None and constraint.completion(len(ids) - 1) is None
    text = begun + tokenizer.decode(ids)
    assert constrain.schema_error(PLACES, text) is None and len(ids) <= 40


EMAIL = "^(?:[a-z0-9_+-]+[.])*[a-z0-9_+-]*[a-z0-9]@(?:[a-z0-9][a-z0-9-]*[.])+[a-z]{2,}$"
SHAPES = [{"pattern": ".*z$"}, {"pattern": EMAIL}, {"format": "uri"}, {"minLength": 9}]


@pytest.mark.parametrize("begun", ["", '{"x": "', '{"x": "abc'])
@pytest.mark.parametrize("asked", SHAPES)
def test_a_pattern_is_brought_to_its_end(tokenizer: Tokenizer, asked: dict[str, Any], begun: str) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string"} | asked}, "required": ["x"]}
    constraint = constrain.json_schema(schema).begin(tokenizer)
    for id in tokenizer.encode(begun):
        constraint.accept(id)
    ids = constraint.completion(60)
    assert ids is not None and len(ids) <= 30
    assert constrain.schema_error(schema, begun + tokenizer.decode(ids)) is None


OPEN = [
    *({"format": name} for name in ("duration", "date-time", "time", "date", "ipv6", "email")),
    *(r"^\d+Z$", r"^P(\d+D)?T(\d+H)?$", r"^\w+\s\w+;$", r"^\d+(,\d+)*Z$", r"^.*\.(json|yaml)$", r"^.+END$"),
    *(r"^\d{8}Z$", r"^[\d,]+;[}\]]+$"),
]


@pytest.mark.parametrize(
    "asked", [one if isinstance(one, dict) else {"pattern": one} for one in OPEN], ids=str
)
def test_a_format_or_pattern_ends_within_the_limit(tokenizer: Tokenizer, asked: dict[str, str]) -> None:
    """A model that would write digits, points and letters for ever, as small ones do."""
    schema = {"type": "object", "properties": {"x": {"type": "string"} | asked}, "required": ["x"]}
    spelt = {id: tokenizer.token_bytes(id) for id in range(17, len(tokenizer))}  # 0 to 16 are control tokens
    for liked in (b"0123456789.", b"0123456789T", b"0123456789,abcdefghijklmnopqrstuvwxyz"):
        likely = [id for id, text in spelt.items() if set(text) <= set(liked)]
        constraint = BoundedConstraint(constrain.json_schema(schema).begin(tokenizer), tokenizer, 48)
        random, ids = np.random.default_rng(0), list[int]()
        while not constraint.done and len(ids) < 48:
            logits = random.standard_normal(len(tokenizer)).astype(np.float32)
            logits[likely] += 20
            constraint.mask(logits)
            ids.append(int(logits.argmax()))
            constraint.accept(ids[-1])
        assert constraint.done
        assert constrain.schema_error(schema, tokenizer.decode(ids)) is None


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"^(?:abc|d[ef]|gg)+[^x]{2}\.(?:jpeg|png)?$", "deaa."),
        (r"[xyz][0-9]?\s\w\d(?=x)(?:)|..", "aa"),
        ("(?>ab)c*d{1000000}", "d" * 64),
        ("(a", ""),
        ("(" * 5000 + ")" * 5000, ""),
    ],
)
def test_the_shortest_text_of_a_pattern(pattern: str, text: str) -> None:
    assert shortest_text(pattern) == text


@pytest.mark.parametrize("limit", [40, 64, 160])
def test_a_bounded_answer_is_whole(tokenizer: Tokenizer, limit: int) -> None:
    """Whatever is likely, and long: the longest strings and lists that there is room for."""
    for seed in range(6):
        random = np.random.default_rng(seed)
        constraint = BoundedConstraint(constrain.json_schema(PLACES).begin(tokenizer), tokenizer, limit)
        ids: list[int] = []
        while not constraint.done:
            logits = 3 * random.standard_normal(len(tokenizer)).astype(np.float32)
            constraint.mask(logits)
            ids.append(int(logits.argmax()))
            constraint.accept(ids[-1])
        assert len(ids) <= limit
        assert constrain.schema_error(PLACES, tokenizer.decode(ids)) is None


def test_a_bound_changes_nothing_while_there_is_room(tokenizer: Tokenizer) -> None:
    grammar = constrain.json_schema(PLACES)
    free, bounded = grammar.begin(tokenizer), BoundedConstraint(grammar.begin(tokenizer), tokenizer, 400)
    random = np.random.default_rng(0)
    for _ in range(20):
        logits = random.standard_normal(len(tokenizer)).astype(np.float32)
        own = logits.copy()
        free.mask(logits)
        bounded.mask(own)
        assert (logits == own).all()
        free.accept(int(logits.argmax()))
        bounded.accept(int(logits.argmax()))


def bounded(tokenizer: Tokenizer, schema: Any, limit: int, seed: int) -> list[int]:
    """Ids drawn at random under a schema and a limit, the end token where one was drawn."""
    random = np.random.default_rng(seed)
    constraint = BoundedConstraint(constrain.json_schema(schema).begin(tokenizer), tokenizer, limit)
    ids: list[int] = []
    while not constraint.done and len(ids) < 2 * limit and not set(ids) & set(tokenizer.eos_ids):
        logits = 3 * random.standard_normal(len(tokenizer)).astype(np.float32)
        constraint.mask(logits)
        ids.append(int(logits.argmax()))
        if ids[-1] not in tokenizer.eos_ids:
            constraint.accept(ids[-1])
    return ids


def test_an_end_that_must_be_written_is_among_the_tokens(tokenizer: Tokenizer) -> None:
    """A number is complete only when an end token says so."""
    for seed in range(8):
        *ids, end = bounded(tokenizer, {"type": "integer"}, 4, seed)
        assert end in tokenizer.eos_ids and len(ids) <= 3 and int(tokenizer.decode(ids)) is not None


def test_an_object_is_opened_only_where_its_end_fits(tokenizer: Tokenizer) -> None:
    """A model that would open one after another, each with eight numbers."""
    item = {
        "type": "object",
        "properties": {key: {"type": "integer"} for key in "abcdefgh"},
        "required": [*"abcdefgh"],
    }
    opening = [id for id in range(len(tokenizer)) if set(tokenizer.token_bytes(id)) & set(b"{,")]
    grammar = constrain.json_schema({"type": "array", "items": item})
    for limit in range(90, 150, 7):
        constraint, count = BoundedConstraint(grammar.begin(tokenizer), tokenizer, limit), 0
        while not constraint.done and count < 2 * limit:
            logits = np.zeros(len(tokenizer), np.float32)
            logits[opening] = 9
            constraint.mask(logits)
            constraint.accept(int(logits.argmax()))
            count += 1
        assert count <= limit


def test_letters_of_a_text_are_left_while_there_is_room(tokenizer: Tokenizer) -> None:
    grammar = constrain.json_schema({"type": "string"})
    free, held = grammar.begin(tokenizer), BoundedConstraint(grammar.begin(tokenizer), tokenizer, 40)
    for id in tokenizer.encode('"The'):
        free.accept(id)
        held.accept(id)
    every, kept = left(free, len(tokenizer)), np.zeros(len(tokenizer), np.float32)
    held.mask(kept)
    lost = every - set(np.flatnonzero(kept == 0).tolist())
    assert (
        all(set(tokenizer.token_bytes(id)) & set(b'"\\<>[]{}|') for id in lost)
        and len(lost) < len(every) / 10
    )


def test_an_end_that_is_not_known_is_seldom_looked_for(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, look = [0], constrain.Constraint.completion

    def counted(self: constrain.Constraint, *given: Any) -> Any:
        looks[0] += 1
        return look(self, *given)

    monkeypatch.setattr(constrain.Constraint, "completion", counted)
    ids = bounded(tokenizer, {"type": "string", "pattern": "^[^x]{900}$"}, 60, 0)
    assert len(ids) > 60 and 0 < looks[0] < 20


@pytest.mark.parametrize("pattern", [r"[a-c]{3}-\d{2}", r"(yes|no), (the|a) \w{2,5}\.", "é|ß|\N{SNOWMAN}+x"])
def test_random_tokens_under_a_regex_match_it(tokenizer: Tokenizer, pattern: str) -> None:
    for seed in range(4):
        text, done = written(tokenizer, constrain.regex(pattern), seed)
        assert not done or re.fullmatch(pattern, text)


PROBES = ["3", "\u0663", "\U0001fbf8", "a", "S", "s", "\u017f", "K", "\u212a", "\u00e9", "_", "-", "]", "/"]
PROBES += ["#", "\\", " ", "\n", "\v", "\x1c", "\u00a0", "\u2003"]


def fits(tokenizer: Tokenizer, grammar: constrain.Grammar, text: str) -> bool:
    """Whether a text, byte token by byte token, is one of the grammar's."""
    constraint: constrain.Constraint | None = grammar.begin(tokenizer)
    for id in tokenizer.encode(text):
        constraint = constraint and constraint.after(id)
    return constraint is not None and constraint.ends_after([])


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", r"[\d-]", r"[^\w\s]", r"[^\D]", r"[]\d]", r"[^]\d]"),
        *(
            r"(?i)s",
            r"(?i)[k-s]",
            r"(?i)\w",
            r"(?i)[\w-]",
            r"(?i)\S",
            r"(?i:k)",
            r"(?x) \s # \d(",
            r"(?:\d)",
            r"(?P<n>\d)",
        ),
        *(r"\\|\d", r"/|\/|\s", r"\n"),
    ],
)
def test_patterns_are_asciis(tokenizer: Tokenizer, pattern: str) -> None:
    """Python's ASCII mode is the judge, of a regex and of the same in Lark."""
    compiled = re.compile(pattern, re.ASCII)
    made = [constrain.regex(pattern), constrain.lark(f"start: {lark_regex(pattern)}")]
    for grammar in made:
        found = [text for text in PROBES if fits(tokenizer, grammar, text)]
        assert found == [text for text in PROBES if compiled.fullmatch(text)]


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (lambda: constrain.regex(r"(?u)\d"), "\u0663"),
        (lambda: constrain.regex(r"\d(?u:\d)"), "3\u0663"),
        (lambda: constrain.regex(r"(?iu)s"), "\u017f"),
        (lambda: constrain.lark(r"start: /\w\d/u"), "\u00e9\u0663"),
        (lambda: constrain.regex(r"\p{Nd}"), "\u0663"),
    ],
)
def test_a_pattern_that_asks_for_unicode_has_it(tokenizer: Tokenizer, grammar: Any, text: str) -> None:
    assert fits(tokenizer, grammar(), text)


@pytest.mark.parametrize(
    ("rules", "fit", "none"),
    [
        ('start: "kiss"i', "KISS", "\u212aiss"),
        ('start: "a/k\\n"i', "A/K\n", "a/\u212a\n"),
        (r'start: "\\d" // /\d/' + "\n", r"\d", "3"),
        (r"start: x /\d/ # a comment" + "\nx: /a\\/\\s/", "a/ 3", "a/\u2003\u0663"),
        (r'start: %json {"type": "string", "pattern": "^/\\d/$"} /\d/', '"/3/"3', '"/3/"\u0663'),
        (r"start: /\d/ <[1]> /\d/ | /\d\d/", "33", "3\u0663"),
        (r"start: /\d/ <[400]> /\d/ | /\d\d/", "33", "3\u0663"),  # no id of the check's vocabulary of bytes
    ],
)
def test_what_is_no_pattern_of_a_grammar_stays(tokenizer: Tokenizer, rules: str, fit: str, none: str) -> None:
    grammar = constrain.lark(rules)
    assert fits(tokenizer, grammar, fit) and not fits(tokenizer, grammar, none)
    assert ascii_lark(r"start: /\d/ </think> /\d/") == "start: /[0-9]/ </think> /[0-9]/"


def test_a_context_free_grammar_balances_its_brackets(tokenizer: Tokenizer) -> None:
    for seed in range(6):
        text, done = written(tokenizer, constrain.lark('start: "(" start* ")" | "x"'), seed)
        depth = [text[: i + 1].count("(") - text[: i + 1].count(")") for i in range(len(text))]
        assert min(depth) >= 0
        assert not done or depth[-1] == 0


def test_the_mask_is_what_asking_of_each_token_gives(tokenizer: Tokenizer) -> None:
    """The naive reference: a token is allowed where the pattern can still match after its bytes."""
    constraint = constrain.regex("(tea|team|ten)s?").begin(tokenizer)
    constraint.accept(tokenizer.encode("te")[0])
    wanted = [word[2:].encode() for word in ("tea", "team", "ten", "teas", "teams", "tens")]
    spelt = {id: tokenizer.token_bytes(id) for id in range(17, len(tokenizer))}  # 0 to 16 are control tokens
    naive = {id for id, data in spelt.items() if any(rest.startswith(data) for rest in wanted)}
    assert left(constraint, len(tokenizer)) == naive


def test_half_a_character_is_allowed_where_it_fits(tokenizer: Tokenizer) -> None:
    constraint = constrain.regex("𓂀!").begin(tokenizer)
    ids = tokenizer.encode("𓂀")
    assert len(ids) > 1
    for id in ids:
        assert id in left(constraint, len(tokenizer))
        constraint.accept(id)
    assert tokenizer.decode(left(constraint, len(tokenizer))) == "!"


def test_the_end_is_left_open_only_where_the_text_may_end(tokenizer: Tokenizer) -> None:
    constraint, size, ends = constrain.regex("a|ab").begin(tokenizer), len(tokenizer), set(tokenizer.eos_ids)
    assert not ends & left(constraint, size)
    constraint.accept(tokenizer.encode("a")[0])
    assert ends <= left(constraint, size) and not constraint.done
    again = constraint.fresh()
    assert not ends & left(again, size)
    constraint.accept(tokenizer.encode("b")[0])
    assert constraint.done


def test_rows_past_the_vocabulary_are_never_chosen(tokenizer: Tokenizer) -> None:
    constraint = constrain.regex("a+").begin(tokenizer)
    assert max(left(constraint, len(tokenizer) + 70)) < len(tokenizer)


def nested(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: constrain.json_schema(nested(40)), "more than 32 levels deep"),
        (lambda: constrain.json_schema(nested(20_000)), "more than 32 levels deep"),
        (lambda: constrain.json_schema({"enum": ["x" * 70_000]}), "at most 65,536"),
        (lambda: constrain.regex("x" * 70_000), "at most 65,536"),
        (lambda: constrain.json_schema([]), "a JSON schema is an object"),
        (lambda: constrain.json_schema({"type": "banana"}), "Invalid type: banana"),
        (lambda: constrain.json_schema({"unevaluatedProperties": {}}), "unevaluatedProperties"),
        (
            lambda: constrain.json_schema({"x-guidance": {"lenient": True}, "not": {}}),
            "Unimplemented",
        ),
        (lambda: constrain.json_schema({"$ref": "file:///etc/passwd"}), "does not fetch"),
        (lambda: constrain.json_schema({"$ref": "http://127.0.0.1/x"}), "does not fetch"),
        (lambda: constrain.regex("(a"), "unclosed group"),
        (lambda: constrain.regex("(?=a)b"), "look-around"),
        (lambda: constrain.lark("start: foo"), "foo"),
        (lambda: constrain.lark("start: start"), "no text fits"),
        (lambda: constrain.json_schema({"$ref": "#"}), "no text fits"),
        (lambda: constrain.lark('%import "/etc/passwd"\nstart: "a"'), "Expected name"),
        (lambda: constrain.gbnf("\u00d9"), "the grammar cannot be read: Expected ::="),
        (lambda: constrain.gbnf("root ::= _+"), "the grammar cannot be read: Rule '_' not found"),
        (lambda: constrain.gbnf("root ::= [ab\\"), "the grammar cannot be read"),
    ],
)
def test_what_cannot_be_followed_is_refused(make, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


def test_a_real_vocabulary_of_another_kind(tokenizer: Tokenizer) -> None:
    """SentencePiece's bytes: spaces are written as ▁ and unknown characters as byte tokens."""
    folder = inputs.path("llama-vocab")
    other = Tokenizer.load(folder / "ggml-vocab-llama-spm.gguf")
    for seed in range(3):
        text, done = written(other, constrain.regex("a (small|big) ☃"), seed)
        assert done and text in ("a small ☃", "a big ☃")


BOMB = "a?" * 20_000 + "a" * 20_000


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: constrain.regex(BOMB), "takes too"),
        (lambda: constrain.regex("\ud800"), "surrogate"),
        (lambda: constrain.lark('start: "\ud800"'), "surrogate"),
        (lambda: constrain.lark('start: "(" ' * 5000 + "start"), "cannot be followed|takes too"),
    ],
)
def test_a_grammar_that_takes_too_much_ends_its_helper_alone(make, sentence: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=sentence):
        make()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # in kilobytes
    assert constrain.regex("ab*")


def test_a_grammar_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = constrain.regex("compiled once")
    monkeypatch.setattr(grammar_compiler.helper, "ask", None)
    assert constrain.regex("compiled once") is made


# ---- what pydantic and zod write ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "held", "left_out"),
    [
        (  # a record of an enum
            {
                "propertyNames": {"$ref": "#/$defs/k"},
                "additionalProperties": {},
                "$defs": {"k": {"enum": ["a"]}},
            },
            {"properties": {"a": {}}, "additionalProperties": False, "$defs": {"k": {"enum": ["a"]}}},
            [],
        ),
        ({"propertyNames": {"type": "string"}, "type": "object"}, {"type": "object"}, []),
        ({"type": "string", "format": "x", "pattern": "^a"}, {"type": "string", "pattern": "^a"}, ["format"]),
        ({"type": "string", "pattern": "^(?=a)\\p{L}$"}, {"type": "string"}, ["pattern"]),
    ],
)
def test_schemas_of_generators_are_held(schema: Any, held: Any, left_out: list[str]) -> None:
    assert held_schema(schema) == (held, left_out)


def test_what_tells_branches_apart_is_written(tokenizer: Tokenizer) -> None:
    """Both branches are open, and their constant is optional: without it both would fit, and so none."""
    defs: dict[str, Any] = {
        "A": {"type": "object", "properties": {"kind": {"const": "a"}, "x": {"enum": [1, 2]}}},
        "B": {
            "type": "object",
            "properties": {"kind": {"const": "b"}, "y": {"enum": [1, 2]}},
            "required": ["y"],
        },
    }
    branches = [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]
    schema = {"$defs": defs, "oneOf": branches, "discriminator": {"propertyName": "kind"}}
    held, left_out = held_schema(schema)
    assert not left_out
    for seed in range(12):
        text, done = written(tokenizer, constrain.json_schema(held), seed)
        assert done and constrain.schema_error(schema, text) is None and "kind" in json.loads(text)


def test_a_pattern_that_cannot_be_read_is_named_and_not_checked() -> None:
    schema = {"type": "string", "pattern": "^(?=a)\\p{L}$"}
    _, warned = left_out_warnings(["pattern"], schema)
    assert warned == "the pattern ^(?=a)\\p{L}$ of the schema cannot be read, and is not checked"
    assert constrain.schema_error(schema, '"7"') is None and constrain.schema_error(schema, "7")


MISSPELT = {
    "type": "object",
    "requried": ["data"],
    "properties": {
        "data": {"type": "string", "contentEncoding": "base64", "maxlength": 3},
        "patern": {"type": "string", "description": "A property of that name.", "x-own": 1},
        "list": {"type": "array", "itmes": {}, "default": [], "anyOf": [{"minItem": 1}, {"nullable": True}]},
    },
}


def test_keywords_that_nothing_reads_are_named() -> None:
    found = unread(MISSPELT)
    assert found == {
        "contentEncoding": None,
        "itmes": "items",
        "maxlength": "maxLength",
        "minItem": "minItems",
        "nullable": None,
        "requried": "required",
    }
    (warned,) = left_out_warnings(held_schema(MISSPELT)[1], MISSPELT)
    assert warned.startswith("'contentEncoding', 'itmes' (is it 'items'?), 'maxlength' (is it 'maxLength'?)")
    assert warned.endswith(" of the schema: no keyword that is held to or checked")
    refuse_misspelt({"contentEncoding": "base64", "foo": 1}, "the schema")
    with pytest.raises(UserError, match="the schema has 'itmes', which is no keyword of JSON schema: is it"):
        refuse_misspelt(MISSPELT, "the schema")
    assert not unread(PLACES) and not unread(PERSON)
