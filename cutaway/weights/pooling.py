"""The pooling that a model states: how a text's vector is made of its tokens' vectors; and its sizes.

A sentence-transformers folder states it in ``modules.json`` and ``1_Pooling/config.json``, a GGUF file in
``ARCHITECTURE.pooling_type``.
"""

from __future__ import annotations

from collections.abc import Sequence

from cutaway.errors import UserError, quoted
from cutaway.weights.fields import Fields
from cutaway.weights.load import Checkpoint, parsed

KNOWN = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
WORDS = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
GGUF = {1: "mean", 2: "cls", 3: "last"}
MODULES = ("Transformer", "Pooling", "Normalize")


def stated(checkpoint: Checkpoint) -> str | None:
    """The pooling that comes with the model, or None; UserError if it is one that cannot be honoured."""
    if not checkpoint.source.is_dir():
        return _in_gguf(checkpoint)
    modules = checkpoint.source / "modules.json"
    for module in parsed(modules, list) if modules.is_file() else []:
        kind = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else ""
        if kind not in MODULES:
            raise UserError(f"{modules}: has the module {quoted(kind)}; known are {', '.join(MODULES)}")
    path = checkpoint.source / "1_Pooling" / "config.json"
    return _in_folder(Fields(parsed(path), path)) if path.is_file() else None


def dimensions(checkpoint: Checkpoint) -> Sequence[int]:
    """The lengths that vectors may be cut to, which ``config.json`` states of a model that was trained for it
    (Matryoshka, 2205.13147); empty for others.
    """
    path = checkpoint.source / "config.json"
    if not path.is_file():
        return ()
    stated = parsed(path)
    named = stated.get("matryoshka_dimensions")
    if isinstance(named, list) and named:
        return [one for one in named if isinstance(one, int) and 0 < one <= checkpoint.config.width]
    return range(1, checkpoint.config.width + 1) if stated.get("is_matryoshka") is True else ()


def _in_folder(fields: Fields) -> str:
    named = fields.get("pooling_mode")
    if named is not None:  # newer files name one mode
        return fields.choice("pooling_mode", WORDS)
    asked = [name for name in fields.data if name.startswith("pooling_mode_") and fields.data[name] is True]
    if len(asked) == 1 and asked[0] in KNOWN:
        return KNOWN[asked[0]]
    raise UserError(
        f"{fields.where}: asks for {', '.join(asked) or 'no pooling'}, and only one of {', '.join(KNOWN)} "
        "is known: give pooling="
    )


def _in_gguf(checkpoint: Checkpoint) -> str | None:
    name = f"{checkpoint.metadata.get('general.architecture')}.pooling_type"
    kind = Fields(checkpoint.metadata, checkpoint.source).integer(name, None, low=0)
    if kind in (None, 0):
        return None
    if kind not in GGUF:
        raise UserError(f"{checkpoint.source}: {name} is {kind}, which is not supported: give pooling=")
    return GGUF[kind]
