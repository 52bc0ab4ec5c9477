"""Sparse dictionaries as SAELens and circuit-tracer write and read them: both ways, the largest difference.

    python -m scripts.check.sae_formats

Each architecture of SAELens, and circuit-tracer's sets of per-layer and cross-layer transcoders, with random
weights: written by its own library and read here, then written here and read there. Features and what they
write are compared on random rows, as parts of the largest value; more than 1e-5 ends with exit code 1. Needs
sae-lens and circuit-tracer, in an environment of their own if need be. Half a minute.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
from circuit_tracer.transcoder.single_layer_transcoder import (
    SingleLayerTranscoder,
    TranscoderSet,
    load_transcoder_set,
)
from sae_lens import SAE as TheirSAE
from sae_lens.registry import get_sae_class

from cutaway.inspect import sae_folders, sae_formats
from cutaway.inspect.sae import SAE
from cutaway.inspect.sae_folders import load_set

LIMIT, ROWS, X, Y, F, LAYERS = 1e-5, 64, 24, 20, 96, 3
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "standard": {},
    "jumprelu": {"apply_b_dec_to_input": False},
    "gated": {},
    "topk": {"k": 7, "rescale_acts_by_decoder_norm": True},
    "transcoder": {"d_out": Y},
    "skip_transcoder": {"d_out": Y},
    "jumprelu_transcoder": {"d_out": Y},
    "jumprelu_skip_transcoder": {"d_out": Y},
}


def random_weights(module: torch.nn.Module) -> None:
    """Every weight away from its first value; thresholds above 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            drawn = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(0.3 * (drawn.abs() if "threshold" in name else drawn))


def difference(ours: np.ndarray, theirs: torch.Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    their = theirs.detach().numpy()
    if ours.shape != their.shape:
        return float("inf")
    return float(np.abs(ours - their).max() / np.abs(their).max())


def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, X)).astype(np.float32)


def beside(one: SAE, theirs: Any) -> float:
    """The largest difference of features and of what is written, of SAELens's own object."""
    x = rows()
    read = torch.from_numpy(x)
    f = one.encode(x)
    return max(difference(f, theirs.encode(read)), difference(one.decode(f, x), theirs(read)))


def saelens(folder: Path) -> Iterator[tuple[str, float]]:
    """Each architecture read here; those that are written here, read there."""
    for architecture, options in ARCHITECTURES.items():
        made, config = get_sae_class(architecture)
        if "transcoder" in architecture:
            options = options | {"apply_b_dec_to_input": False}
        theirs = made(config(d_in=X, d_sae=F, **options))
        random_weights(theirs)
        theirs.cfg.metadata.hook_name = "blocks.1.ln2.hook_normalized"
        theirs.save_model(folder / architecture)
        ours = sae_folders.load(folder / architecture)
        yield f"SAELens {architecture}, read here", beside(ours, theirs)
        sae_formats.save([ours], folder / f"{architecture}-ours", "saelens")
        again = TheirSAE.load_from_disk(folder / f"{architecture}-ours")
        yield f"SAELens {architecture}, written here", beside(ours, again)


def per_layer(folder: Path) -> Iterator[tuple[str, float]]:
    """circuit-tracer's sets of transcoders, with and without thresholds and skips."""
    for label, jumps, skip in (("ReLU", False, False), ("JumpReLU", True, True)):
        layers = {
            n: SingleLayerTranscoder(
                X, F, JumpReLU(torch.zeros(F)) if jumps else torch.relu, n, skip, dtype=torch.float32
            )
            for n in range(LAYERS)
        }
        theirs = TranscoderSet(layers, "mlp.hook_in", "mlp.hook_out", "made")
        random_weights(theirs)
        theirs.to_safetensors(str(folder / label))
        write_config(folder / label, "transcoder_set")
        ours = load_set(folder / label)
        yield f"circuit-tracer {label}, read here", of_set(ours, theirs)
        sae_formats.save(ours, folder / f"{label}-ours", "circuit-tracer")
        paths = {n: str(folder / f"{label}-ours" / f"layer_{n}.safetensors") for n in range(LAYERS)}
        lazy = {"lazy_encoder": False, "lazy_decoder": False}
        again = load_transcoder_set(paths, "made", "mlp.hook_in", "mlp.hook_out", **lazy)
        yield f"circuit-tracer {label}, written here", of_set(ours, again)


def cross_layer(folder: Path) -> Iterator[tuple[str, float]]:
    """circuit-tracer's cross-layer transcoder."""
    options = {"lazy_decoder": False, "dtype": torch.float32}
    theirs = CrossLayerTranscoder(LAYERS, F, X, "jump_relu", **options)
    random_weights(theirs)
    theirs.to_safetensors(str(folder / "clt"))
    write_config(folder / "clt", "cross_layer_transcoder")
    ours = load_set(folder / "clt")
    yield "circuit-tracer cross-layer, read here", of_set(ours, theirs)
    sae_formats.save(ours, folder / "clt-ours", "circuit-tracer")
    again = load_clt(str(folder / "clt-ours"), **options)
    yield "circuit-tracer cross-layer, written here", of_set(ours, again)


def write_config(folder: Path, kind: str) -> None:
    hooks = "feature_input_hook: mlp.hook_in\nfeature_output_hook: mlp.hook_out\n"
    (folder / "config.yaml").write_text(f"model_name: made\nscan: made\nmodel_kind: {kind}\n{hooks}")


def of_set(ours: list[SAE], theirs: Any) -> float:
    """The largest difference of all layers' features and of what all of them write to each layer."""
    x = np.stack([rows() + n for n in range(LAYERS)]).astype(np.float32)
    read = torch.from_numpy(x)
    features = theirs.encode(read)
    if isinstance(theirs, CrossLayerTranscoder):
        written = theirs.decode(features.to_sparse(), read)
    else:
        written = theirs.decode(features, read)
    totals: dict[str, Any] = {}
    found = []
    for n, one in enumerate(ours):
        f = one.encode(x[n])
        found.append(difference(f, features[n]))
        for name, y in one.parts(one.decode(f, x[n])).items():
            totals[name] = totals.get(name, 0) + y
    found += [difference(y, written[n]) for n, y in enumerate(totals.values())]
    return max(found)


def main() -> int:
    checks: list[Callable[[Path], Iterator[tuple[str, float]]]] = [saelens, per_layer, cross_layer]
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for check in checks:
            for label, found in check(Path(folder)):
                print(f"{label:<55} {found:.1e}", flush=True)
                worst = max(worst, found)
    print(f"sae-lens {version('sae-lens')}, circuit-tracer {version('circuit-tracer')}: at most {worst:.1e}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
