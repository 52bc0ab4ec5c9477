"""How a sparse autoencoder is trained on a dataset of activations; PyTorch computes (``sae_pytorch.py``)."""

from __future__ import annotations

from cutaway.errors import UserError
from cutaway.extras import need
from cutaway.inspect.activations import Activations
from cutaway.inspect.sae import KINDS, SAE, Card, Kind
from cutaway.store import files


def train(
    data: Activations,
    name: str,
    *,
    features: int,
    kind: Kind = "topk",
    k: int = 32,
    steps: int = 2000,
    batch: int = 1024,
    learning_rate: float = 1e-3,
    seed: int = 0,
    keep_sinks: bool = False,
    progress: files.Progress = files.silent,
) -> SAE:
    """An autoencoder of ``name``'s rows, Adam with a linear warm-up and decay; a tenth of tokens is held out.

    Attention sinks are not trained on, unless ``keep_sinks``. Raises UserError for a kind that is not known,
    sizes that do not fit, and too few tokens.
    """
    if kind not in KINDS:
        raise UserError(f"kind {kind!r} is not known: use one of {', '.join(KINDS)}")
    if not 1 <= k <= features or steps < 1 or batch < 1:
        raise UserError("k goes from 1 to the number of features, steps and batch from 1")
    need("training a sparse autoencoder", "torch")
    from cutaway.inspect.sae_pytorch import trained

    card = Card(name, str(data.facts["model"]), kind, features, k, steps, batch, seed, keep_sinks)
    return trained(data, card, learning_rate, progress)
