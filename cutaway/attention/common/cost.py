"""The cost of a mechanism: time, memory and cache as formulas, to read and to evaluate. Imports no torch.

    n tokens read     s tokens of another text     d model width     h query heads   g key-value heads
    k key size        v value size                 f features        and a mechanism's own options by name

They count the multiplications of what a token may see; the query, key, value and output matrices cost the
same in all mechanisms and are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

GROUP = 32  # numbers of a quantized state that share a scale (state/quantized.py)


@dataclass(frozen=True)
class Cost:
    """The formulas of one mechanism.

    ``prefill``: multiplications for n tokens; ``memory``: numbers held meanwhile; ``decode``: multiplications
    for the next token, None where nothing is decoded; ``state``: numbers that the cache holds of n tokens.
    ``between``: multiplications of a prefill between tokens alone, where ``prefill`` has matrices in it too.
    """

    prefill: str
    memory: str
    decode: str | None
    state: str
    between: str | None = None


SOFTMAX = Cost(
    prefill="n² h (k + v) / 2",
    memory="n (h + g) (k + v)",
    decode="n h (k + v)",
    state="n g (k + v)",
)


def at(formula: str, config: Any = None, **letters: float) -> float:
    """The formula's value with a config's numbers and these letters. An option that is None has no bound."""
    known: dict[str, Any] = {"min": min, "max": max}
    if config is not None:
        names = {"h": "heads", "g": "groups", "k": "key_size", "v": "values"}
        known |= {letter: getattr(config, name) for letter, name in names.items() if hasattr(config, name)}
        known |= {f.name: getattr(config, f.name) for f in fields(config)}
        known["f"] = (getattr(config, "state_shape", ()) or (0, 0))[1]
    known |= letters
    known = {name: math.inf if value is None else value for name, value in known.items()}
    return float(eval(_python(formula), {"__builtins__": {}}, known))


def _python(formula: str) -> str:
    """Factors are written side by side: "2 h k" is 2 * h * k."""
    return re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", formula.replace("²", "**2"))


def quantized_bytes_per_token(entries: Mapping[str, tuple[int, int]], bits: int) -> int:
    """Cache bytes of one token in a quantized state, of a config's ``entries``: heads and size by name."""
    padded = [(heads, size + -size % GROUP) for heads, size in entries.values()]
    return sum(heads * (size * bits // 8 + size // GROUP * 4) for heads, size in padded)
