"""A conversation's KV cache beside its file: `cutaway chat --save` leaves it for --load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cutaway.commands import prefixes
from cutaway.commands.console import note
from cutaway.errors import OperationalError, UserError
from cutaway.generate.session import common_prefix
from cutaway.store.sealed import DamagedError

SUFFIX = ".kv"
SCOPE = b"chat"  # of the file: no server's


def beside(conversation: Path) -> Path:
    """The file of a conversation's KV cache."""
    return conversation.with_name(conversation.name + SUFFIX)


def save(lm: Any, session: Any, ids: Sequence[int], conversation: Path) -> None:
    """Write what a session read of a conversation, whose ids are given; a note where that is not kept."""
    if not prefixes.storable(lm):
        note("The conversation is saved without its KV cache: only the native runtime stores one.")
        return
    try:
        saver = prefixes.saver(lm, None, "--save")
    except UserError as error:
        note(f"The conversation is saved without its KV cache: {error}")
        return
    shared = common_prefix(session.ids, ids)  # what was taken back is not stored
    if (state := session.storable(shared)) is not None:
        path = beside(conversation)
        nbytes = saver.write_state(path, lm.engine, SCOPE, session.ids[: state.length], state)
        note(f"Its KV cache is in {path} ({nbytes / 1e6:,.1f} MB): --load reads on from there.")
    elif lm.engine.grid > 1 or shared >= lm.engine.page:  # else it is too short for a page
        note(
            "The conversation is saved without its KV cache, whose state cannot go back to before what was "
            "taken back or stopped: --load reads the conversation again."
        )


def load(lm: Any, session: Any, conversation: Path) -> None:
    """Have a session begin with the KV cache beside a conversation, if there is one of this model."""
    path = beside(conversation)
    if not path.is_file():
        return
    try:
        session.begin(*prefixes.saver(lm, None, "--load").read_state(path, lm.engine, SCOPE))
    except (DamagedError, OperationalError, UserError):
        note(f"{path} is damaged, or of another model, key or version: the conversation is read instead.")
