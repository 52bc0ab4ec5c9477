"""The names of activations: those of a small model of each mechanism, and TransformerLens's names."""

from __future__ import annotations

import re
from typing import Any

from cutaway.attention.common import registry, usual
from cutaway.errors import UserError
from cutaway.inspect import derived, names
from cutaway.layers.config import MLP, MoE
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.decoder import Decoder as Model
from scripts.lib.reference.markdown import HEAD, code, escaped, table

INTRODUCTION = """# Names of activations

`lm.trace(text, names=[...])`, `keep=` of a generation, edits and `/v1/trace` name activations like this. A
name may hold wildcards: `blocks.*.out`. N is a layer. What each is and its shape: [looking
inside](../inspect.md).
"""


def _names(attention: Any, mlp: Any) -> list[str]:
    """The names in a model of one block, with N for its layer and E for an expert."""
    config = Decoder(8, usual.SMALL.width, 8, (Block(attention, mlp),))
    found = {*names.known(Model(config)), *derived.names(config)}
    return sorted(
        {re.sub(r"experts\.\d+", "experts.E", re.sub(r"^blocks\.\d+", "blocks.N", one)) for one in found}
    )


def page() -> str:
    """The page of all names."""
    mlp = MLP(8)
    mixture = MoE(experts=2, top_k=1, hidden=8, shared=8)
    found: dict[str, list[str]] = {}
    for kind in registry.kinds():
        if kind.reads != "past":
            continue
        try:
            config = kind.like(usual.SMALL, {})
        except UserError:
            continue
        found[kind.name] = _names(config, mlp)
    shared = sorted(set.intersection(*map(set, found.values())))
    own = [
        (
            code(name),
            ", ".join(code(one.removeprefix("blocks.N.attention.")) for one in those if one not in shared),
        )
        for name, those in found.items()
    ]
    mixed = [one for one in _names(registry.kind("gqa").like(usual.SMALL, {}), mixture) if ".mlp." in one]
    aliases = [
        (code(theirs), " or ".join(map(code, ours))) for theirs, ours in names.TRANSFORMER_LENS.items()
    ]
    return "\n".join(
        [
            HEAD,
            INTRODUCTION,
            "## In every decoder\n",
            "\n".join(f"- {code(name)}" for name in shared) + "\n",
            "## Of an attention mechanism\n",
            escaped("After `blocks.N.attention.`, beside those above. A cross-attention's are those of gqa.")
            + "\n",
            table(("kind", "names"), own),
            "## Of a mixture of experts\n",
            "\n".join(f"- {code(name)}" for name in mixed) + "\n",
            "## TransformerLens's names\n",
            "In `{p}` is the layer before `{i}`; of several names the first counts that the model has.\n",
            table(("theirs", "here"), aliases),
        ]
    )
