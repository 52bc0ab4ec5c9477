"""Calls of tools in the formats of real templates: found out, read whole and in parts, demanded."""

import json

import numpy as np
import pytest

from cutaway.errors import Refused
from cutaway.tokenizer import Tokenizer
from tests import inputs
from tests.drawn import drawn
from tests.serving import template

from cutaway.serve import tools  # isort: skip

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
    format = tools.dialect(template(name), tokenizer)
    lead = "" if format.bare else "Let me see.\n"
    said, calls = tools.parse(format, lead + KNOWN[name])
    assert said == lead.strip() and calls == [tools.Call("look", '{"n": 1}')]


def test_several_calls(tokenizer: Tokenizer) -> None:
    format = tools.dialect(template("mistralai-Mistral-Nemo-Instruct-2407"), tokenizer)
    one, two = ('{"name": "%s", "arguments": {"n": [{}]}, "id": "abc123456"}' % name for name in ("a", "b"))  # noqa: UP031
    assert [call.name for call in tools.parse(format, f"[TOOL_CALLS][{one}, {two}]")[1]] == ["a", "b"]
    assert [call.name for call in tools.parse(format, f"[TOOL_CALLS] [{one},{two}")[1]] == ["a", "b"]


@pytest.mark.parametrize("name", ["Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.1-8B-Instruct"])
@pytest.mark.parametrize(
    "text",
    [
        "No call at all.",
        "A < b and <tool_ but no more",
        '<tool_call>\n{"name": "look", "arguments": {"n": ',
        '<tool_call>\n{"name": "look", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": "look me", "arguments": {}}\n</tool_call>',
        '{"name": "look", "parameters": {"n": }}',
        'x {"name": "look", "parameters": {"n": 1}}',
        "{" * 5000,
    ],
)
def test_what_is_no_whole_call_is_said(name: str, text: str, tokenizer: Tokenizer) -> None:
    assert tools.parse(tools.dialect(template(name), tokenizer), text) == (text, [])


@pytest.mark.parametrize("name", ["Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.1-8B-Instruct"])
@pytest.mark.parametrize(
    "text",
    [
        "Plain < words <tool",
        "  {x",
        "",
        "Hm.\n",
        "CALL",
        "Hm. CALL",
        "Hm.\n\nCALL\n",
        "CALL then",
        "Hm <tool_callCALL",
    ],
)
def test_however_an_answer_is_cut_it_reads_the_same(name: str, text: str, tokenizer: Tokenizer) -> None:
    format = tools.dialect(template(name), tokenizer)
    text = text.replace("CALL", KNOWN[name])
    said, calls = tools.parse(format, text)
    for size in (1, 2, 5, 1000):
        listening = tools.Listening(format)
        told = "".join(listening.push(text[i : i + size]) for i in range(0, len(text), size))
        assert not calls or "name" not in told
        rest, found = listening.finish()
        assert found == calls and (told + rest).strip() == said.strip()


@pytest.mark.parametrize("name", ["Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.1-8B-Instruct"])
@pytest.mark.parametrize("several", [True, False])
def test_random_tokens_under_a_demand_are_calls(name: str, several: bool, tokenizer: Tokenizer) -> None:
    format = tools.dialect(template(name), tokenizer)
    for seed in range(4):
        constraint = tools.demanded(format, SCHEMAS, tokenizer, several).begin(tokenizer)
        text, ended = drawn(constraint, tokenizer, seed, most=150, eager=True)
        if not ended:
            continue
        said, calls = tools.parse(format, text)
        assert said == "" and calls and (several or len(calls) == 1)
        for call in calls:
            arguments = json.loads(call.arguments)
            assert call.name in SCHEMAS and (call.name == "stop" or set(arguments) == {"place", "n"})


@pytest.mark.parametrize("several", [True, False])
def test_strict_arguments_are_kept_to_only_where_a_call_is_made(several: bool, tokenizer: Tokenizer) -> None:
    format = tools.dialect(template(), tokenizer)
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
        constraint = tools.optional(format, SCHEMAS, tokenizer, several).begin(tokenizer)
        assert allowed(constraint, tokenizer, text) == fits, text


def allowed(constraint, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text may be said under a constraint."""
    for id in tokenizer.encode(text):
        logits = np.zeros(len(tokenizer), np.float32)
        constraint.mask(logits)
        if logits[id] != 0:
            return False
        constraint.accept(id)
    return True


def test_templates_that_know_no_tools_are_refused(tokenizer: Tokenizer) -> None:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(Refused, match="ask without tools"):
        tools.dialect(plain, tokenizer)
    with pytest.raises(Refused, match="ask without tools"):
        tools.dialect(template("Qwen3-Coder"), tokenizer)  # arguments as XML


def test_a_call_is_not_demanded_inside_a_thought(tokenizer: Tokenizer) -> None:
    format = tools.dialect(template("Qwen-QwQ-32B"), tokenizer)
    with pytest.raises(Refused, match="begins an answer with a thought"):
        tools.demanded(format, SCHEMAS, tokenizer, True)
