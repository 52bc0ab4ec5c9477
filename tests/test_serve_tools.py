"""Calls of tools in the formats of real templates: found out, read whole and in parts, demanded."""

import json
from dataclasses import replace
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from cutaway.errors import UserError
from cutaway.tokenizer import Tokenizer, chat
from tests import inputs
from tests.drawn import drawn
from tests.serving import template

from cutaway.generate.tool_calls import parser, tool_grammar  # isort: skip
from cutaway.generate.tool_calls.arguments import KEY  # isort: skip
from cutaway.generate.tool_calls.tool_format import detect_format  # isort: skip
from cutaway.generate.tool_calls.delimiters import common_prefix  # isort: skip

SCHEMAS = {
    "look": {
        "type": "object",
        "properties": {
            "place": {"type": "string", "maxLength": 6},
            "n": {"type": "integer", "enum": [1, 22]},
        },
        "required": ["place", "n"],
        "additionalProperties": False,
    },
    "stop": None,
}
KNOWN = {
    "Qwen-Qwen2.5-7B-Instruct": '<tool_call>\n{"name": "look", "arguments": {"n": 1}}\n</tool_call>',
    "Qwen-Qwen3-0.6B": '<tool_call>\n{"name": "look", "arguments": {"n": 1}}\n</tool_call>',
    "meta-llama-Llama-3.1-8B-Instruct": '{"name": "look", "parameters": {"n": 1}}<|eot_id|>',
    "mistralai-Mistral-Nemo-Instruct-2407": '[TOOL_CALLS][{"name": "look", "arguments": {"n": 1}, '
    '"id": "abc123456"}]',
    "Mistral-Small-3.2-24B-Instruct-2506": '[TOOL_CALLS]look[CALL_ID]abc123456[ARGS]{"n": 1}',
    "Apertus-8B-Instruct": '<|tools_prefix|>[{"look": {"n": 1}}]<|tools_suffix|>',
    "upstage-Solar-Open-100B": "<|tool_calls|><|tool_call:begin|>abc123456<|tool_call:name|>look"
    '<|tool_call:args|>{"n": 1}<|tool_call:end|><|calls|>',
    "ibm-granite-granite-4.0": '<tool_call>\n{"name": "look", "arguments": {"n": 1}}\n</tool_call>',
    "moonshotai-Kimi-K2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.look:0"
    '<|tool_call_argument_begin|>{"n": 1}<|tool_call_end|><|tool_calls_section_end|>',
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(inputs.path("smollm2"))


@pytest.mark.parametrize("name", KNOWN)
def test_the_format_is_found_and_read(name: str, tokenizer: Tokenizer) -> None:
    format = detect_format(template(name), tokenizer)
    lead = "" if format.untagged else "Let me see.\n"
    content, calls = parser.parse(format, lead + KNOWN[name], SCHEMAS)
    assert content == lead.strip() and calls == [parser.Call("look", '{"n": 1}')]


def test_several_calls(tokenizer: Tokenizer) -> None:
    format = detect_format(template("mistralai-Mistral-Nemo-Instruct-2407"), tokenizer)
    one, two = ('{"name": "%s", "arguments": {"n": [{}]}, "id": "abc123456"}' % name for name in ("a", "b"))  # noqa: UP031
    assert [call.name for call in parser.parse(format, f"[TOOL_CALLS][{one}, {two}]", SCHEMAS)[1]] == [
        "a",
        "b",
    ]
    assert [call.name for call in parser.parse(format, f"[TOOL_CALLS] [{one},{two}", SCHEMAS)[1]] == [
        "a",
        "b",
    ]


@pytest.mark.parametrize("name", ["Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.1-8B-Instruct"])
@pytest.mark.parametrize(
    "text",
    [
        "No call at all.",
        "A < b and <tool_ but no more\n",
        '<tool_call>\n{"name": "look", "arguments": ',
        '<tool_call>\n{"name": "look", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": "look me", "arguments": {}}\n</tool_call>',
        '{"name": "look", "parameters": 7}',
        'x {"name": "look", "parameters": {"n": 1}}',
        "{" * 5000,
    ],
)
def test_what_is_no_call_is_text(name: str, text: str, tokenizer: Tokenizer) -> None:
    assert parser.parse(detect_format(template(name), tokenizer), text, SCHEMAS) == (text, [])


CALL = '<tool_call>\n{"name": "look", "arguments": %s'


@pytest.mark.parametrize(
    ("text", "content", "arguments", "whole"),
    [
        (CALL % '{"n": ', "", '{"n": ', False),  # cut off
        (CALL % '{"n": "}', "", '{"n": "}', False),
        (CALL % '{"n": {"a": [1, "}\\""', "", '{"n": {"a": [1, "}\\""', False),
        (CALL % "{", "", "{", False),
        (CALL % '{"n": 1}', "", '{"n": 1}', True),  # all but its end
        (CALL % '{"n": 1}}\n</tool', "", '{"n": 1}', True),
        (CALL % '{"n": 1}}\n</tool_call>\n<tool_call>\n{"na', '<tool_call>\n{"na', '{"n": 1}', True),
        (CALL % '{"n": }}\n</tool_call>', "", '{"n": }', True),  # the client sees what the model wrote
        (
            CALL % '{"n": "</tool_call> {[\\"]"}}\n</tool_call>\nSo.',
            "So.",
            '{"n": "</tool_call> {[\\"]"}',
            True,
        ),
        ("Hm.\n\n" + CALL % '{"n": 1}}\n</tool_call>\nSo.\n', "Hm.\nSo.", '{"n": 1}', True),
        (CALL % '{"n": 1} and more', "and more", '{"n": 1}', True),
    ],
)
def test_arguments_are_sent_as_they_were_written(
    text: str, content: str, arguments: str, whole: bool, tokenizer: Tokenizer
) -> None:
    reader = parser.StreamingParser(detect_format(template(), tokenizer), SCHEMAS)
    events = [*reader.push(text), *reader.finish()]
    assert parser.collect(events) == (content, [parser.Call("look", arguments)])
    assert reader.complete == whole


@pytest.mark.parametrize("name", [*KNOWN, "Qwen3-Coder", "LFM2.5-8B-A1B", "Qwen-QwQ-32B"])
@hypothesis.given(data=strategies.data())
@hypothesis.settings(max_examples=150, deadline=None)
def test_however_an_answer_is_cut_it_reads_the_same(
    name: str, tokenizer: Tokenizer, data: strategies.DataObject
) -> None:
    format = detect_format(template(name), tokenizer)
    call = KNOWN.get(name, CALL % '{"n": 1}}\n</tool_call>')
    half = data.draw(strategies.integers(0, len(call)))
    parts = [call, call[:half], call[half:], format.trigger, format.trigger[:-1], format.tail, format.closing]
    parts += [
        parameters(place="x"),
        format.between or "",
        "<think>",
        "</think>",
        "\n",
        " ",
        "{",
        "}",
        '"',
        "Hm.",
    ]
    text = "".join(data.draw(strategies.lists(strategies.sampled_from(parts), max_size=7)))
    whole = parser.StreamingParser(format, SCHEMAS)
    expected = parser.collect([*whole.push(text), *whole.finish()])
    cuts = data.draw(strategies.lists(strategies.integers(0, len(text)), max_size=30).map(sorted))
    cut = parser.StreamingParser(format, SCHEMAS)
    events = [one for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True) for one in cut.push(text[i:j])]
    events += cut.finish()
    assert parser.collect(events) == expected and cut.complete == whole.complete
    assert expected[1] or expected[0] == text
    assert all(one != "" for one in events)


