"""Check that an answer is safe to evaluate: literals and arithmetic, and nothing that acts.

    harmless("[[0, 1], [1, 0]]"), harmless("(3 + 5) * x**2")             # True, True
    harmless("__import__('os').system('true')"), harmless("9**9**9")     # False, False

Some scorers of reasoning-gym hand a model's text to ``eval`` or to SymPy's ``parse_expr``, an ``eval`` too.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from typing import Any

LENGTH, NODES = 4000, 2000
EXPONENT = 100  # the largest number in an exponent, in which there is no further one
FUNCTIONS = {
    "abs", "sqrt", "cbrt", "exp", "log", "ln", "sin", "cos", "tan", "cot", "sec", "csc", "sinh",
    "cosh", "tanh", "asin", "acos", "atan", "arcsin", "arccos", "arctan",
}  # fmt: skip
PLAIN = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.List, ast.Tuple, ast.Set, ast.Dict,
    ast.BinOp, ast.UnaryOp, ast.Call, ast.operator, ast.unaryop,
)  # fmt: skip
WORDS = re.compile(r"(?:[\w\s,-]|\.(?![^\W\d]))*")  # and numbers: nothing is called, indexed or multiplied
EVALUATES = re.compile(r"\b(?:eval|exec|parse_expr|sympify)\s*\(")


def evaluates(scorer: Callable[..., Any]) -> bool:
    """Whether a function's own source evaluates text."""
    try:
        return EVALUATES.search(inspect.getsource(scorer)) is not None
    except (OSError, TypeError):
        return True


def harmless(text: str) -> bool:
    """Whether a text, evaluated as Python, does no more than bounded arithmetic on numbers and names."""
    if WORDS.fullmatch(text):
        return True
    if len(text) > LENGTH:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    nodes = list(ast.walk(tree))
    return len(nodes) <= NODES and all(map(_plain, nodes))


def _plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS and not node.keywords
    if isinstance(node, ast.Name):
        return not node.id.startswith("_")
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return all(map(_small, ast.walk(node.right)))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):  # "x" * 10**9
        return not any(isinstance(each, ast.Constant | ast.List | ast.Tuple) and not _number(each)
                       for each in (node.left, node.right))  # fmt: skip
    return isinstance(node, PLAIN) and not isinstance(node, ast.LShift)


def _small(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return _number(node) and abs(node.value) <= EXPONENT  # type: ignore[arg-type]
    return not isinstance(node, ast.Pow | ast.LShift)


def _number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)
