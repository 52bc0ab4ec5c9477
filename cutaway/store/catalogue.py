"""Well-known small models by short names, as `qwen3-0.6b`: the repository on Hugging Face that each is.

The list is `catalogue.json`. It names no checksum: a pull compares files with what the repository lists.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LARGER = 1.4  # times its weights' bytes: the memory that a model takes at most, when it is loaded and answers
BESIDE = 300_000_000  # bytes of Python, libraries and a context beside it


@dataclass(frozen=True)
class Known:
    """One model: where it is, and the bytes of its weights."""

    repository: str
    revision: str
    type: str | None
    bytes: int
    licence: str
    about: str

    @property
    def source(self) -> str:
        """How the store spells it: ORG/NAME, with a revision but the branch main, and a type of .gguf."""
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"{self.repository}{revision}{f':{self.type}' if self.type else ''}"

    @property
    def memory(self) -> int:
        """Bytes that a chat with it takes, about."""
        return int(LARGER * self.bytes) + BESIDE


def known(name: str) -> Known | None:
    """The model of a short name, in any case; other programs write `:` before its size."""
    return every().get(name.lower().replace(":", "-"))


@cache
def every() -> dict[str, Known]:
    """All models by their names."""
    listed = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
    return {name: Known(**model) for name, model in listed["models"].items()}
