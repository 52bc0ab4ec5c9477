"""Rotary positions that differ from layer to layer, as keys of a config.json and of GGUF metadata."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cutaway.position import rope
from cutaway.weights import rotary
from cutaway.weights.family import Entries, Family, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rows import FULL, SLIDING

PART = "partial_rotary_factor"
NAMES = {FULL: "rope", SLIDING: "local_rope"}


@dataclass(frozen=True)
class RopeOfKinds(rotary.Rope):
    """Global and local layers each have a section of ``rope_parameters``.

    ``bases`` and ``parts`` are those of a config without sections; a section must have a base of its own, and
    ``part`` is what rotates of a head where it does not say so and nothing is scaled.
    """

    bases: tuple[float, float] = (10_000.0, 10_000.0)
    parts: tuple[float, float] = (1.0, 1.0)

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        given = fields.section("rope_parameters")
        beside = fields.number(PART, None, high=1.0)  # of scaled sections that do not say it
        if self.part is None and beside not in (None, 1.0):
            raise fields.refusal(PART, "is not 1: partial rotation is not supported")
        unread = beside not in (None, self.part or 1.0)
        found: Settings = {}
        for kind, base, part in zip(NAMES, self.bases, self.parts, strict=True):
            section = given.section(kind) if given else None
            used = any((window is None) == (kind == FULL) for window in known["windows"])
            if section is None and given and used:
                raise fields.refusal(f"rope_parameters.{kind}", "is missing: its layers have no positions")
            if section is not None:
                base = section.number("rope_theta", low=1.0)
                plain = section.text("rope_type", "default") == "default"
                # Transformers reads the key beside for such a section only after it set up a scaled one.
                if unread and plain and used and not section.has(PART):
                    raise section.refusal(PART, "is missing, and the one beside is not for it: state it here")
                unread &= plain or not used
                part = (beside or (self.part if plain else 1.0)) if self.part else None
            row = replace(self, part=part)
            found[NAMES[kind]] = row.of_kind(section, known, base)
        if given:
            given.finish((), f"{own.name}'s rotary positions have")
        return found

    def write(self, known: Settings, gguf: bool) -> Entries:
        sections = {}
        for kind, base in zip(NAMES, self.bases, strict=True):
            position = known[NAMES[kind]] or rope.Config(2, base)
            part = {} if self.part is None else {PART: rotary.part_of(position, known)}
            sections[kind] = rotary.hf_section(position) | part
        return {"rope_parameters": sections}


@dataclass(frozen=True)
class RopeOfLayers(rotary.Rope):
    """A list may give each layer a base of its own, or none, where it does not rotate (Granite SWA)."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        found, layers = super().read(fields, known, own)["rope"], known["layers"]
        bases = fields.get("layer_rope_theta")
        if bases is None:
            return {"rope": found, "ropes": (found,) * layers}
        if not isinstance(bases, list) or len(bases) != layers:
            raise fields.refusal("layer_rope_theta", f"should list a number for each of {layers} layers")
        if any(type(base) not in (int, float) or not (base == 0 or base >= 1) for base in bases):
            raise fields.refusal("layer_rope_theta", "should list numbers of 1 or more, or 0")
        ropes = tuple(replace(found, base=float(base)) if base else None for base in bases)
        return {"rope": found, "ropes": ropes}

    def write(self, known: Settings, gguf: bool) -> Entries:
        own = [position.base if position else 0 for position in known["ropes"]]
        return super().write(known, gguf) | {"layer_rope_theta": own}
