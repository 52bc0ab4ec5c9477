"""Every low-rank method of PEFT as one pair of a matrix: what its tensors add is s B A, exactly.

    LoRA (2106.09685)      A [r in], B [out r], s = alpha / r, or alpha / sqrt(r)
    AdaLoRA (2303.10512)   B diag(E) A, s = alpha / (r + 1e-5), r that before any was dropped
    VeRA (2310.11454)      diag(b) B diag(d) A, A and B cut out of two that all matrices share
    LoHa (2108.06098)      (B1 A1) * (B2 A2), entry by entry: r^2 products of a column and a row
    LoKr (2309.14859)      W1 x W2, Kronecker's product of two matrices, each a pair or whole

PiSSA (2404.02948) and OLoRA (2406.01775) begin at a part of the base, which is taken out of it: PEFT does so
again each time that it opens the folder, and ``residual`` is that part.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.weights.changes import LowRank
from cutaway.weights.peft_config import PeftSettings

Parts = Mapping[str, np.ndarray]
ADALORA_EPS = np.float32(1e-5)  # which PEFT adds to the rank


def pair(parts: Parts, module: str, settings: PeftSettings, where: str, shape: tuple[int, int]) -> LowRank:
    """The pair of a module's tensors, which change a matrix [out in]. UserError for what makes none."""
    names = frozenset(parts)
    if any(part.ndim != 2 for name, part in parts.items() if not name.startswith("vera_lambda")):
        raise UserError(f"{where}: its tensors should be matrices")
    if not all(part.size for part in parts.values()):
        raise UserError(f"{where}: holds an empty tensor")
    if settings.kind == "LORA" and names == {"lora_A", "lora_B"}:
        a, b = parts["lora_A"], parts["lora_B"]
        return LowRank(a, b, scale(module, len(a), settings, min(shape)))
    if settings.kind == "ADALORA" and names == {"lora_A", "lora_B", "lora_E"}:
        a, b, e = parts["lora_A"], parts["lora_B"], parts["lora_E"]
        if e.shape != (len(a), 1):
            raise UserError(f"{where}: lora_E should be a number for each of {len(a)} rows of lora_A")
        alpha = settings.alphas.usual if settings.alphas.usual > 0 else settings.rank
        return LowRank(a * e, b, float(np.float32(alpha) / (np.float32(settings.rank) + ADALORA_EPS)))
    if settings.kind == "LOHA" and names == {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}:
        return _hadamard(parts, module, settings, where)
    if settings.kind == "LOKR":
        return _kronecker(parts, module, settings, where)
    if settings.kind == "VERA" and names == {"vera_A", "vera_B", "vera_lambda_b", "vera_lambda_d"}:
        rows, columns = shape
        a, b = parts["vera_A"][:, :columns], parts["vera_B"][:rows]
        lambda_b, lambda_d = parts["vera_lambda_b"], parts["vera_lambda_d"]
        if lambda_b.shape != (rows,) or lambda_d.shape != (len(a),) or b.shape[1] != len(a):
            raise UserError(f"{where}: its factors do not fit vera_A and vera_B")
        return LowRank(lambda_d[:, None] * a, lambda_b[:, None] * b, 1.0)
    raise UserError(
        f"{where}: has {', '.join(sorted(names))}, which {settings.kind} does not read as one change"
    )


def scale(module: str, rank: int, settings: PeftSettings, most: int | None = None) -> float:
    """What multiplies B A. UserError where the config has another rank.

    ``most``: the rank that a matrix can have, at which PiSSA and OLoRA end.
    """
    stated = settings.ranks(module)
    expected = min(stated, most) if settings.residual and most else stated
    if rank != expected:
        raise UserError(
            f"{quoted(module)}: the adapter's config says rank {expected}, its tensors have {rank}"
        )
    return settings.alphas(module) / (stated**0.5 if settings.rs else stated)


def _hadamard(parts: Parts, module: str, settings: PeftSettings, where: str) -> LowRank:
    b1, a1, b2, a2 = (parts[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    if not (
        b1.shape[1] == len(a1) == b2.shape[1] == len(a2) and b1.shape == b2.shape and a1.shape == a2.shape
    ):
        raise UserError(f"{where}: its four matrices are not two pairs of one rank")
    b = (b1[:, :, None] * b2[:, None, :]).reshape(len(b1), -1)
    a = (a1[:, None, :] * a2[None, :, :]).reshape(-1, a1.shape[1])
    return LowRank(a, b, scale(module, len(a1), settings))


def _kronecker(parts: Parts, module: str, settings: PeftSettings, where: str) -> LowRank:
    def halves(name: str) -> tuple[np.ndarray, np.ndarray]:
        whole, left, right = (parts.get(f"lokr_{name}{end}") for end in ("", "_a", "_b"))
        if whole is not None and left is None and right is None:
            return whole, np.eye(whole.shape[1], dtype=np.float32)
        if whole is not None or left is None or right is None or left.shape[1] != len(right):
            raise UserError(f"{where}: lokr_{name} is neither a matrix nor a pair")
        return left, right

    (b1, a1), (b2, a2) = halves("w1"), halves("w2")
    if len(parts) != sum(2 if f"lokr_{name}_a" in parts else 1 for name in ("w1", "w2")):
        raise UserError(f"{where}: has {', '.join(sorted(parts))}, which is not read")
    rank = settings.ranks(module)
    return LowRank(np.kron(a1, a2), np.kron(b1, b2), settings.alphas(module) / rank)


def residual(weight: np.ndarray, rank: int, how: str) -> LowRank:
    """The part of a matrix [out in] that PiSSA, or OLoRA, takes out of the base, as a pair."""
    if how == "olora":
        q, r = np.linalg.qr(weight.astype(np.float64))
        return LowRank(r[:rank].astype(np.float32), q[:, :rank].astype(np.float32), 1.0)
    left, size, right = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    scaled = left[:, :rank] * size[:rank]
    return LowRank(right[:rank].astype(np.float32), scaled.astype(np.float32), 1.0)


def without(change: LowRank, taken: LowRank) -> LowRank:
    """The two as one pair: W - taken + change."""
    b = np.concatenate([np.float32(change.scale) * change.b, -np.float32(taken.scale) * taken.b], axis=1)
    return LowRank(np.concatenate([change.a, taken.a]), b.astype(np.float32), 1.0, change.magnitude)