def test_a_call_is_streamed_while_it_is_written(tokenizer: Tokenizer) -> None:
    reader = parser.StreamingParser(detect_format(template(), tokenizer), SCHEMAS)
    written = [
        "Hm. ",
        "<tool",
        '_call>\n{"name": "lo',
        'ok", "arguments":',
        ' {"pl',
        'ace": "a',
        '"}',
        "}\n</tool_",
    ]
    written += ["call>\n", '<tool_call>{"name":"stop","arguments":{}', "}</tool_call>"]
    look, stop = parser.CallStarted("look"), parser.CallStarted("stop")
    assert [reader.push(part) for part in written] == [
        ["Hm."], [], [], [], [look, parser.ArgumentsDelta('{"pl')],
        [parser.ArgumentsDelta('ace": "a')], [parser.ArgumentsDelta('"}')], [],
        [], [stop, parser.ArgumentsDelta("{}")], [],
    ]  # fmt: skip
    assert reader.finish() == [] and reader.complete


@pytest.mark.parametrize("name", ["Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.1-8B-Instruct"])
@pytest.mark.parametrize("several", [True, False])
def test_random_tokens_under_a_demand_are_calls(name: str, several: bool, tokenizer: Tokenizer) -> None:
    format = detect_format(template(name), tokenizer)
    for seed in range(4):
        constraint = tool_grammar.required_grammar(format, SCHEMAS, tokenizer, several).begin(tokenizer)
        text, ended = drawn(constraint, tokenizer, seed, most=150, eager=True)
        if not ended:
            continue
        content, calls = parser.parse(format, text, SCHEMAS)
        assert content == "" and calls and (several or len(calls) == 1)
        for call in calls:
            arguments = json.loads(call.arguments)
            assert call.name in SCHEMAS and (call.name == "stop" or set(arguments) == {"place", "n"})


