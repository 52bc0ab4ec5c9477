"""`weights(width)` of a mechanism's config, known without torch, are its module's parameters."""

import random
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest

from cutaway.attention.common.registry import Kind, Sizes, kinds
from cutaway.errors import UserError
from cutaway.layers.config import Norm
from cutaway.layers.meta import on_meta

SIZES = Sizes(24, 4, 2, 6, 8)
DRAWS = 40


def _options(kind: Kind) -> dict[str, list[Any]]:
    """Values of each option that may change which weights there are, or their shapes."""
    found: dict[str, list[Any]] = {}
    hints = get_type_hints(kind.config)
    for field in fields(kind.config):
        written = str(field.type)
        if written == "bool":
            found[field.name] = [False, True]
        elif "Norm" in written:
            norms = [Norm(), Norm("layer"), Norm(weight=False)]
            found[field.name] = [*norms, None] if "None" in written else norms
        elif "Literal" in written:
            found[field.name] = list(get_args(hints[field.name]))
        elif written in ("Count | None", "Natural | None"):
            found[field.name] = [None, 2, 4]
        elif field.name in ("conv", "rank", "kv_heads", "groups"):
            found[field.name] = [0, 1, 2, 3]
    return found


def _drawn(kind: Kind, chance: random.Random) -> Any:
    """A config with a few options at random, None where they do not fit each other."""
    chosen = {name: chance.choice(ones) for name, ones in _options(kind).items() if chance.random() < 0.4}
    try:
        if kind.name in ("bahdanau", "luong"):  # which take sizes when they are built
            return kind.config(**({"size": 5} if kind.name == "bahdanau" else {}) | chosen)
        return kind.like(SIZES, chosen)
    except (UserError, TypeError):
        return None


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_the_shapes_that_a_config_states_are_those_of_its_module(kind: Kind) -> None:
    chance, compared = random.Random(kind.name), 0
    for _ in range(DRAWS):
        config = _drawn(kind, chance)
        if config is None:
            continue
        sizes = (24, chance.choice((24, 16))) if kind.reads == "memory" and kind.name != "cross" else (24,)
        try:
            with on_meta():
                module = config.build(*sizes)
        except UserError:
            with pytest.raises(UserError):
                config.weights(*sizes)
            continue
        made = {name: tuple(weight.shape) for name, weight in module.named_parameters()}
        assert config.weights(*sizes) == made, config
        compared += 1
    assert compared > 5
