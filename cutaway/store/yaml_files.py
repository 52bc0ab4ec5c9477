"""Read untrusted YAML: plain data only, of bounded size; errors name the file.

Words are YAML 1.2's: of booleans only true and false, so that `no` is a word, and 1e-3 a number. Dates, sets,
binary data and merge keys are not read: a few lines of merge keys make gigabytes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from cutaway.errors import UserError
from cutaway.store.reading import text

LARGEST = 1 << 18  # bytes; a run's config has some 5,000
DEEPEST = 60  # lists and entries inside each other
MOST = 100_000  # values
WORDS = ("null", "int", "float", "str", "seq", "map")
BOOLEAN = ("tag:yaml.org,2002:bool", re.compile("(true|false)$", re.I), list("tTfF"))
NUMBER = (
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


class RepeatedNameError(UserError):
    """A key that occurs twice; YAML's readers would silently take the last. Its text tells the line alone."""


class _Repeated(yaml.YAMLError):
    line = 0  # of the second


class _Strict:
    """A loader that refuses nodes too deep inside others, merge keys, and duplicate names."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, not too deep inside others."""
        self.depth += 1
        try:
            if self.depth > DEEPEST:
                raise yaml.YAMLError(f"more than {DEEPEST} lists and entries inside each other")
            return super().compose_node(parent, index)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            self.depth -= 1

    def flatten_mapping(self, node: Any) -> None:
        """Merge keys (<<), which double what they merge, are entries like others."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """The entries by name, each name once."""
        loader: Any = super()
        found = loader.construct_mapping(node, deep)
        if len(found) < len(node.value):
            seen = set[Any]()
            for name, _ in node.value:
                made = loader.construct_object(name, True)
                if made in seen:
                    repeated = _Repeated()
                    repeated.line = name.start_mark.line + 1
                    raise repeated
                seen.add(made)
        return found


class TextLoader(_Strict, yaml.BaseLoader):
    """Reads texts, lists and entries by name: every value is a text."""


class Loader(_Strict, yaml.SafeLoader):
    """Reads null, booleans, numbers, texts, lists and entries by name, and nothing else."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, words) for tag, words in known if tag.rpartition(":")[2] in WORDS]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors: ClassVar = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in (*WORDS, "bool")
    }


Loader.add_implicit_resolver(*BOOLEAN)
Loader.add_implicit_resolver(*NUMBER)


class Dumper(yaml.SafeDumper):
    """Quotes what ``Loader`` would not read as text."""


Dumper.add_implicit_resolver(*BOOLEAN)
Dumper.add_implicit_resolver(*NUMBER)


def parsed(path: Path) -> dict[Any, Any]:
    """A YAML file's entries by name; an empty file has none. UserError for another, and for more than LARGEST
    bytes.
    """
    data = value(text(path, LARGEST), str(path))
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: must hold entries by name")
    return data


def value(data: str, where: str, loader: type[Loader | TextLoader] = Loader) -> Any:
    """What YAML makes of a text. UserError for what is none; RepeatedNameError for a name given twice."""
    try:
        found = yaml.load(data, loader)
        if _size(found, {}) > MOST:
            raise yaml.YAMLError(f"its aliases (*) make over {MOST:,} values")
    except _Repeated as error:
        raise RepeatedNameError(
            f"{where}, line {error.line}: the name of this entry is there already: keep one of the two"
        ) from None
    except (yaml.YAMLError, ValueError, LookupError, OverflowError) as error:
        # all of which yaml's own constructors raise, for `!!int x`, `!!bool maybe` and the like
        raise UserError(f"{where}: is not YAML ({' '.join(str(error).split()):.300})") from None
    return found


def _size(found: Any, sizes: dict[int, float]) -> float:
    """How many values there are with aliases written out; infinitely many where one is inside itself."""
    if not isinstance(found, dict | list):
        return 1
    if id(found) not in sizes:
        sizes[id(found)] = float("inf")
        inside = found.values() if isinstance(found, dict) else found
        sizes[id(found)] = 1 + sum(_size(each, sizes) for each in inside)
    return sizes[id(found)]
