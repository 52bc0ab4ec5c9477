"""A chat template as `transformers` runs it (Jinja's sandbox and a few helpers), with origins.

Jinja compiles a template to Python. This code generator differs from Jinja's in three ways. Each constant is
a `Text` that knows where its characters come from, and `joined` replaces `"".join`. No constant is folded
while compiling, for `'a' * 10**9` would be. Each block counts a step as it is entered, so that a template
cannot run for ever.

The messages and other inputs count as content. The tokenizer's own names (bos_token and the like) count as
written by the template.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from itertools import count
from typing import ClassVar, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace, pass_eval_context

from cutaway.errors import UserError, escaped
from cutaway.tokenizer.chat.provenance import (
    Text,
    as_text,
    constant,
    content,
    formatted,
    joined,
    meter,
    safe,
)

LONGEST = 4_000_000  # characters of any one string a filter may be asked to make
BITS = 1_024  # of a whole number
ROLES = ("system", "developer", "user", "assistant", "model", "tool", "function", "observation", "ipython")


class Writer(CodeGenerator):
    """Jinja's code generator, with constants that know their origin and a step counted for each block."""

    environment: "Rendering"

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        if isinstance(node.value, str):
            self.write(self.environment.constant(node.value))
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
        self.write(self.environment.constant(node.data))

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat([str(piece) for piece in (")
        for piece in node.nodes:
            self.visit(piece, frame)
            self.write(", ")
        self.write(")])")

    def _output_child_to_const(
        self, node: nodes.Expr, frame: Frame, finalize: CodeGenerator._FinalizeInfo
    ) -> str:
        if isinstance(node, nodes.TemplateData):
            return node.data
        raise nodes.Impossible

    def _output_const_repr(self, group) -> str:
        return self.environment.constant("".join(group))

    def blockvisit(self, nodes, frame: Frame) -> None:
        self.writeline("environment.step()")
        super().blockvisit(nodes, frame)


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: marks what an assistant wrote; it renders as its body."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return caller()


class Dictionary:
    """The name `dict` in a template: it makes dictionaries and has no other attribute."""

    def __call__(self, *arguments, **names) -> dict:
        return dict(*arguments, **names)


class Names(Namespace):
    """Jinja's namespace, without underscored names, through which a template could reach Python's own."""

    def __init__(*arguments, **names) -> None:
        self, *rest = arguments
        for name in (values := dict(*rest, **names)):
            _public(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: object) -> None:
        _public(name)
        Namespace.__setitem__(self, name, value)


def _public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no underscored names such as {name!r}")


class Rendering(ImmutableSandboxedEnvironment):
    """The environment of one template: its constants, and the helpers that `transformers` gives it."""

    code_generator_class = Writer
    concat = staticmethod(joined)
    step = staticmethod(meter.step)
    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[Generation, LoopControlExtension],
        )
        self.constants: list[Text] = []
        self.source = "\0"  # every constant where its origins say, a gap after each
        self.filters.update(
            tojson=_tojson, from_json=json.loads, join=_join, safe=lambda value: safe(str(value))
        )
        self.globals.update(
            raise_exception=_raise,
            strftime_now=lambda form: datetime.now().strftime(form),
            dict=Dictionary(),
            namespace=Names,
        )

    def constant(self, text: str) -> str:
        """Gives a constant of the template its origins and returns the Python expression that means it."""
        self.constants.append(self.authored(text))
        return f"environment.constants[{len(self.constants) - 1}]"

    def authored(self, text: str) -> Text:
        made = constant(text, len(self.source))
        self.source += text + "\0"
        return made

    def call_binop(self, context: object, operator: str, left: object, right: object) -> object:
        if operator == "%":
            _check_percent(left)
        else:
            _check_size(operator, left, right)
        return self.binop_table[operator](left, right)

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:
        pattern, name = getattr(value, "__self__", None), getattr(value, "__name__", "")
        if not isinstance(pattern, Text) or name not in ("format", "format_map"):
            return super().wrap_str_format(value)
        if name == "format_map":
            return super().wrap_str_format(str.__str__(pattern).format_map)

        def field(name: str, arguments: tuple, names: dict) -> object:
            return SandboxedFormatter(self).get_field(name, arguments, names)[0]

        return lambda *arguments, **names: formatted(pattern, field, arguments, names)


def _check_percent(pattern: object) -> None:
    if isinstance(pattern, str) and ("*" in pattern or any(len(n) > 3 for n in _numbers(pattern))):
        raise UserError("the chat template asks for a width in a '%' format, which is not allowed here")


def _numbers(text: str) -> list[str]:
    return "".join(c if c.isdigit() else " " for c in text).split()


def _check_size(sign: str, left: object, right: object) -> None:
    """Refuses a product that no template needs: a long string or list, or a number of over 1,024 bits."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(right, 0) if sign == "**" else left.bit_length() + right.bit_length()
        if bits > BITS:
            raise UserError(f"the chat template computes a number of over {BITS:,} bits; it was stopped")
        return
    for sequence, times in ((left, right), (right, left)):
        if (
            isinstance(sequence, (str, list, tuple))
            and isinstance(times, int)
            and len(sequence) * times > LONGEST
        ):
            raise UserError(f"the chat template makes over {LONGEST:,} elements; it was stopped")


def _tojson(
    value: object, ensure_ascii: bool = False, indent=None, separators=None, sort_keys: bool = False
) -> Text:
    dumped = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    whole = set(value._o) if isinstance(value, Text) else set()
    return content(dumped, max(0, -whole.pop()) if len(whole) == 1 else 0)


@pass_eval_context
def _join(context: nodes.EvalContext, value, d: str = "", attribute: str | int | None = None) -> str:
    if context.autoescape:
        return FILTERS["join"](context, value, d, attribute)
    if attribute is not None:
        value = map(make_attrgetter(context.environment, attribute), value)
    return joined([str(piece) for piece in value], str(d))


class Rejected(TemplateError):
    """A template called raise_exception: it does not take the conversation it was given."""


def _raise(message: object) -> NoReturn:
    raise Rejected(str(message))


def reason(error: Exception) -> str:
    """Why a template did not render, in one sentence; what it says itself is quoted, on one line."""
    message = escaped(f"{error}"[:400])
    if isinstance(error, UserError):
        return message
    if isinstance(error, Rejected):
        return f'the chat template does not take this conversation, and says "{message}"'
    if isinstance(error, TemplateSyntaxError):
        return f"the chat template is no valid Jinja, line {error.lineno}: {message}"
    if isinstance(error, RecursionError):
        return "the chat template calls itself too deeply; it was stopped"
    return f"the chat template failed on this conversation: {type(error).__name__}: {message}"


class Program:
    """A template, compiled. Raises jinja2's errors for one that is no valid template."""

    def __init__(self, template: str, names: Mapping[str, str]) -> None:
        meter.fill(0, 10_000 + 10 * len(template))
        self.environment = Rendering()
        self.names = {name: self.environment.authored(text) for name, text in names.items()}
        self.template = self.environment.from_string(template)
        self.own = len(self.environment.source)
        self.roles = {role: self.environment.authored(role) for role in ROLES}
        self.source = self.environment.source

    def render(self, context: Mapping[str, object]) -> Text:
        """The conversation as one text with origins; ``context`` is plain data, as JSON has it.

        Its strings are content, numbered from 1 as they are met (values only, depth first). A message's role
        is a word of a fixed list, which no sender of a text chooses: it is the template's, so that
        '<|' + message.role + '|>' is a control token.
        """
        meter.fill(50_000, 1_000_000)
        numbers = count(1)
        given = {
            name: _content(value, numbers, self.roles if name == "messages" else {})
            for name, value in context.items()
        }
        return as_text(self.template.render({**self.names, **given}))


def _content(value: object, numbers: Iterator[int], roles: Mapping[str, Text], key: object = None) -> object:
    """The same data with each string marked as content, but for the role of each message, a list's entry.

    Each string also adds to what the rendering may use.
    """
    if isinstance(value, dict):
        own = roles if key is list else {}
        return {name: _content(item, numbers, own, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_content(item, numbers, roles if key is None else {}, list) for item in value]
    if not isinstance(value, str):
        return value
    meter.steps += 1_000
    meter.characters += 1_000 + 200 * len(value)
    number = next(numbers)
    return roles[value] if key == "role" and value in roles else content(value, number)
