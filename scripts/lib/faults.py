"""Small faults that a programmer might make, planted one at a time in a Python file, found by walking its
syntax tree.

What cannot change what a program says is left alone by rule: docstrings and other texts, annotations, what
an error says, assertions, decorators, ``if TYPE_CHECKING``, protocols, type aliases, ``device=`` and
``strict=``.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
ORDERED = (ast.Sub, ast.Div, ast.FloorDiv, ast.Mod, ast.MatMult, ast.Pow)
PAIRS = (
    ("min", "max"),
    ("any", "all"),
    ("amin", "amax"),
    ("minimum", "maximum"),
    ("sin", "cos"),
    ("tril", "triu"),
    ("low", "high"),
    ("left", "right"),
    ("query", "key"),
    ("heads", "groups"),
    ("key_size", "values"),
)
OTHER = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
# Calls that give back something of the same shape, so that leaving them out is a fault and not a crash.
DROPPED = {
    *("abs", "clamp", "clone", "cumsum", "exp", "float", "log", "long", "masked_fill", "relu", "round"),
    *("sigmoid", "sort", "square", "to", "transpose", "snapshot"),
}
HARMLESS = {"device", "strict", "metadata"}


@dataclass(frozen=True)
class Fault:
    """One fault: ``source`` is the whole file with it. ``lines``: from first to last of the statement it sits
    in; ``inside`` a function, or run when the file is imported.
    """

    path: str
    lines: tuple[int, int]
    inside: bool
    kind: str
    before: str
    after: str
    source: str
    key: str


def plant(path: Path, root: Path) -> list[Fault]:
    """Every fault of the file, each once."""
    text = path.read_text()
    tree = ast.parse(text)
    found: dict[str, Fault] = {}
    for node, scope, statement in _places(tree):
        for kind, new in _changes(node, scope):
            source = _replaced(text, node, new)
            try:
                same = ast.dump(ast.parse(source)) == ast.dump(tree)
            except SyntaxError:
                continue
            if same or source in found:
                continue
            found[source] = _fault(path.relative_to(root), text, node, new, kind, scope, statement, source)
    return _numbered(list(found.values()))


def _fault(
    path: Path,
    text: str,
    node: ast.AST,
    new: str,
    kind: str,
    scope: list[ast.AST],
    statement: ast.stmt,
    source: str,
) -> Fault:
    functions = [s for s in scope if isinstance(s, ast.FunctionDef)]
    owner = ast.unparse(functions[0]) if functions else ast.unparse(statement)
    names = ".".join(getattr(s, "name", "") for s in scope)
    before = " ".join((ast.get_source_segment(text, node) or "").split())
    key = "\0".join((str(path), names, owner, kind, before, new))
    lines = statement.lineno, _header_end(statement)
    inside = any(function is not statement for function in functions)  # a default is run at import
    return Fault(str(path), lines, inside, kind, before, new, source, key)


def _numbered(faults: list[Fault]) -> list[Fault]:
    """Keys as short hashes: they change where the function around the fault changes, and nowhere else."""
    seen: dict[str, int] = {}
    out = []
    for fault in faults:
        count = seen[fault.key] = seen.get(fault.key, -1) + 1
        digest = hashlib.sha256(f"{fault.key}\0{count}".encode()).hexdigest()[:10]
        out.append(Fault(**(vars(fault) | {"key": digest})))
    return out


def _header_end(statement: ast.stmt) -> int:
    """The last line of what runs first of a compound statement, or of all of a simple one."""
    body = getattr(statement, "body", None)
    if isinstance(body, list) and body:
        return max(body[0].lineno - 1, statement.lineno)
    return statement.end_lineno or statement.lineno


Place = tuple[ast.AST, list[ast.AST], ast.stmt]


def _places(tree: ast.Module) -> Iterator[Place]:
    """Each node that may be changed, the classes and functions around it, and its statement."""
    for statement in tree.body:
        yield from _within(statement, [], statement)


def _within(node: ast.AST, scope: list[ast.AST], statement: ast.stmt) -> Iterator[Place]:
    if _left_alone(node, scope):
        return
    if isinstance(node, ast.stmt):
        statement = node
    yield node, scope, statement
    inner = [*scope, node] if isinstance(node, ast.ClassDef | ast.FunctionDef) else scope
    for child in _children(node):
        yield from _within(child, inner, statement)


def _left_alone(node: ast.AST, scope: list[ast.AST]) -> bool:
    if isinstance(node, ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.ClassDef):
        return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)
    alias = not scope and isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript)
    return alias and not ast.unparse(node.value).startswith("[")


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """All but annotations, decorators, what is raised, and what a slice is made of."""
    match node:
        case ast.FunctionDef():
            yield from (d for d in (*node.args.defaults, *node.args.kw_defaults) if d is not None)
            yield from node.body
        case ast.ClassDef():
            yield from node.body
        case ast.AnnAssign():
            if node.value is not None:
                yield node.value
        case ast.Raise():
            return
        case ast.keyword():
            if node.arg not in HARMLESS:
                yield node.value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
            return
        case _:
            yield from ast.iter_child_nodes(node)


def _changes(node: ast.AST, scope: list[ast.AST]) -> Iterator[tuple[str, str]]:
    """What kind of fault, and what replaces the node."""
    if isinstance(node, ast.stmt):
        yield from _of_statement(node, scope)
    elif isinstance(node, ast.expr) and not isinstance(getattr(node, "ctx", None), ast.Store | ast.Del):
        for kind, new in _of_expression(node):
            yield kind, f"({ast.unparse(new)})"


def _of_statement(node: ast.stmt, scope: list[ast.AST]) -> Iterator[tuple[str, str]]:
    match node:
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
            yield "statement removed", "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) if not _makes(scope):
            yield "statement removed", "pass"
        case _:
            return


def _makes(scope: list[ast.AST]) -> bool:
    """Within a constructor, where leaving out an attribute is a crash and no fault."""
    return bool(scope) and getattr(scope[-1], "name", "") == "__init__"


def _of_expression(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    match node:
        case ast.Compare():
            for n, op in enumerate(node.ops):
                new = copy.deepcopy(node)
                new.ops[n] = COMPARISONS[type(op)]()
                yield "comparison", new
        case ast.BinOp():
            yield from _of_operator(node)
        case ast.BoolOp():
            other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield "and, or", ast.BoolOp(other, node.values)
            for n in range(len(node.values)):
                kept = node.values[:n] + node.values[n + 1 :]
                yield "condition dropped", kept[0] if len(kept) == 1 else ast.BoolOp(node.op, kept)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            yield from _of_number(-value)
        case ast.UnaryOp():
            yield "sign or not dropped", node.operand
        case ast.Constant(value=bool() as value):
            yield "true, false", ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield from _of_number(value)
        case ast.IfExp():
            yield "branches swapped", ast.IfExp(node.test, node.orelse, node.body)
        case ast.Call():
            yield from _of_call(node)
        case ast.Subscript(slice=index):
            yield from _of_index(node, index)
        case ast.Attribute() if node.attr in OTHER:
            yield "other name", ast.Attribute(node.value, OTHER[node.attr], node.ctx)
        case ast.ListComp() | ast.GeneratorExp() | ast.DictComp():
            yield from _of_comprehension(node)
        case _:
            return


def _of_operator(node: ast.BinOp) -> Iterator[tuple[str, ast.expr]]:
    if any(isinstance(side, ast.JoinedStr) or _text(side) for side in (node.left, node.right)):
        return
    if type(node.op) in OPERATORS:
        yield "operator", ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    if isinstance(node.op, ORDERED):
        yield "operands swapped", ast.BinOp(node.right, node.op, node.left)
    if isinstance(node.op, ast.BitAnd | ast.BitOr):
        yield "condition dropped", node.left
        yield "condition dropped", node.right


def _text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _of_number(value: int | float) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(value, float):
        yield "number", ast.Constant(value * 2 if value else 1.0)
        return
    for near in (value + 1, value - 1):
        yield "off by one", ast.Constant(near)


def _of_call(node: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    for n, keyword in enumerate(node.keywords):
        if keyword.arg is not None and keyword.arg not in HARMLESS:
            kept = node.keywords[:n] + node.keywords[n + 1 :]
            yield "argument dropped", ast.Call(node.func, node.args, kept)
    if isinstance(node.func, ast.Name) and node.func.id in OTHER:
        yield "other name", ast.Call(ast.Name(OTHER[node.func.id]), node.args, node.keywords)
    if isinstance(node.func, ast.Attribute) and node.func.attr in DROPPED:
        yield "call dropped", node.func.value


def _of_index(node: ast.Subscript, index: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Each bound of each slice left out."""
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    for n, part in enumerate(parts):
        for bound in ("lower", "upper", "step"):
            if isinstance(part, ast.Slice) and getattr(part, bound) is not None:
                new = copy.deepcopy(node)
                slices = new.slice.elts if isinstance(new.slice, ast.Tuple) else [new.slice]
                setattr(slices[n], bound, None)
                yield "bound dropped", new


def _of_comprehension(node: ast.ListComp | ast.GeneratorExp | ast.DictComp) -> Iterator[tuple[str, ast.expr]]:
    for n, generator in enumerate(node.generators):
        if generator.ifs:
            new = copy.deepcopy(node)
            new.generators[n].ifs = []
            yield "condition dropped", new


def _replaced(text: str, node: ast.AST, new: str) -> str:
    """The text with the node's own place taken by something else."""
    lines = text.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    begin = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
    end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
    return (text.encode()[:begin] + new.encode() + text.encode()[end:]).decode()
