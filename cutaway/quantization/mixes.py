"""Mixes of types: which type each kind of matrix gets, under llama.cpp's names and with its layout.

Most matrices get the mix's own type, the value matrices, the MLP's last ones and the heads' output another
one in the layers where errors cost more. For all mixes alike,

- the matrix that makes the logits (the head, or the embedding table where it is the head) is Q6_K, but Q8_0
  for Q8_0 and where its rows are not whole blocks: every error in it is an error of a logit;
- models of 8 experts have Q8_0 values and keys;
- Llama and Qwen 2 with 80 layers and grouped heads have Q5_K values where those would be Q3_K or Q4_K;
- rows that are not whole blocks of 256 get a type of blocks of 32 (``SMALLER``); rows that are not whole
  blocks of 32 are F16;
- vectors, learned positions, and what routes tokens to experts stay F32.

``weights/quantize.py`` gives a checkpoint's weights these types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from cutaway.gguf import TYPES
from cutaway.quantization.formats import type_named

# For rows that are not whole blocks of 256.
SMALLER = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}


class Place(NamedTuple):
    """The place of a matrix: ``n`` of the ``count`` layers that have one like it, and its model."""

    n: int
    count: int
    grouped: bool  # four or more query heads share a key-value head
    calibrated: bool  # there is an importance of columns
    experts: int


def _all(_: Place) -> bool:
    return True


def _grouped(at: Place) -> bool:
    return at.grouped


def _eight_experts(at: Place) -> bool:
    return at.experts == 8


def _first(layers: int) -> Callable[[Place], bool]:
    return lambda at: at.n < layers


def _first_part(parts: int) -> Callable[[Place], bool]:
    return lambda at: at.n < at.count // parts


def _more(at: Place) -> bool:
    """The first and last eighth of the layers, and every third between."""
    eighth = at.count // 8
    return at.n < eighth or at.n >= 7 * at.count // 8 or (at.n - eighth) % 3 == 2


def _early(calibrated: bool) -> Callable[[Place], bool]:
    """The first eighth of the layers, with or without an importance of columns."""
    return lambda at: at.n < at.count // 8 and at.calibrated == calibrated


Exceptions = tuple[tuple[str, Callable[[Place], bool]], ...]  # the first that holds counts


@dataclass(frozen=True)
class Mix:
    """GGUF's number of the file type, the type of most matrices, and what is another one, and where."""

    file_type: int
    type: str
    value: Exceptions = ()
    down: Exceptions = ()
    out: Exceptions = ()


EIGHT = ("Q5_K", _eight_experts)
MORE = (("Q6_K", _more),)
IQ4 = {"value": (("Q5_K", _grouped),), "down": (("Q5_K", _early(calibrated=False)),), "out": (EIGHT,)}
MIXES: dict[str, Mix] = {
    "Q8_0": Mix(7, "Q8_0"),
    "Q6_K": Mix(18, "Q6_K"),
    "Q5_K_M": Mix(17, "Q5_K", value=MORE, down=MORE),
    "Q5_K_S": Mix(16, "Q5_K"),
    "Q5_1": Mix(9, "Q5_1"),
    "Q5_0": Mix(8, "Q5_0", down=(("Q5_1", _early(calibrated=True)),)),
    "Q4_K_M": Mix(15, "Q4_K", value=MORE, down=MORE, out=(EIGHT,)),
    "Q4_K_S": Mix(14, "Q4_K", value=(("Q5_K", _first(4)),), down=(("Q5_K", _first_part(8)),), out=(EIGHT,)),
    "Q4_1": Mix(3, "Q4_1"),
    "Q4_0": Mix(2, "Q4_0", down=(("Q4_1", _early(calibrated=True)),)),
    "IQ4_NL": Mix(25, "IQ4_NL", **IQ4),
    "IQ4_XS": Mix(30, "IQ4_XS", **IQ4),
    "Q3_K_L": Mix(
        13,
        "Q3_K",
        value=(("Q5_K", _all),),
        down=(("Q5_K", _all),),
        out=(("Q3_K", _eight_experts), ("Q5_K", _all)),
    ),
    "Q3_K_M": Mix(
        12,
        "Q3_K",
        value=(("Q5_K", _first(2)), ("Q4_K", _all)),
        down=(("Q5_K", _first_part(16)), ("Q4_K", _all)),
        out=(EIGHT, ("Q4_K", _all)),
    ),
    "Q3_K_S": Mix(11, "Q3_K", out=(EIGHT,)),
    "Q2_K": Mix(
        10,
        "Q2_K",
        value=(("Q4_K", _grouped), ("Q3_K", _all)),
        down=(("Q3_K", _all),),
        out=(EIGHT, ("Q3_K", _all)),
    ),
}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}  # llama.cpp's too
KINDS = (*MIXES, *ALIASES)


def mix_named(kind: str) -> Mix:
    """The mix of one of ``KINDS``, in any case; UserError for another name."""
    kind = type_named(kind, KINDS)
    return MIXES[ALIASES.get(kind, kind)]


def type_of_logits(type: str, columns: int) -> str:
    return "Q8_0" if type == "Q8_0" or columns % TYPES[type].block else "Q6_K"
