"""The recurrences of the linear family, each in two forms that compute the same.

    gated linear   S = diag(a) S + k v'                      linear, retention, gla, mamba2
    delta rule     S = a S;  S = S + beta k (v - k' S)'      delta, gated_delta
    o = q' S                                                 S [k v]: one head's state, with the token's write

The *recurrent* form is that loop, token by token: the reference, and how one new token is read. The
*chunked* form reads many tokens at once. Inside a chunk they meet each other as in attention, each pair
decayed by the product of the gates between them; what came before the chunk is in the state alone. Time and
space grow with the length, not with its square, and almost all of it is matrix products.

Gates are logarithms, ``log_a`` [b h t n], n = 1 for one a head, n = k for one a row of the state. The decay
between two tokens is the exponential of a sum of their logarithms, each sum taken on its own and never as a
difference of two longer ones. So a gate may be closed: nothing overflows, no digits are lost, and
log_a = -inf, at the first token of a document packed behind another, forgets all before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.attention.backends.choice import Choice
from cutaway.attention.common.softmax import cut, join
from cutaway.attention.common.visibility import Positions
from cutaway.attention.state.recurrent import Recurrent
from cutaway.hooks import tap, tell
from cutaway.layers.norm import widened
from cutaway.position.rope import Rotation
from cutaway.shapes import Bool, Float

CHUNK = 64  # tokens that meet each other at once when a head has one gate
ROWS_CHUNK = 16  # when each row has its own: then every pair of tokens needs a number a row

State = Float[Tensor, "b h k v"]
Read = tuple[Float[Tensor, "b h t v"], State]


class Call(NamedTuple):
    """One forward pass: where its tokens are, and ``past``, the state's tensors before it."""

    positions: Positions
    rotation: Rotation | None
    in_order: bool
    past: Mapping[str, Tensor]


Mixed = tuple[Float[Tensor, "b h t v"], dict[str, Tensor]]


class LinearMixer(nn.Module):
    """The steps that the family shares; a mechanism's ``mix`` computes z.

    Taps ``q`` and ``k`` [b h t k], ``v`` [b h t v], ``S`` [b h k v], ``z`` [b h t v], which each head reads,
    and ``out_input`` [b h t v], z normed and gated, which W_o multiplies.
    """

    def __init__(self, config: Any, width: int, bias: bool = False) -> None:
        super().__init__()
        self.config = config
        keys, values = getattr(config, "groups", config.heads) * config.key_size, config.heads * config.values
        self.query = nn.Linear(width, keys, bias)
        self.key = nn.Linear(width, keys, bias)
        self.value = nn.Linear(width, values, bias)
        self.out = nn.Linear(values, width, bias)
        self.norm: Any = nn.Identity()
        self.gate: Any = None
        self.conv: Any = None

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        positions: Positions,
        rotation: Rotation | None,
        in_order: bool,
        state: Recurrent | None,
    ) -> Float[Tensor, "b t d"]:
        z, kept = self.mix(x, Call(positions, rotation, in_order, {} if state is None else state.tensors))
        if state is not None:
            state.keep(kept, positions.pos)
        return self.out(join(tap("out_input", self.output(x, tap("z", z)))))

    def mix(self, x: Float[Tensor, "b t d"], call: Call) -> Mixed:
        """z, and the tensors that the state keeps: ``S``, and a convolution's ``tail``."""
        raise NotImplementedError

    def output(self, x: Float[Tensor, "b t d"], z: Float[Tensor, "b h t v"]) -> Float[Tensor, "b h t v"]:
        """Each head normed alone, times silu(gate(x)) where there is a gate."""
        z = self.norm(z)
        return z if self.gate is None else cut(F.silu(self.gate(x)), self.config.heads) * z

    def convolved(self, parts: Sequence[Tensor], call: Call) -> tuple[Sequence[Tensor], dict[str, Tensor]]:
        """silu(conv(part)) of each part [b t n], and the convolution's tail to keep."""
        joined, kept = torch.cat(tuple(parts), dim=-1), {}
        if self.conv is not None:
            (pos, documents), tail = (call.positions.pos, call.positions.documents), call.past.get("tail")
            joined, kept["tail"] = self.conv(joined, pos, documents, call.in_order, tail)
        return F.silu(joined).split([part.shape[-1] for part in parts], dim=-1), kept


