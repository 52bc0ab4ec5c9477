"""A config names its PyTorch module and imports it when it is built, so that configs import no torch."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any, ClassVar

from cutaway.bounds import Bounded


class Buildable(Bounded):
    """A config of a PyTorch module. ``module`` is where that is defined: "package.file:Class"."""

    module: ClassVar[str]

    def build(self, *sizes: int) -> Any:
        """The ``torch.nn.Module`` of this config, for a model of these sizes; imports torch."""
        return resolve_name(self.module)(self, *sizes)
