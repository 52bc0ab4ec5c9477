"""Patchscopes: an activation of one text moved into another text, which the model goes on from.

    patchscope(lm, "The capital of France", 12, -1).text      # what the model makes of the activation

The prompt repeats words, so that the model writes the word that it finds in the patched place (2401.06102).
"""

from __future__ import annotations

from typing import Any

from cutaway.errors import UserError
from cutaway.inspect.edits import Add, Scale
from cutaway.inspect.subject import subject_of

PROMPT = "cat -> cat\n1135 -> 1135\nhello -> hello\n? ->"
PLACE = "?"


def patchscope(
    lm: Any,
    text: Any,
    layer: int,
    position: int = -1,
    *,
    prompt: str = PROMPT,
    into_layer: int | None = None,
    into_position: int | None = None,
    max_tokens: int = 8,
) -> Any:
    """The greedy continuation of ``prompt`` with the residual stream of a text after a layer moved into it.

    It is put after ``into_layer`` (None: the same) at ``into_position`` (None: the prompt's last token that
    has a "?"). Raises UserError for a place that the model or a text does not have.
    """
    subject = subject_of(lm)
    into_layer = layer if into_layer is None else into_layer
    count = len(subject.config.blocks)
    for one in (layer, into_layer):
        if not 0 <= one < count:
            raise UserError(f"there is no layer {one}: this model's layers are 0 to {count - 1}")
    ids, other = subject.encode(text), subject.encode(prompt)
    into = _place(subject, other) if into_position is None else into_position
    for at, tokens, name in ((position, ids, "text"), (into, other, "prompt")):
        if not -len(tokens) <= at < len(tokens):
            raise UserError(f"there is no position {at}: the {name} has {len(tokens)} tokens, from 0")
    (seen,) = subject.values([ids], [f"blocks.{layer}.out"])
    row = seen[f"blocks.{layer}.out"][position]
    where: dict[str, Any] = {"name": f"blocks.{into_layer}.out", "positions": [into % len(other)]}
    edit = [Scale(**where, strength=0.0), Add(**where, vector=row.tolist())]
    return lm.generate(other, max_tokens=max_tokens, temperature=0, edit=edit)


def _place(subject: Any, ids: list[int]) -> int:
    """The last token that has the mark of the place."""
    for at in range(len(ids) - 1, -1, -1):
        if PLACE.encode() in subject.tokenizer.token_bytes(ids[at]):
            return at
    raise UserError(f'the prompt has no token with "{PLACE}": give into_position=')
