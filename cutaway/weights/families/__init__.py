"""Families of models: one file each, and the folder is the registry.

A family is a module that imports no torch and has

``HF_TYPES``, ``GGUF_ARCHITECTURES``   what configs call it; the first architecture is written
``HF``, ``GGUF``                       its tables of weight names, see ``weights/rules.py``
``HF_PREFIX``                          what stands before its names, and is left out by files without a head
``IGNORED_HF``, ``IGNORED_GGUF``       names that carry nothing the config does not
``from_hf``, ``to_hf``                 the config from and to a Hugging Face config.json
``from_gguf``, ``to_gguf``             the config from and to GGUF metadata, without their prefix
``DESCRIBES``                          the class of its configs, where they are not decoders
``SPARSE``                             True where its blocks are mixtures of experts
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from cutaway.layers.config import MoE
from cutaway.model.config import Decoder, Encoder
from cutaway.weights.fields import Fields


def every() -> list[ModuleType]:
    """All families."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]


def of_hf(fields: Fields) -> ModuleType:
    """The family of a config.json, by its ``model_type``; UserError if there is none."""
    return fields.choice("model_type", {word: family for family in every() for word in family.HF_TYPES})


def of_gguf(fields: Fields) -> ModuleType:
    """The family of a GGUF file, by its ``general.architecture`` and whether it has experts; UserError if
    there is none.
    """
    words: dict[str, list[ModuleType]] = {}
    for family in every():
        for word in family.GGUF_ARCHITECTURES:
            words.setdefault(word, []).append(family)
    found = fields.choice("general.architecture", words)
    experts = fields.integer(f"{fields.text('general.architecture')}.expert_count", 0, low=0)
    return next((family for family in found if is_sparse(family) == bool(experts)), found[0])


def is_sparse(family: ModuleType) -> bool:
    """Whether its blocks are mixtures of experts."""
    return getattr(family, "SPARSE", False)


def name_of(family: ModuleType) -> str:
    """What it is called here: the name of its file."""
    return family.__name__.rsplit(".", 1)[1]


def describes(family: ModuleType, config: Decoder | Encoder) -> bool:
    """Whether models of this family have such configs."""
    sparse = any(isinstance(block.mlp, MoE) for block in config.blocks)
    return isinstance(config, getattr(family, "DESCRIBES", Decoder)) and is_sparse(family) == sparse
