"""File formats: every kind of file that a verb reads, the verbs that read it, and what reads it."""

from __future__ import annotations

from scripts.fuzz.mutants import kinds
from scripts.lib.reference.markdown import HEAD, code, escaped, table
from scripts.tables import contributing

PACKAGE = contributing.ROOT / "cutaway"
INTRODUCTION = """# File formats

Every kind of file that is read, and where. All are data: nothing is unpickled, and no file's code is run. A
damaged file is refused in a sentence; `python -m scripts.fuzz.files` tries thousands of damages.
"""


def page() -> str:
    """The page of all kinds of file."""
    rows = []
    for kind in kinds.KINDS.values():
        readers = [name for name, own in kinds.READERS.items() if kind.name in own.split(", ")]
        readers = [name for name in readers if not name.startswith("commands/")] or readers
        what = "; ".join(
            f"{code(name)}: {escaped(contributing.first_sentence(PACKAGE / name))}" for name in readers
        )
        rows.append((kind.name, code(kind.verbs), what))
    return "\n".join([HEAD, INTRODUCTION, table(("kind", "verbs", "read by"), rows)])
