"""Libraries that only some installations have: each comes with an extra of pyproject.toml.

need("pretraining", "torch")  # UserError: pretraining needs PyTorch, ...: pip install 'cutaway[train]'
"""

import importlib.util

from cutaway.errors import UserError

EXTRAS = {  # a library: what people call it, and the extra that brings it
    "torch": ("PyTorch", "train"),
    "huggingface_hub": ("huggingface_hub", "hub"),
    "llguidance": ("llguidance", "agent"),
    "jsonschema": ("jsonschema", "agent"),
    "docstring_parser": ("docstring-parser", "agent"),
}


def need(what: str, *libraries: str) -> None:
    """UserError that names the extra to install, where one of these libraries is absent."""
    for library in libraries:
        if not installed(library):
            raise UserError(sentence(what, library))


def installed(library: str) -> bool:
    """Whether it can be imported; it is not imported."""
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:
        return False


def sentence(what: str, library: str) -> str:
    """What the user reads where a library is absent."""
    name, extra = EXTRAS[library]
    return f"{what} needs {name}, which is not installed: pip install 'cutaway[{extra}]'"
