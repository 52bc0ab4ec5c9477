"""Write cutaway/weights/class_keys.txt: the keys of config.json that transformers' own classes read.

    python -m scripts.tables.class_keys            # 10 seconds; after another version of transformers
    python -m scripts.tables.class_keys --check    # exit code 1 if the file is not what this version gives

Of every type of model that writes or reads text: the fields and the attribute map of its config class, what
that class asks of itself and of its keyword arguments, each ``config.NAME`` and ``getattr(config, "NAME")``
in its modeling files and in those that they import. That is more than what can change a result, on purpose: a
key that is not there can change none. Line ``*`` has what transformers' general code reads of any config.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import transformers
from transformers.models.auto import configuration_auto, modeling_auto

from cutaway.weights import class_keys

ROOT = Path(transformers.__file__).parent
CONFIG = re.compile(r"(^|_)(config|cfg)$")  # what variables and attributes that hold a config are called
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
GENERAL = ("configuration_utils", "modeling_utils", "masking_utils", "cache_utils", "modeling_rope_utils")
GENERAL += ("modeling_layers", "modeling_flash_attention_utils", "core_model_loading")
PLANS = re.compile(r"base_model_\w+_plan|keys_to_ignore\w*|checkpoint")
TEXT = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "SEQUENCE_CLASSIFICATION", "TEXT_ENCODING")
HEADER = """\
# The keys of config.json that transformers {version} reads, by scripts/tables/class_keys.py.
# One type of model a line, without what its general code reads of any model (line *). Last, the other types.
"""


def _is_config(node: ast.expr) -> bool:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return bool(CONFIG.search(name))
        case ast.Call(func=ast.Attribute(attr="get_text_config")):
            return True
        case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]):
            return bool(CONFIG.search(name))
    return False


def _asked(tree: ast.AST) -> Iterator[str]:
    """What code asks of configs."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=value, attr=name) if _is_config(value):
                yield name
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr"), args=[value, ast.Constant(value=str(name)), *_]
            ):
                if _is_config(value):
                    yield name


def _sections(tree: ast.AST) -> Iterator[str]:
    """What code asks of dictionaries, which sections of a config are."""
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(slice=ast.Constant(value=str(name))):
                yield name
            case ast.Call(
                func=ast.Attribute(attr="get" | "pop" | "setdefault"), args=[ast.Constant(value=name), *_]
            ):
                if isinstance(name, str):
                    yield name


def _of_class(tree: ast.AST) -> Iterator[str]:
    """What a config class has and asks of itself: its fields, its attributes, and every word in its code."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        for part in node.body:
            match part:
                case ast.Assign(targets=[ast.Name(id=name)]) if PLANS.fullmatch(name):
                    continue
                case ast.AnnAssign(target=ast.Name(id=name)):
                    yield name
            for inner in ast.walk(part):
                match inner:
                    case ast.Attribute(value=ast.Name(id="self"), attr=name):
                        yield name
                    case ast.Constant(value=str(name)) if KEY.fullmatch(name):
                        yield name


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@cache
def _of_file(path: Path) -> frozenset[str]:
    """What a file and those of other models that it imports read of a config."""
    tree = _parsed(path)
    found = {*_asked(tree), *_sections(tree)}
    if path.name.startswith("configuration_"):
        found |= set(_of_class(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module and "." in node.module:
            other = ROOT / "models" / Path(*node.module.split(".")).with_suffix(".py")
            if other.is_file() and other.name.startswith(("modeling_", "configuration_")):
                found |= _of_file(other)
    return frozenset(name for name in found if KEY.fullmatch(name) and not name.startswith("__"))


def _general() -> frozenset[str]:
    files = [ROOT / f"{name}.py" for name in GENERAL] + sorted((ROOT / "integrations").glob("*.py"))
    found = {name for path in files for name in _asked(_parsed(path))}
    for name in ("configuration_utils", "modeling_rope_utils"):
        found |= {*_of_class(_parsed(ROOT / f"{name}.py")), *_sections(_parsed(ROOT / f"{name}.py"))}
    return frozenset(name for name in found if KEY.fullmatch(name) and not name.startswith("__"))


def _folder(kind: str) -> Path:
    return ROOT / "models" / configuration_auto.model_type_to_module_name(kind)


def keys(kind: str) -> frozenset[str]:
    """What the config class and the models of a type read."""
    files = [*_folder(kind).glob("configuration_*.py"), *_folder(kind).glob("modeling_*.py")]
    return frozenset().union(*map(_of_file, files))


def table() -> str:
    """The whole file."""
    types = set(configuration_auto.CONFIG_MAPPING_NAMES)
    texts = {kind for name in TEXT for kind in getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES")}
    general = _general()
    lines = [HEADER.format(version=transformers.__version__), f"*: {' '.join(sorted(general))}\n"]
    lines += [f"{kind}: {' '.join(sorted(keys(kind) - general))}\n" for kind in sorted(texts & types)]
    lines.append(f"others: {' '.join(sorted(types - texts))}\n")
    return "".join(lines)


def main(arguments: list[str]) -> int:
    made = table()
    if arguments == ["--check"]:
        return int(class_keys.FILE.read_text("utf-8") != made)
    class_keys.FILE.write_text(made, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