@pytest.mark.parametrize("several", [True, False])
def test_strict_arguments_are_kept_to_only_where_a_call_is_made(several: bool, tokenizer: Tokenizer) -> None:
    format = detect_format(template(), tokenizer)
    call = '<tool_call>\n{"name": "look", "arguments": {"place": "x", "n": 22}}\n</tool_call>'
    follows = {
        "Just words.": True,
        "Words < more <tool": True,
        f"Hm.\n{call}": True,
        f"{call}\n{call}": several,
        '<tool_call>\n{"name": "fly"': False,
        call.replace("22", "3"): False,
        "<tool_call> what": False,
    }
    for text, fits in follows.items():
        constraint = tool_grammar.optional_grammar(format, SCHEMAS, tokenizer, several).begin(tokenizer)
        assert allowed(constraint, tokenizer, text) == fits, text


def allowed(constraint: Any, tokenizer: Tokenizer, text: str | list[int]) -> bool:
    """Whether a text, or its ids, may be content under a constraint."""
    for id in tokenizer.encode(text) if isinstance(text, str) else text:
        logits = np.zeros(len(tokenizer), np.float32)
        constraint.mask(logits)
        if logits[id] != 0:
            return False
        constraint.accept(id)
    return True


def may_end(constraint: Any, tokenizer: Tokenizer) -> bool:
    """Whether nothing more is demanded."""
    logits = np.zeros(len(tokenizer), np.float32)
    if not constraint.done:
        constraint.mask(logits)
    return bool((logits[list(tokenizer.eos_ids)] == 0).all())


# ---- every template of llama.cpp's collection --------------------------------------------------------------

LEFT_OUT, FAILS = "leaves them out of the conversation", "the chat template failed on this conversation"
REFUSED = {
    "HuggingFaceTB-SmolLM3-3B": LEFT_OUT,
    "LFM2-8B-A1B": LEFT_OUT,
    "LFM2.5-Instruct": LEFT_OUT,
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": LEFT_OUT,
    "google-gemma-2-2b-it": LEFT_OUT,
    "ibm-granite-granite-3.3-2B-Instruct": LEFT_OUT,
    "llama-cpp-rwkv-world": LEFT_OUT,
    "microsoft-Phi-3.5-mini-instruct": LEFT_OUT,
    "Kimi-K2-Instruct": FAILS,  # it appends to a list, which the sandbox forbids, as transformers' does
    "Kimi-K2-Thinking": FAILS,
    "fireworks-ai-llama-3-firefunction-v2": FAILS,  # it reads a variable `functions`
    "llama-cpp-deepseek-r1": FAILS,
    "meetkai-functionary-medium-v3.2": FAILS,  # it takes arguments as a text
}
NOT_AGAIN = {  # templates that write of two calls one, or none
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "GigaChat3-10B-A1.8B",
    "GigaChat3.1-10B-A1.8B",
    "openai-gpt-oss-120b",
}
KINDS: dict[str, Any] = {
    "place": {"type": "string"},
    "count": {"type": "integer"},
    "ratio": {"type": "number"},
    "sure": {"type": "boolean"},
    "names": {"type": "array", "items": {"type": "string"}},
    "where": {"type": "object", "additionalProperties": {"type": "string"}},
    "zone": {"type": "string"},
}
SHOWN = {key: kind | {"description": "x"} for key, kind in KINDS.items()}
OBJECT = {"type": "object", "properties": SHOWN, "required": ["place"]}
GIVEN = {
    "place": "Rome \"x\" & 'y' <b>\nline",
    "count": 22,
    "ratio": 0.5,
    "sure": True,
    "names": ["a, b", "c=1"],
    "where": {"x": 1, "deep": {"y": "z"}},
    "zone": "7",
}
NAMES = ("look", "fly_to")
ALL = sorted(path.stem for path in inputs.path("templates").rglob("*.jinja"))


