"""Search in one folder, by meaning and by words; what is found is quoted with its id and its place."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from cutaway.agent.built_in_tools import Reader
from cutaway.agent.tool import Tool, from_function
from cutaway.embedding.search import Index, home_of
from cutaway.errors import UserError

MODEL = "minilm"  # makes the vectors that are compared


def make(root: Path, reader: Reader) -> Tool:
    """The tool, for the text files under ``root``. The index is brought up to date at each call."""
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder to search in")
    home = home_of(root)

    def search(query: str, count: int = 3) -> str:
        """Find passages in the user's folder of documents. Cite them by the number in brackets.

        :param query: What to look for.
        :param count: How many passages, at most 10.
        """
        encoder = reader()
        with closing(Index(root, home, MODEL)) as index:
            index.update(encoder.embed, lambda text: len(encoder.whole_ids(text)) <= encoder.config.context)
            hits = index.fused(query, encoder.embed([query])[0], min(max(count, 1), 10))
        quoted = [f"[{hit.id}] {hit.path}:{hit.line}\n{hit.text}" for hit in hits]
        return "\n\n".join(quoted) or "Nothing was found."

    return from_function(search)
