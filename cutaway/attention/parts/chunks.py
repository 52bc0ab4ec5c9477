"""The recurrences that the linear family is made of, each in two forms that say the same.

    fade     S = diag(a) S + k v'                      linear, retention, gla, mamba2
    delta    S = a S;  S = S + beta k (v - k' S)'      delta, gated_delta
    o = q' S                                           S [k v]: one head's memory, after the token wrote

The *recurrent* form is that loop, token by token: the definition, and how one new token is read. The
*chunked* form reads many tokens at once. Inside a chunk they meet each other as in attention, each pair faded
by the product of the gates between them; what came before is seen through the memory alone. Time and space
grow with the length, not with its square, and almost all of it is matrix products.

Gates come as logarithms, ``log_a`` [b h t n], n = 1 for one a head, n = k for one a row of the memory. The
fading between two tokens is the exponential of a sum of their logarithms, each sum taken on its own and never
as a difference of two longer ones. So a gate may be as closed as it likes: nothing overflows, no digits are
lost, and log_a = -inf, at the first token of a document packed behind another, simply forgets all before it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cutaway.attention.backends import Choice
from cutaway.attention.parts.visibility import Places
from cutaway.hooks import tap, tell
from cutaway.layers.norm import widened
from cutaway.shapes import Bool, Float

CHUNK = 64  # tokens that meet each other at once when a head has one gate
ROWS_CHUNK = 16  # when each row has its own: then every pair of tokens needs a number a row

Memory = Float[Tensor, "b h k v"]
Read = tuple[Float[Tensor, "b h t v"], Memory]


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


def fade(
    q: Float[Tensor, "b h t k"],
    k: Float[Tensor, "b h t k"],
    v: Float[Tensor, "b h t v"],
    log_a: Float[Tensor, "b h t n"],
    places: Places,
    memory: Memory | None,
) -> Read:
    """What each token reads, and the memory after the last. Taps ``memory`` [b h k v], tells ``path``."""
    q, k, log_a = _placed(q, k, log_a, places)
    form, _ = choose(q.shape[2])
    tell("path", lambda: explained(q.shape[2]))
    before = _start(k, v, memory)
    read, after = FADE[form](widened(q), widened(k), widened(v), widened(log_a), before)
    return read.to(v.dtype), tap("memory", after)


def delta(
    q: Float[Tensor, "b h t k"],
    k: Float[Tensor, "b h t k"],
    v: Float[Tensor, "b h t v"],
    beta: Float[Tensor, "b h t 1"],
    log_a: Float[Tensor, "b h t 1"],
    places: Places,
    memory: Memory | None,
) -> Read:
    """What each token reads, and the memory after the last. Taps ``memory`` [b h k v], tells ``path``.

    k must have length 1 or less, or the memory grows without bound.
    """
    q, k, log_a = _placed(q, k, log_a, places)
    form, _ = choose(q.shape[2])
    tell("path", lambda: explained(q.shape[2]))
    before = _start(k, v, memory)
    read, after = DELTA[form](widened(q), widened(k), widened(v), widened(beta), widened(log_a), before)
    return read.to(v.dtype), tap("memory", after)


def fade_recurrent(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, memory: Memory) -> Read:
    """Token by token: the definition."""
    reads = []
    for t in range(q.shape[2]):
        memory = log_a[:, :, t, :, None].exp() * memory + k[:, :, t, :, None] * v[:, :, t, None, :]
        reads.append(_look(q, t, memory))
    return torch.stack(reads, dim=2), memory


def delta_recurrent(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_a: Tensor, memory: Memory) -> Read:
    """Token by token: the definition."""
    reads = []
    for t in range(q.shape[2]):
        memory = log_a[:, :, t, :, None].exp() * memory
        wrong = v[:, :, t] - _look(k, t, memory)
        memory = memory + (beta[:, :, t] * k[:, :, t])[..., None] * wrong[:, :, None, :]
        reads.append(_look(q, t, memory))
    return torch.stack(reads, dim=2), memory


def fade_chunked(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, memory: Memory) -> Read:
    """A chunk of tokens at a time."""
    one_gate = log_a.shape[-1] == 1
    reads = []
    for part in _parts(q.shape[2], CHUNK if one_gate else ROWS_CHUNK):
        q_, k_, v_, log = q[:, :, part], k[:, :, part], v[:, :, part], log_a[:, :, part]
        pairs = between(log.transpose(-2, -1))  # [b h n c c]
        since, until = log.cumsum(-2).exp(), pairs[..., -1, :].transpose(-2, -1)  # [b h c n]
        if one_gate:
            scores = q_ @ k_.transpose(-2, -1) * pairs[:, :, 0]
        else:
            scores = torch.einsum("bhik,bhjk,bhkij->bhij", q_, k_, pairs)
        reads.append((since * q_) @ memory + scores @ v_)
        memory = since[:, :, -1, :, None] * memory + (until * k_).transpose(-2, -1) @ v_
    return torch.cat(reads, dim=2), memory


def delta_chunked(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_a: Tensor, memory: Memory) -> Read:
    """A chunk of tokens at a time.

    What token i really writes is u_i = beta_i (v_i - what the memory says to k_i), and the memory already
    holds the u of the tokens before it: a triangular system, solved for all tokens of the chunk at once
    (2406.06484).
    """
    reads = []
    for part in _parts(q.shape[2], CHUNK):
        q_, k_, v_, beta_ = q[:, :, part], k[:, :, part], v[:, :, part], beta[:, :, part]
        log = log_a[:, :, part]
        pairs = between(log[..., 0])  # [b h c c]
        since, until = log.cumsum(-2).exp(), pairs[..., -1, :, None]  # [b h c 1]
        overlap = beta_ * (k_ @ k_.transpose(-2, -1)) * pairs
        wrong = beta_ * (v_ - (since * k_) @ memory)
        u = torch.linalg.solve_triangular(overlap, wrong, upper=False, unitriangular=True)
        reads.append((since * q_) @ memory + (q_ @ k_.transpose(-2, -1) * pairs) @ u)
        memory = since[:, :, -1, :, None] * memory + (until * k_).transpose(-2, -1) @ u
    return torch.cat(reads, dim=2), memory


FADE = {"recurrent": fade_recurrent, "chunked": fade_chunked}
DELTA = {"recurrent": delta_recurrent, "chunked": delta_chunked}


def between(log_a: Float[Tensor, "... c"]) -> Float[Tensor, "... c c"]:
    """How much of what token j wrote is left when token i reads, prod a over j < l <= i; 0 where j comes
    after i.
    """
    c = log_a.shape[-1]
    later = torch.ones(c, c, dtype=torch.bool, device=log_a.device).tril(-1)  # [l j]: l after j
    sums = log_a[..., :, None].expand(*log_a.shape, c).masked_fill(~later, 0.0).cumsum(-2)
    return sums.masked_fill(later.transpose(0, 1), -torch.inf).exp()


def _look(q: Tensor, t: int, memory: Memory) -> Float[Tensor, "b h v"]:
    return (q[:, :, t, None, :] @ memory)[:, :, 0]


def _parts(tokens: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, tokens, size)]


def _start(k: Tensor, v: Tensor, memory: Memory | None) -> Memory:
    if memory is not None:
        return memory
    return widened(v).new_zeros(k.shape[0], k.shape[1], k.shape[3], v.shape[3])


def _placed(q: Tensor, k: Tensor, log_a: Tensor, places: Places) -> tuple[Tensor, Tensor, Tensor]:
    """Padding neither reads, writes nor fades; the first token of a document forgets what came before."""
    real = (places.pos >= 0)[:, None, :, None]
    q, k, log_a = q * real, k * real, log_a.masked_fill(~real, 0.0)
    if places.documents is not None:
        log_a = log_a.masked_fill(_starts(places)[:, None, :, None], -torch.inf)
    return q, k, log_a


def _starts(places: Places) -> Bool[Tensor, "b t"]:
    """Which tokens follow, padding aside, a token of another document."""
    real, documents = places.pos >= 0, places.documents
    assert documents is not None
    at = torch.arange(real.shape[1], device=real.device).expand(real.shape)
    last = torch.where(real, at, -1).cummax(dim=1).values
    before = torch.cat((last.new_full((last.shape[0], 1), -1), last[:, :-1]), dim=1)
    return real & (before >= 0) & (documents != documents.gather(1, before.clamp(min=0)))