def choose(tokens: int) -> tuple[str, str]:
    """The name of the form that reads this many tokens, and why."""
    if tokens == 1:
        return "recurrent", "one token: a step of the recurrence is all there is to do"
    return "chunked", "several tokens: a chunk of them is read by matrix products"


def explained(tokens: int) -> Choice:
    """The choice, and why it is not the other form."""
    form, why = choose(tokens)
    refused = {
        "recurrent": f"it would take {tokens:,} steps, one after another; it is there to judge the other",
        "chunked": "one token has no others to meet inside a chunk",
    }
    return Choice(form, why, {name: reason for name, reason in refused.items() if name != form})


def gated_linear(
    q: Float[Tensor, "b h t k"],
    k: Float[Tensor, "b h t k"],
    v: Float[Tensor, "b h t v"],
    log_a: Float[Tensor, "b h t n"],
    positions: Positions,
    S: State | None,
) -> Read:
    """What each token reads, and S after the last. Taps ``S`` [b h k v], tells ``backend``."""
    q, k, log_a = _masked(q, k, log_a, positions)
    form, _ = choose(q.shape[2])
    tell("backend", lambda: explained(q.shape[2]))
    read, S = GATED_LINEAR[form](widened(q), widened(k), widened(v), widened(log_a), _start(k, v, S))
    return read.to(v.dtype), tap("S", S)


def delta(
    q: Float[Tensor, "b h t k"],
    k: Float[Tensor, "b h t k"],
    v: Float[Tensor, "b h t v"],
    beta: Float[Tensor, "b h t 1"],
    log_a: Float[Tensor, "b h t n"],
    positions: Positions,
    S: State | None,
) -> Read:
    """What each token reads, and S after the last. Taps ``S`` [b h k v], tells ``backend``.

    A head has one gate, or one for each of its rows. k must have norm 1 or less, or S grows without bound.
    """
    q, k, log_a = _masked(q, k, log_a, positions)
    form, _ = choose(q.shape[2])
    tell("backend", lambda: explained(q.shape[2]))
    read, S = DELTA[form](widened(q), widened(k), widened(v), widened(beta), widened(log_a), _start(k, v, S))
    return read.to(v.dtype), tap("S", S)


def gated_linear_recurrent(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, S: State) -> Read:
    """Token by token: the reference."""
    reads = []
    for t in range(q.shape[2]):
        S = log_a[:, :, t, :, None].exp() * S + k[:, :, t, :, None] * v[:, :, t, None, :]
        reads.append(_read(q, t, S))
    return torch.stack(reads, dim=2), S


def delta_recurrent(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_a: Tensor, S: State) -> Read:
    """Token by token: the reference."""
    reads = []
    for t in range(q.shape[2]):
        S = log_a[:, :, t, :, None].exp() * S
        wrong = v[:, :, t] - _read(k, t, S)
        S = S + (beta[:, :, t] * k[:, :, t])[..., None] * wrong[:, :, None, :]
        reads.append(_read(q, t, S))
    return torch.stack(reads, dim=2), S


def gated_linear_chunked(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, S: State) -> Read:
    """A chunk of tokens at a time."""
    reads = []
    for part in _parts(q.shape[2], CHUNK if log_a.shape[-1] == 1 else ROWS_CHUNK):
        q_, k_, v_, log = q[:, :, part], k[:, :, part], v[:, :, part], log_a[:, :, part]
        pairs = between(log.transpose(-2, -1))  # [b h n c c]
        since, until = log.cumsum(-2).exp(), pairs[..., -1, :].transpose(-2, -1)  # [b h c n]
        reads.append((since * q_) @ S + _decayed(q_, k_, pairs) @ v_)
        S = since[:, :, -1, :, None] * S + (until * k_).transpose(-2, -1) @ v_
    return torch.cat(reads, dim=2), S


