"""Every mechanism is held to loops that were written from its paper."""

from cutaway.attention.common import registry
from tests.definitions import complete


def test_every_mechanism_has_a_definition() -> None:
    assert not complete.without(registry.names())
