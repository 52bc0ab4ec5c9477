"""Direct logit attribution: the parts of a logit ("A Mathematical Framework for Transformer Circuits", 2021).

The residual stream is a sum: the embedding, each head's output through its slice of W_o, each MLP's output. A
logit is one row of the head times the final norm of that sum; with the norm's scale frozen at its value the
norm is linear too, so the logit is a sum over these parts:

    logit = embed . u  +  sum over heads  z_h . W_o,h' u  +  sum over MLPs  mlp . u  +  biases . u
    u     = the head's row, through the frozen final norm (of a layer norm the mean is subtracted as well)

A head's part is itself a sum over keys, attention weight times value; a gate, the norm of a differential head
and Gemma's norms after attention are frozen likewise. A head of the linear family reads a recurrent state, in
which tokens are no longer apart: its part is exact, and is not split. This is the direct effect only:
patching and ablation find what later layers make of a part.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cutaway.attention.modules.differential import DifferentialAttention
from cutaway.errors import UserError
from cutaway.inspect.inputs import device, has_gate, has_pattern
from cutaway.layers.norm import LayerNorm, RMSNorm
from cutaway.layers.packed import PackedEmbedding, PackedLinear, rows_of, scores
from cutaway.model.decoder import Decoder
from cutaway.shapes import Float


@dataclass(frozen=True)
class Attribution:
    """The parts of a logit, in logits; they sum to ``logit``.

    ``heads[i]`` [h] and ``mlps`` [i] are the layers' parts, ``embed`` the token's own embedding, ``biases``
    those of attention and of the final norm, ``rest`` what edits add to the residual stream (else rounding,
    below 1e-3). ``sources[i]`` [h s] splits each head's part over the keys, None in a recurrent layer. What
    is added to the residual stream adds its product with ``direction`` to the logit.
    """

    token: int
    against: int | None
    position: int
    logit: float
    embed: float
    heads: tuple[Float[Tensor, " h"], ...]
    sources: tuple[Float[Tensor, "h s"] | None, ...]
    mlps: Float[Tensor, " i"]
    biases: float
    rest: float
    direction: Float[Tensor, " d"]

    @property
    def attention(self) -> Float[Tensor, " i"]:
        """The sum of the heads of each layer."""
        return torch.stack([heads.sum() for heads in self.heads])

    def strongest(self, count: int) -> list[tuple[int, int, float]]:
        """(layer, head, logits) of the heads with the largest parts, positive or negative."""
        flat = [(i, h, part) for i, heads in enumerate(self.heads) for h, part in enumerate(heads.tolist())]
        return sorted(flat, key=lambda one: -abs(one[2]))[:count]


@torch.no_grad()
def attribute(
    model: Decoder, seen: Mapping[str, Tensor], token: int, position: int = -1, against: int | None = None
) -> Attribution:
    """The parts of ``token``'s logit at ``position``, or of its difference to that of ``against``.

    ``seen`` are a forward pass's activations by name: ``embed``, ``middle`` and ``out`` of each block,
    ``logits``, and what ``inputs.attention_names`` lists. A soft-cap counts as the factor that it applied.
    Raises UserError for a token the vocabulary does not have.
    """
    _known(model, token)
    if any(block.streams or block.laurel or block.shared for block in model.config.blocks):
        raise UserError(
            "attribution adds what attention and MLPs write to one residual stream; this model's blocks have "
            "several streams, or more beside them"
        )
    logits = seen["logits"][0, position].double()
    residual = seen[f"blocks.{len(model.blocks) - 1}.out"] if len(model.blocks) else seen["embed"]
    row, logit = _row(model, token), logits[token]
    if against is not None:
        _known(model, against)
        if model.config.softcap is not None:
            raise UserError("this model caps its logits, so a difference of two is no sum: leave out against")
        row, logit = row - _row(model, against), logit - logits[against]
    row, bias = _through(model.norm, residual[0, position], row)
    cap = _cap_factor(model, logit)
    row, biases = row * cap * model.config.logit_scale, bias * cap * model.config.logit_scale
    heads, sources, mlps = [], [], []
    before = seen["embed"][0, position].double()
    embed = before @ row
    for i in range(len(model.blocks)):
        block: Any = model.blocks[i]
        middle, after = (seen[f"blocks.{i}.{name}"][0, position].double() for name in ("middle", "out"))
        out = seen[f"blocks.{i}.attention.out"][0, position]
        inner, bias = _through(block.attention_post_norm, out, row * block.residual)
        biases += bias + _bias(block.attention.out) @ inner
        writes = block.attention.out.weight.to(inner).T @ inner
        config = model.config.blocks[i].attention
        own = has_gate(config) or not has_pattern(config)  # W_o's input is not z
        given = seen[f"blocks.{i}.attention.{'out_input' if own else 'z'}"][0, :, position].double()
        writes = writes.view_as(given)
        heads.append((given * writes).sum(-1))
        split = _by_source(block.attention, seen, i, position, writes) if has_pattern(config) else None
        sources.append(split)
        mlps.append((after - middle) @ row)
    total = embed + biases + sum(part.sum() for part in (*heads, *mlps))
    return Attribution(
        token=token,
        against=against,
        position=position % residual.shape[1],
        logit=float(logit),
        embed=float(embed),
        heads=tuple(heads),
        sources=tuple(sources),
        mlps=torch.stack(mlps) if mlps else row.new_zeros(0),
        biases=float(biases),
        rest=float(logit - total),
        direction=row,
    )


@torch.no_grad()
def head_outputs(block: Any, seen: Mapping[str, Tensor], layer: int) -> Float[Tensor, "h t d"]:
    """What each head of a layer adds to the residual stream: its slice of W_o times its z.

    ``seen`` are activations without their batch axis; a norm after attention has its size frozen.
    """
    name = f"blocks.{layer}.attention"
    given = f"{name}.out_input"
    z = seen[given if given in seen else f"{name}.z"].float()
    weight = block.attention.out.weight.float().unflatten(1, (z.shape[0], z.shape[2]))
    heads, norm = torch.einsum("htv,dhv->htd", z, weight), block.attention_post_norm
    if not isinstance(norm, nn.Identity):
        whole = seen[f"{name}.out"].float()
        if isinstance(norm, LayerNorm):
            whole, heads = whole - whole.mean(-1, keepdim=True), heads - heads.mean(-1, keepdim=True)
        heads = heads if norm.weight is None else heads * norm.weight.float()
        heads = heads * torch.rsqrt(whole.square().mean(-1, keepdim=True) + norm.eps)
    return heads * block.residual


@torch.no_grad()
def unembedded(model: Decoder, directions: Float[Tensor, "d n"], vocabulary: int) -> Float[Tensor, "v n"]:
    """What directions of the residual stream add to each logit, but for the final norm's size."""
    norm: Any = model.norm
    if isinstance(norm, LayerNorm):
        directions = directions - directions.mean(0)
    if norm.weight is not None:
        directions = directions * norm.weight.float()[:, None]
    table: Any = model.embedding if model.head is None else model.head
    if isinstance(table, PackedEmbedding | PackedLinear):
        return scores(table, directions.T)[:, :vocabulary].T
    return table.weight[:vocabulary].float() @ directions


