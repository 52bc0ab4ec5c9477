"""The fields of a model's edits in a request (docs/inspect.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
)

from cutaway.serve.field_types import FailFast, Id, Number, Positions, Text
from cutaway.serve.openai.message_schema import Messages
from cutaway.serve.validation import StrictModel


class EditPlace(StrictModel):
    """Where an edit acts: at a layer, or at an activation by its name (docs/inspect.md)."""

    layer: Id | None = None
    name: Annotated[Text, Field(max_length=200)] | None = None
    head: Id | None = None
    positions: Positions | None = None
    units: Annotated[list[Id], FailFast, Field(max_length=65536)] | None = Field(
        None, description="Some indices of the activation's last axis, such as neurons."
    )
    from_step: Id = Field(0, description="0: from the prompt on; n: from the n-th new token on.")
    strength: Number = 1.0


class Ablate(EditPlace):
    """Moves the output of a head, a layer's attention, its MLP or the whole layer to zero, or to what its
    reference texts have.
    """

    kind: Literal["ablate"]
    part: Literal["head", "attention", "mlp", "layer"] = "layer"
    to: Literal["zero", "mean", "resample"] = "zero"
    reference: Annotated[list[Text], FailFast, Field(max_length=64)] = Field([])
    seed: Id = 0


class Scale(EditPlace):
    """Multiplies the output of a head, a layer's attention or its MLP by strength."""

    kind: Literal["scale"]
    part: Literal["head", "attention", "mlp"] = "attention"


class Patch(EditPlace):
    """Moves an activation towards that of another prompt; strength 1 replaces it."""

    kind: Literal["patch"]
    part: Literal["head", "attention", "mlp", "residual"] = "residual"
    text: Text | None = None
    messages: Messages | None = None


class Directed(EditPlace):
    """An edit along a vector of the residual stream after a layer, or of another activation."""

    vector: Annotated[list[Number], FailFast]


class Add(Directed):
    """Adds a vector to the residual stream after a layer, strength times."""

    kind: Literal["add"]


class Project(Directed):
    """Removes the direction of a vector from the residual stream after a layer."""

    kind: Literal["project"]


ModelEdit = Annotated[Ablate | Scale | Patch | Add | Project, Field(discriminator="kind")]
Edits = Annotated[list[ModelEdit], FailFast, Field(max_length=64)]