def written(name: str, arguments: dict[str, Any], calls: int, tokenizer: Tokenizer) -> str:
    """What the template writes of an answer with so many calls, after all that it wrote of the question."""
    made = [
        {"id": f"abcdefgh{i}", "type": "function", "function": {"name": tool, "arguments": arguments}}
        for i, tool in enumerate(NAMES[:calls])
    ]
    spoken = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": made}]
    functions = [{"name": tool, "description": "x", "parameters": OBJECT} for tool in NAMES]

    def text(messages: list[dict[str, Any]], asking: bool) -> str:
        made = [{"type": "function", "function": function} for function in functions]
        options: Any = {"tools": made, "add_generation_prompt": asking, "steering": "flag"}
        return chat.text(messages, template(name), tokenizer=tokenizer, **options).text

    asked, whole = text(spoken[:1], True), text(spoken, False)
    same = len(common_prefix(asked, whole))
    mark = whole.rfind("<", 0, same)
    return whole[mark if mark > whole.rfind(">", 0, same) and same < len(asked) else same :]


def test_the_collection_is_the_one_that_is_counted() -> None:
    assert len(ALL) == 70 and set(REFUSED) <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_what_a_template_writes_is_read_back(name: str, tokenizer: Tokenizer) -> None:
    if name in REFUSED:
        with pytest.raises(UserError, match=REFUSED[name]):
            detect_format(template(name), tokenizer)
        return
    format, given = detect_format(template(name), tokenizer), dict(GIVEN)
    schemas: parser.ToolSchemas = dict.fromkeys(NAMES, OBJECT)
    if format.arguments is not None:
        given = {key: value for key, value in given.items() if format.arguments.form(KINDS[key]["type"])}
        form = format.arguments.form("string")
        assert form is not None
        over = form.after.replace(KEY, "zone").strip()
        given["zone"] = f"one{over} two{over}{over}three"  # a text that holds the mark at its end
    calls = 1 if name in NOT_AGAIN or name.startswith("meta-llama") else 2
    text = written(name, given, calls, tokenizer)
    found = parser.parse(format, text, schemas)[1]
    wanted = [(tool, given) for tool in NAMES[:calls]]
    assert [(call.name, json.loads(call.arguments)) for call in found] == wanted


# ---- arguments one by one ----------------------------------------------------------------------------------

CODER = "<tool_call>\n<function=look>\n{}</function>\n</tool_call>"


def parameters(**given: str) -> str:
    """A call of Qwen3-Coder's with these texts."""
    inside = (f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in given.items())
    return CODER.format("".join(inside))


def read(text: str, properties: Any, tokenizer: Tokenizer, name: str = "Qwen3-Coder") -> Any:
    """The arguments of the one call, None if nothing is read."""
    schemas = {"look": {"type": "object", "properties": properties}}
    calls = parser.parse(detect_format(template(name), tokenizer), text, schemas)[1]
    return json.loads(calls[0].arguments) if len(calls) == 1 else None


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "7", "7"),
        ({"type": "integer"}, "7", 7),
        ({"type": "number"}, "7", 7),
        ({"type": "integer"}, "seven", "seven"),  # the client sees what the model wrote
        ({"type": "integer"}, "7.5", "7.5"),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "false", False),
        ({"type": ["string", "null"]}, "None", None),
        ({"type": ["string", "null"]}, "Nemo", "Nemo"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "7", 7),
        ({"$ref": "#/$defs/none"}, "7", 7),
        ({"enum": ["7", "8"]}, "7", "7"),
        ({"enum": [7, 8]}, "7", 7),
        ({"type": "array"}, "['a', True]", ["a", True]),
        ({"type": "object"}, '{"a": [1, 2]}', {"a": [1, 2]}),
        ({"type": "object"}, "{1, 2}", "{1, 2}"),  # a set of Python's is no JSON
        ({"type": "number"}, "1e999", "1e999"),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "array"}, "[" * 5000, "[" * 5000),
        ({}, "7", 7),
        ({}, "seven", "seven"),
        ({"type": "string"}, "\n  two\nlines \n", "\n  two\nlines \n"),
        ({"type": "string"}, "", ""),
    ],
)
def test_a_text_is_what_the_schema_says(schema: Any, text: str, value: Any, tokenizer: Tokenizer) -> None:
    assert read(parameters(x=text), {"x": schema}, tokenizer) == {"x": value}