def _by_source(
    attention: Any, seen: Mapping[str, Tensor], layer: int, position: int, writes: Float[Tensor, "h v"]
) -> Float[Tensor, "h s"]:
    """Each head's part by key: its attention weight, times the value's part of the logit."""
    name = f"blocks.{layer}.attention"
    pattern = seen[f"{name}.pattern"][0, :, position].double()
    values = seen[f"{name}.v"][0].double()
    if has_gate(attention.config):
        writes = writes * seen[f"{name}.gate"][0, position].double().view(len(writes), -1)
    if isinstance(attention, DifferentialAttention):
        one, two = pattern.chunk(2)
        pattern = one - seen[f"{name}.lambda"].double() * two
        values = torch.cat(values.chunk(2), dim=-1)
    values = values.repeat_interleave(len(pattern) // len(values), dim=0)
    if isinstance(attention, DifferentialAttention):
        read = torch.einsum("hs,hsv->hv", pattern, values)
        size = torch.rsqrt(read.square().mean(-1, keepdim=True) + attention.eps)
        writes = writes * (1 - attention.start) * size
        for weight in attention.head_norm.parameters():
            writes = writes * weight.double()
    return pattern * torch.einsum("hsv,hv->hs", values, writes)


def _through(
    norm: nn.Module, x: Float[Tensor, " d"], row: Float[Tensor, " d"]
) -> tuple[Float[Tensor, " d"], Tensor]:
    """``row . norm(x)`` as (a row to take x with, a constant), the norm's size as it was for x."""
    if isinstance(norm, nn.Identity):
        return row, row.new_zeros(())
    if not isinstance(norm, RMSNorm | LayerNorm):
        raise UserError(f"attribution cannot freeze a {type(norm).__name__}: it knows RMSNorm and LayerNorm")
    x = x.double()
    bias = row.new_zeros(())
    if isinstance(norm, LayerNorm):
        x = x - x.mean()
        bias = bias if norm.bias is None else norm.bias.double() @ row
    row = (row if norm.weight is None else row * norm.weight.double()) * torch.rsqrt(
        x.square().mean() + norm.eps
    )
    return (row - row.mean() if isinstance(norm, LayerNorm) else row), bias


def _row(model: Decoder, token: int) -> Float[Tensor, " d"]:
    """The output head's row of a token, or of a tied model the embedding's."""
    if model.head is None:
        id = torch.tensor([[token]], device=device(model))
        return model.embedding(id)[0, 0].double()
    row = rows_of(model.head, model.config.vocab)[np.array([token])][0]
    return torch.from_numpy(row).to(device(model)).double()


def _bias(linear: Any) -> Float[Tensor, " d"]:
    if linear.bias is not None:
        return linear.bias.double()
    if isinstance(linear, PackedLinear):
        return torch.zeros(linear.packed.shape[0], dtype=torch.float64)
    return linear.weight.new_zeros(len(linear.weight), dtype=torch.float64)


def _cap_factor(model: Decoder, logit: Tensor) -> Tensor:
    """The soft-cap's factor at this logit: c tanh(x / c) over x."""
    cap = model.config.softcap
    if cap is None or logit == 0:
        return torch.ones_like(logit)
    return logit / (cap * torch.atanh(logit / cap))


def _known(model: Decoder, token: int) -> None:
    if not 0 <= token < model.config.vocab:
        raise UserError(f"token {token} is not in this model's vocabulary of {model.config.vocab:,}")