def delta_chunked(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_a: Tensor, S: State) -> Read:
    """A chunk of tokens at a time.

    What token i really writes is u_i = beta_i (v_i - what S returns for k_i), and S already holds the u of
    the tokens before it: a triangular system, solved for all tokens of the chunk at once (2406.06484).
    """
    reads = []
    for part in _parts(q.shape[2], CHUNK if log_a.shape[-1] == 1 else ROWS_CHUNK):
        q_, k_, v_, beta_ = q[:, :, part], k[:, :, part], v[:, :, part], beta[:, :, part]
        log = log_a[:, :, part]
        pairs = between(log.transpose(-2, -1))  # [b h n c c]
        since, until = log.cumsum(-2).exp(), pairs[..., -1, :].transpose(-2, -1)  # [b h c n]
        overlap = beta_ * _decayed(k_, k_, pairs)
        wrong = beta_ * (v_ - (since * k_) @ S)
        u = torch.linalg.solve_triangular(overlap, wrong, upper=False, unitriangular=True)
        reads.append((since * q_) @ S + _decayed(q_, k_, pairs) @ u)
        S = since[:, :, -1, :, None] * S + (until * k_).transpose(-2, -1) @ u
    return torch.cat(reads, dim=2), S


GATED_LINEAR = {"recurrent": gated_linear_recurrent, "chunked": gated_linear_chunked}
DELTA = {"recurrent": delta_recurrent, "chunked": delta_chunked}


def _decayed(
    q: Float[Tensor, "b h c k"], k: Float[Tensor, "b h c k"], pairs: Float[Tensor, "b h n c c"]
) -> Float[Tensor, "b h c c"]:
    """q k' of each pair of tokens, decayed by the gates between them: one gate for all rows, or one a row."""
    if pairs.shape[2] == 1:
        return q @ k.transpose(-2, -1) * pairs[:, :, 0]
    return torch.einsum("bhik,bhjk,bhkij->bhij", q, k, pairs)


def between(log_a: Float[Tensor, "... c"]) -> Float[Tensor, "... c c"]:
    """The part of token j's write left at token i: prod a over j < l <= i, 0 where j comes after i."""
    c = log_a.shape[-1]
    later = torch.ones(c, c, dtype=torch.bool, device=log_a.device).tril(-1)  # [l j]: l after j
    sums = log_a[..., :, None].expand(*log_a.shape, c).masked_fill(~later, 0.0).cumsum(-2)
    return sums.masked_fill(later.transpose(0, 1), -torch.inf).exp()


def _read(q: Tensor, t: int, S: State) -> Float[Tensor, "b h v"]:
    return (q[:, :, t, None, :] @ S)[:, :, 0]


def _parts(tokens: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, tokens, size)]


def _start(k: Tensor, v: Tensor, S: State | None) -> State:
    return widened(v).new_zeros(k.shape[0], k.shape[1], k.shape[3], v.shape[3]) if S is None else S


def _masked(q: Tensor, k: Tensor, log_a: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
    """Padding neither reads, writes nor decays; the first token of a document forgets what came before."""
    real = (positions.pos >= 0)[:, None, :, None]
    q, k, log_a = q * real, k * real, log_a.masked_fill(~real, 0.0)
    if positions.documents is not None:
        log_a = log_a.masked_fill(document_starts(positions)[:, None, :, None], -torch.inf)
    return q, k, log_a


def document_starts(positions: Positions) -> Bool[Tensor, "b t"]:
    """Which tokens follow, padding aside, a token of another document."""
    real, documents = positions.pos >= 0, positions.documents
    assert documents is not None
    at = torch.arange(real.shape[1], device=real.device).expand(real.shape)
    last = torch.where(real, at, -1).cummax(dim=1).values
    before = torch.cat((last.new_full((last.shape[0], 1), -1), last[:, :-1]), dim=1)
    return real & (before >= 0) & (documents != documents.gather(1, before.clamp(min=0)))
