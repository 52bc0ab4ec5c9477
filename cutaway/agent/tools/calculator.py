"""Arithmetic: Python's operators and some functions on numbers, and nothing else of the language."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cutaway.agent.built_in_tools import Reader
from cutaway.agent.tool import Tool, ToolError, from_function

MOST_BITS = 4096  # of a whole number on the way: a power tower ends here
BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
NAMES = {"pi": math.pi, "e": math.e, "tau": math.tau}
OF_MATH = (
    *("sqrt", "exp", "log", "log2", "log10", "sin", "cos", "tan", "asin", "acos", "atan"),
    *("floor", "ceil", "degrees", "radians", "hypot", "gcd", "lcm"),
)
FUNCTIONS: dict[str, Callable[..., Any]] = {name: getattr(math, name) for name in OF_MATH}
FUNCTIONS |= {"abs": abs, "round": round, "min": min, "max": max}


def make(root: Path, reader: Reader) -> Tool:
    """The tool."""
    return from_function(calculator)


def calculator(expression: str) -> str:
    """Compute an arithmetic expression, such as (3 + 4) * 2 ** 5 or sqrt(2).

    :param expression: Numbers, + - * / // % **, parentheses, sqrt, log, sin, round, min, max, pi, e.
    """
    if len(expression) > 1000:
        raise ToolError("the expression has more than 1,000 characters")
    try:
        value = _value(ast.parse(expression.strip().replace("^", "**"), mode="eval").body)
        return str(value)
    except ToolError:
        raise
    except (SyntaxError, RecursionError, MemoryError):
        raise ToolError("this is not an arithmetic expression") from None
    except (ArithmeticError, ValueError, TypeError) as error:
        raise ToolError(str(error)) from None


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _bounded(value)
        case ast.Name(id=name) if name in NAMES:
            return NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(op=ast.Pow()):
            return _power(_value(node.left), _value(node.right))
        case ast.BinOp() if type(node.op) in BINARY:
            return _bounded(BINARY[type(node.op)](_value(node.left), _value(node.right)))
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in FUNCTIONS:
            return _bounded(FUNCTIONS[name](*map(_value, node.args)))
    raise ToolError(f"{ast.unparse(node)[:60]!r} is not arithmetic that this tool knows")


def _power(base: Any, exponent: Any) -> Any:
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and exponent > 0 and base.bit_length() * exponent > MOST_BITS:
        raise ToolError(f"a number of more than {MOST_BITS:,} bits is too large")
    value = base**exponent
    if isinstance(value, complex):
        raise ToolError("the result is not a real number")
    return _bounded(value)


def _bounded(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ToolError(f"a number of more than {MOST_BITS:,} bits is too large")
    return value
