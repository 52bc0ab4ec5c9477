"""A model's weights by the names of transformers' modules, which are PEFT's in its folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from cutaway.errors import UserError
from cutaway.model.config import Decoder
from cutaway.weights import family_registry, layout, rules, wrappers
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors
from cutaway.weights.rules import Bound

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
INNER = ".base_layer"  # of a module that PEFT wraps
SWAPPED = ("llama4",)  # families that stack experts as [in out] without telling PEFT: its pairs change sides
IN_ORDER = ("gate_up_proj", "up_proj", "down_proj")  # as PEFT wraps the stacked parameters of a module


class Names:
    """A model's weights by the names of transformers' parameters, newer and older, and by a wrapper's."""

    def __init__(self, base: Checkpoint) -> None:
        if base.family is None:
            raise UserError(
                f"{base.source}: no family describes this model, so PEFT has no names for its weights"
            )
        family = family_registry.get(base.family)
        if isinstance(base.config, Decoder) and any(block.shared for block in base.config.blocks):
            raise UserError(
                f"{base.source}: several of its layers share a transformer, which PEFT changes apart in each"
            )
        self.prefix, self.spellings = family.prefix, family.spellings
        self.swapped = family.name in SWAPPED
        tables = {source for copy, source in family.copies if "embed_tokens" in copy}  # read as their copies
        self.bypassed = (*family.bypassed, *(source.split(".")[-2] for source in tables))
        more = family.also_ignored(base.config) if family.also_ignored else ()
        layers = str(len(base.config.blocks))
        self.ignored = [name.replace("{layers}", layers) for name in (*family.ignored_hf, *more)]
        self.parts = [part.removeprefix("model.") for part in base.left_out]  # of a multimodal model
        self.modules = {each.theirs: each for each in layout.modules(family, base.config)}
        self.all = {each.theirs: each for each in rules.bind(family.hf, base.config)} | self.modules
        self.stacks: dict[str, list[str]] = {}  # the parameters that stack matrices, of each module
        for name, each in self.modules.items():
            if len(each.how.shape(each.place)) == 3 and len(each.ours) > 1:
                self.stacks.setdefault(name.rpartition(".")[0], []).append(name.rpartition(".")[2])
        for found in self.stacks.values():
            found.sort(key=lambda name: IN_ORDER.index(name) if name in IN_ORDER else len(IN_ORDER))

    def biases(self, bound: Bound) -> tuple[str, ...]:
        """Our biases that are in the module of one of their matrices."""
        found = self.all.get(f"{bound.theirs.removesuffix('weight')}bias")
        return () if found is None else found.ours

    def left_out(self, name: str) -> bool:
        """Whether a weight is of a part of their model that takes no part in ours (a pooler, eyes)."""
        if any(name.removeprefix("model.").startswith(f"{part}.") for part in self.parts):
            return True
        return any(fnmatchcase(one, pattern) for one in self._spellings(name) for pattern in self.ignored)

    def spelled(self, name: str, known: Mapping[str, object]) -> str | None:
        """A name of PEFT's as ``known`` has it: the model's, a wrapper's, or one without its prefix."""
        return next((one for one in self._spellings(name) if one in known), None)

    def _spellings(self, name: str) -> list[str]:
        rest = wrappers.PREFIX.sub("", wrappers.HEAD.sub("", name, count=1), count=1)
        spellings = [name, rest, f"model.{rest}", f"{self.prefix}{name}"]
        for other, own in self.spellings:
            spellings += [name.replace(other, own)]
        return spellings


def untied(base: Checkpoint) -> Checkpoint:
    """The same model, its embedding table once more as the head of its own."""
    if not isinstance(base.config, Decoder) or not base.config.tied:
        return base
    tensors = {name: base.tensors.later(name) for name in base.tensors}
    tensors["head.weight"] = tensors["embedding.weight"]
    return replace(base, config=replace(base.config, tied=False), tensors=Tensors(tensors))