@pytest.mark.parametrize(
    "text",
    [
        "</parameter>",
        "</parameter></parameter>\nx",
        "a </function> b",
        "</tool_call>",
        "</function>\n</tool_call>",
        "<parameter=y>",
        "</parameter>\n<parameter=x>\nagain",  # a name that was given is not given again
        "<tool_call>\n<function=look>\n",
        "</parameter>\n</function>\nbut no end",
    ],
)
def test_text_that_looks_like_the_end_is_text(text: str, tokenizer: Tokenizer) -> None:
    kinds = {"x": {"type": "string"}, "y": {"type": "string"}}
    assert read(parameters(x=text, y="1"), kinds, tokenizer) == {"x": text, "y": "1"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("look(x='a')", {"x": "a"}),
        ("look()", {}),
        ("look(x=\"a, y='b'\", y=[1, (2)])", {"x": "a, y='b'", "y": [1, 2]}),
        ("look(x='it\\'s', y=None)", {"x": "it's", "y": None}),
        ("look(x='it's', y={'k': [True]})", {"x": "it's", "y": {"k": [True]}}),
        ("look(x='a)', y=')')", {"x": "a)", "y": ")"}),
        ("look(x=", None),
        ("look(x=open('f'))", None),
        ("look(x='a'", None),
    ],
)
def test_calls_in_pythons_notation(text: str, value: Any, tokenizer: Tokenizer) -> None:
    text = f"<|tool_call_start|>[{text}]<|tool_call_end|>"
    assert read(text, {}, tokenizer, "LFM2.5-8B-A1B") == value


