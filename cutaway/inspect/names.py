"""Names of activations: those that a model has, wildcards, and TransformerLens's names as aliases.

    lm.trace(text, names=["blocks.*.hook_resid_post"])["blocks.3.hook_resid_post"]    # blocks.3.out, [t d]

An alias is another name for the same numbers in this package's axes: heads first, [h t k].
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import filter as matching
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from cutaway.errors import UserError, quoted
from cutaway.hooks import TAPS, tracing, unheard

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cutaway.model.decoder import Decoder

TRANSFORMER_LENS = {  # their name: ours, the first that a model has; {i} is a layer, {p} the one before
    "hook_embed": ("embedding",),
    "hook_pos_embed": ("position",),
    "blocks.{i}.hook_resid_pre": ("blocks.{p}.out", "embed"),
    "blocks.{i}.ln1.hook_scale": ("blocks.{i}.attention_norm.scale",),
    "blocks.{i}.ln1.hook_normalized": ("blocks.{i}.attention_norm",),
    "blocks.{i}.attn.hook_q": ("blocks.{i}.attention.q_unrotated", "blocks.{i}.attention.q"),
    "blocks.{i}.attn.hook_k": ("blocks.{i}.attention.k_unrotated", "blocks.{i}.attention.k"),
    "blocks.{i}.attn.hook_rot_q": ("blocks.{i}.attention.q",),
    "blocks.{i}.attn.hook_rot_k": ("blocks.{i}.attention.k",),
    "blocks.{i}.attn.hook_v": ("blocks.{i}.attention.v",),
    "blocks.{i}.attn.hook_attn_scores": ("blocks.{i}.attention.scores",),
    "blocks.{i}.attn.hook_pattern": ("blocks.{i}.attention.pattern",),
    "blocks.{i}.attn.hook_z": ("blocks.{i}.attention.z",),
    "blocks.{i}.attn.hook_result": ("blocks.{i}.attention.result",),
    "blocks.{i}.hook_attn_out": ("blocks.{i}.attention_post_norm", "blocks.{i}.attention.out"),
    "blocks.{i}.hook_resid_mid": ("blocks.{i}.middle",),
    "blocks.{i}.ln2.hook_scale": ("blocks.{i}.mlp_norm.scale",),
    "blocks.{i}.ln2.hook_normalized": ("blocks.{i}.mlp_norm",),
    "blocks.{i}.mlp.hook_pre": ("blocks.{i}.mlp.gate", "blocks.{i}.mlp.up"),
    "blocks.{i}.mlp.hook_pre_linear": ("blocks.{i}.mlp.up",),
    "blocks.{i}.mlp.hook_post": ("blocks.{i}.mlp.hidden",),
    "blocks.{i}.hook_mlp_out": ("blocks.{i}.mlp_post_norm", "blocks.{i}.mlp.out", "blocks.{i}.mlp.down"),
    "blocks.{i}.hook_resid_post": ("blocks.{i}.out",),
    "ln_final.hook_scale": ("norm.scale",),
    "ln_final.hook_normalized": ("norm",),
}
BEFORE = ("embedding", "position", "embedding_norm", "embed")  # modules and values before the first block
_known: WeakKeyDictionary[nn.Module, dict[str, torch.Size]] = WeakKeyDictionary()


def known(model: Decoder) -> dict[str, torch.Size]:
    """A PyTorch model's activations as they are computed, with their shapes for a batch of one token."""
    import torch
    from torch import nn

    if model not in _known:
        here = next(model.parameters()).device
        token = torch.zeros(1, 1, dtype=torch.long, device=here)
        idle = {path for path, module in model.named_modules() if isinstance(module, nn.Identity)}
        with unheard(), torch.no_grad(), tracing(model, "*") as seen:
            model(token, torch.zeros_like(token))
        tensors = ((name, value) for name, value in seen.items() if isinstance(value, torch.Tensor))
        _known[model] = {name: value.shape for name, value in tensors if name not in idle}
    return _known[model]


def aliases(names: Collection[str], layers: int) -> dict[str, str]:
    """TransformerLens's names for those of these ``names`` that it has one for: theirs to ours."""
    found = {}
    for theirs, ours in TRANSFORMER_LENS.items():
        for i in range(layers) if "{i}" in theirs else (0,):
            one = next((n for name in ours if (n := name.format(i=i, p=i - 1)) in names), None)
            if one is not None:
                found[theirs.format(i=i)] = one
    return found


def check_list(names: Any) -> None:
    """UserError for what is no list of names, such as one name alone."""
    if (
        isinstance(names, str)
        or not isinstance(names, Iterable)
        or not all(isinstance(n, str) for n in names)
    ):
        raise UserError(f"names of activations are a list of texts, and this is {quoted(names)}")


def resolve(every: Collection[str], names: Sequence[str]) -> list[str]:
    """Names with wildcards and aliases as the model's own, which may keep wildcards of ours.

    ``every`` are the names that there are. Raises UserError for one that is none of them, with those that are
    nearest.
    """
    found: list[str] = []
    for name in names:
        if name == TAPS or name == "*" or ".experts." in name:
            found.append(name)
            continue
        theirs = aliases(every, 1 + max(map(layer_number, every))) if "hook_" in name else {}
        own = [theirs[one] for one in matching(theirs, name)] or ([name] if expanded(every, name) else [])
        if not own:
            near = get_close_matches(name, (*every, *theirs), 3, 0.5)
            hint = f"; near are {', '.join(near)}" if near else ""
            raise UserError(
                f"nothing is named {quoted(name)} in this model{hint} (docs/inspect.md has the names)"
            )
        found += own
    return list(dict.fromkeys(found))


def expanded(every: Collection[str], name: str) -> list[str]:
    """The names that a name, perhaps with wildcards, stands for."""
    return [name] if name in every else matching(every, name)


def layer_number(name: str) -> int:
    """The layer that an activation is of; -1 for one of no layer."""
    first, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if first == "blocks" else -1


def layer(name: str) -> float:
    """The layer of an activation, -1 before all of them, infinity after."""
    first = name.partition(".")[0]
    return layer_number(name) if first in (*BEFORE, "blocks") else float("inf")


def last_layer(every: Collection[str], names: Sequence[str]) -> int | None:
    """The layer after which no activation of these names is computed, None if the end of the model is."""
    last = max((layer(one) for name in names for one in expanded(every, name) or ["logits"]), default=-1.0)
    return None if last == float("inf") else int(max(last, 0))