PYTHON = """{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.tool_calls %}[
{%- for c in m.tool_calls %}{{ c.function.name }}(
{%- for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson }}
{%- if not loop.last %}, {% endif %}{% endfor %}){% if not loop.last %}, {% endif %}{% endfor %}]{% endif %}
{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""


def test_a_list_of_calls_without_a_mark(tokenizer: Tokenizer) -> None:
    format = detect_format(PYTHON, tokenizer)
    text = r'[look(place="a \"b\", c", n=1), stop()]'
    content, calls = parser.parse(format, text, SCHEMAS)
    assert content == "" and [(call.name, json.loads(call.arguments)) for call in calls] == [
        ("look", {"place": 'a "b", c', "n": 1}),
        ("stop", {}),
    ]
    assert parser.parse(format, f"I would: {text}", SCHEMAS)[1] == []
    reader = parser.StreamingParser(format, SCHEMAS)
    assert [reader.push(part) for part in ("[", text[1:])] == [[], []]
    assert parser.collect(reader.finish()) == ("", calls)


MARKED = (
    "Qwen3-Coder",
    "GLM-4.6",
    "MiniMax-M2",
    "MiniMax-M3",
    "LFM2.5-8B-A1B",
    "deepseek-ai-DeepSeek-V4",
    "google-gemma-4-31B-it",
)


@pytest.mark.parametrize("name", MARKED)
def test_random_tokens_under_a_demand_are_calls_with_marks(name: str, tokenizer: Tokenizer) -> None:
    free = {"mode": {"enum": ["on", "off"]}, "sure": {"type": "boolean"}, "x": {"type": ["integer", "null"]}}
    kinds = SCHEMAS["look"]["properties"] | free
    schemas = SCHEMAS | {"look": SCHEMAS["look"] | {"properties": kinds}}
    format = replace(
        detect_format(template(name), tokenizer), reasoning=None
    )  # which at random would have no end
    ends = 0
    for seed in range(6):
        constraint = tool_grammar.required_grammar(format, schemas, tokenizer, True).begin(tokenizer)
        text, ended = drawn(constraint, tokenizer, seed, most=150, eager=True)
        content, calls = parser.parse(format, text, schemas) if ended else ("", [])
        assert bool(calls) == ended and content == ""
        ends += ended
        for call in calls:
            given = json.loads(call.arguments)
            assert call.name in SCHEMAS and set(given) <= (set(kinds) if call.name == "look" else set())
            if call.name == "look":
                assert len(given["place"]) <= 6 and given["n"] in (1, 22)
                assert given.get("mode", "on") in ("on", "off") and given.get("sure", True) in (True, False)
                assert given.get("x") is None or isinstance(given["x"], int)
    assert ends > 1


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (parameters(place="Rome", n="22"), True),
        (parameters(place="<b>\n", n="1"), True),
        (parameters(place="Rome"), False),
        (parameters(n="22", place="Rome"), False),  # in the schema's order
        (parameters(place="Rome", n="3"), False),
        (parameters(place="</parameter>", n="1"), False),  # no text ends the value that it is in
        (parameters(place="too long", n="1"), False),
    ],
)
def test_what_a_demand_lets_be_written(text: str, fits: bool, tokenizer: Tokenizer) -> None:
    properties = SCHEMAS["look"]["properties"] | {"place": {"type": "string", "maxLength": 7}}
    schemas = {"look": SCHEMAS["look"] | {"properties": properties}}
    format = detect_format(template("Qwen3-Coder"), tokenizer)
    for make in (tool_grammar.required_grammar, tool_grammar.optional_grammar):
        assert allowed(make(format, schemas, tokenizer, True).begin(tokenizer), tokenizer, text) == fits


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"properties": {"x": {"type": "string", "pattern": "a+"}}}, "x asks for pattern"),
        ({"properties": {}, "required": ["y"]}, "asks for required y"),
        ({"properties": {"x": {}}, "minProperties": 1}, "asks for minProperties"),
    ],
)
def test_what_a_demand_cannot_hold_is_named(schema: Any, named: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=named):
        tool_grammar.required_grammar(
            detect_format(template("Qwen3-Coder"), tokenizer), {"f": schema}, tokenizer, True
        )


SPECIAL = """{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}<repo_name>
{{- c.function.name }}{% for k, v in c.function.arguments.items() %}<file_sep>{{ k }}=
{{- '<filename>' + v + '<filename>' if v is string else v | tojson }}{% endfor %}<issue_start>{% endfor %}
{{- eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""


def test_marks_that_are_control_tokens_are_demanded_as_tokens(tokenizer: Tokenizer) -> None:
    format = detect_format(SPECIAL, tokenizer)
    text = "<repo_name>look<file_sep>place=<filename>{}<filename><file_sep>n=22<issue_start>"
    content, (call,) = parser.parse(format, text.format("a <b>"), SCHEMAS)
    assert content == "" and json.loads(call.arguments) == {"place": "a <b>", "n": 22}
    grammar = tool_grammar.required_grammar(format, SCHEMAS, tokenizer, False)
    for place, fits in (("a <b>", True), ("<issue_start>", False)):
        ids = tokenizer.encode(text.format(place), special="allow")
        assert allowed(grammar.begin(tokenizer), tokenizer, ids) == fits
    spelt = tokenizer.encode(text.format("a"))  # the marks as letters
    assert not allowed(grammar.begin(tokenizer), tokenizer, spelt)


# ---- thoughts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "thoughts"),
    [
        ("Qwen3.5-4B", {"Hm </think > so.\n</think>\n\n": True, "": False}),  # the template opens a thought
        ("GLM-4.6", {"\n<think>Hm.</think>\n": True, "": True, "Hm.</think>": False}),
        ("Qwen3-Coder", {"": True, "<think>Hm.</think>": False}),
    ],
)
def test_a_thought_may_come_before_a_demanded_call(name: str, thoughts: Any, tokenizer: Tokenizer) -> None:
    format = detect_format(template(name), tokenizer)
    assert format.arguments is not None
    grammar = tool_grammar.required_grammar(format, SCHEMAS, tokenizer, True)
    call = format.head + "stop" + format.arguments.render({}) + format.tail
    for thought, fits in thoughts.items():
        constraint = grammar.begin(tokenizer)
        may = allowed(constraint, tokenizer, thought.lstrip() + call) and may_end(constraint, tokenizer)
        assert may == fits
        assert not fits or parser.parse(format, thought + call, SCHEMAS)[1] == [parser.Call("stop", "{}")]


def test_a_call_that_is_only_thought_of_is_none(tokenizer: Tokenizer) -> None:
    format = detect_format(template("Qwen3.5-4B"), tokenizer)
    text = f"I could say {parameters(place='x')}</think>\n\nNo."
    assert parser.parse(format, text, SCHEMAS) == (text, [])
    content, (call,) = parser.parse(format, f"{text}\n{parameters(place='y')}", SCHEMAS)
    assert content == text and json.loads(call.arguments) == {"place": "y"}


def test_templates_that_know_no_tools_are_refused(tokenizer: Tokenizer) -> None:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(UserError, match="ask without tools"):
        detect_format(plain, tokenizer)


def test_a_call_is_not_demanded_inside_a_thought(tokenizer: Tokenizer) -> None:
    format = detect_format(template("Qwen-QwQ-32B"), tokenizer)
    with pytest.raises(UserError, match="begins an answer with a thought"):
        tool_grammar.required_grammar(format, SCHEMAS, tokenizer, True)
