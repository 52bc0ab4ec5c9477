"""Sparse dictionaries in other tools' folders: SAELens's and circuit-tracer's, read and written.

SAELens (6.x): ``cfg.json`` and ``sae_weights.safetensors`` of one autoencoder or transcoder: W_enc [x f],
b_enc, W_dec [f y], b_dec, W_skip [y x], threshold; of a gated one b_gate, b_mag, r_mag.

circuit-tracer (0.5): ``config.yaml`` and a set of all layers from 0 on: ``layer_N.safetensors`` of per-layer
transcoders (W_enc [f x], ``activation_function.threshold``), or ``W_enc_N`` and ``W_dec_N`` [f layers y] of a
cross-layer one.

ReLU is JumpReLU with thresholds of 0. A gated encoder, e^r u + b_mag where u + b_gate > 0, is JumpReLU too:
of rows e^r W_enc, biases b_mag and thresholds b_mag - e^r b_gate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.inspect.names import TRANSFORMER_LENS
from cutaway.inspect.sae import LAYER, SAE, Activation, Card, Kind, arrays
from cutaway.quantization import formats
from cutaway.store import files, reading, yaml_files
from cutaway.weights import safetensors
from cutaway.weights.fields import Fields

CONFIG, WEIGHTS, SET = "cfg.json", "sae_weights.safetensors", "config.yaml"
TYPES = ("F32", "F16", "BF16")
ARCHITECTURES = {  # SAELens's, and what each keeps
    "standard": "jumprelu",
    "jumprelu": "jumprelu",
    "gated": "jumprelu",
    "topk": "topk",
    "transcoder": "jumprelu",
    "skip_transcoder": "jumprelu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
HOOKS = TRANSFORMER_LENS | {  # names of the same values in newer TransformerLens and in circuit-tracer
    "blocks.{i}.hook_mlp_in": ("blocks.{i}.middle",),
    "blocks.{i}.mlp.hook_in": ("blocks.{i}.mlp_norm",),
    "blocks.{i}.mlp.hook_out": TRANSFORMER_LENS["blocks.{i}.hook_mlp_out"],
    "blocks.{i}.attn.hook_z": ("blocks.{i}.attention.z",),
}
OUTPUT = TRANSFORMER_LENS["blocks.{i}.hook_mlp_out"]
NORMED_AFTER = re.compile(r"gemma-?[23]", re.I)  # models with a norm after the MLP
FORMATS = ("saelens", "circuit-tracer")


def load(folder: Path) -> list[SAE] | None:
    """The dictionaries of another tool's folder; None for a folder that is no such one."""
    if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
        return [_saelens(folder)]
    if (folder / SET).is_file():
        return _circuit_tracer(folder)
    return None


def save(made: Sequence[SAE], folder: Path, format: str, *, force: bool = False) -> None:
    """Writes dictionaries as another tool's folder; UserError for what that tool has no form for."""
    if format not in FORMATS:
        raise UserError(f"format {format!r} is not known: use one of {', '.join(FORMATS)}")
    if format == "saelens":
        if len(made) != 1:
            raise UserError(
                f"a SAELens folder holds one dictionary, and this set has {len(made)}: name one of them"
            )
        with files.atomic_folder(folder, force=force) as part:
            _write_saelens(made[0], part)
        return
    with files.atomic_folder(folder, force=force) as part:
        _write_circuit_tracer(made, part)


# ---- SAELens -----------------------------------------------------------------------------------------------


def _saelens(folder: Path) -> SAE:
    facts = reading.parsed(folder / CONFIG)
    fields = Fields(facts, folder / CONFIG)
    architecture = facts.get("architecture", "standard")
    if facts.get("activation_fn_str", facts.get("activation_fn", "relu")) == "topk":  # of before version 6
        architecture = "topk"
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{folder / CONFIG}: the architecture is {quoted(architecture)}; {known} are read")
    normed = facts.get("normalize_activations", "none")
    if normed in ("layer_norm", "constant_norm_rescale"):
        raise UserError(
            f"{folder / CONFIG}: normalize_activations is {quoted(normed)}, which divides each token by "
            "its own norm: a dictionary of that kind is not read"
        )
    if facts.get("finetuning_scaling_factor") is True:
        raise UserError(f"{folder / CONFIG}: finetuning_scaling_factor is true, which is not read")
    x, f = fields.integer("d_in"), fields.integer("d_sae")
    y = fields.integer("d_out") if "transcoder" in architecture else x
    shapes: dict[str, tuple[int | None, ...]] = {"W_enc": (x, f), "W_dec": (f, y), "b_dec": (y,)}
    names = ("b_gate", "b_mag", "r_mag") if architecture == "gated" else ("b_enc",)
    shapes |= dict.fromkeys(names, (f,))
    shapes |= {"threshold": (f,)} if architecture.startswith("jumprelu") else {}
    shapes |= {"W_skip": (y, x)} if "skip" in architecture else {}
    of = arrays(safetensors.read_shaped(folder / WEIGHTS, shapes, TYPES))
    of["W_enc"] = np.ascontiguousarray(of["W_enc"].T)
    k = 0
    if architecture == "topk":
        k = _k(facts, folder)
        if facts.get("rescale_acts_by_decoder_norm"):
            norms = np.maximum(np.linalg.norm(of["W_dec"], axis=1), 1e-8)
            of |= {"W_enc": of["W_enc"] * norms[:, None], "b_enc": of["b_enc"] * norms}
            of["W_dec"] = of["W_dec"] / norms[:, None]
    elif architecture == "gated":
        _ungate(of)
    else:
        of["threshold"] = np.maximum(of.get("threshold", np.zeros(f, np.float32)), 0)
    if facts.get("apply_b_dec_to_input", "transcoder" not in architecture):
        moved = of["W_enc"].astype(np.float64) @ of["b_dec"]
        of["b_enc"] = (of["b_enc"] - moved).astype(np.float32)
    return SAE(_saelens_card(facts, architecture, (x, y), f, k), of)


def _k(facts: Mapping[str, Any], folder: Path) -> int:
    k = facts.get("k", (facts.get("activation_fn_kwargs") or {}).get("k"))
    if type(k) is not int or k < 1:
        raise UserError(f"{folder / CONFIG}: k is {quoted(k)}, and a number from 1 up is needed")
    return k


def _ungate(of: dict[str, np.ndarray]) -> None:
    """A gated encoder's tensors as JumpReLU's."""
    grown = np.exp(of.pop("r_mag"))
    gate, magnitude = of.pop("b_gate"), of.pop("b_mag")
    of["W_enc"] = of["W_enc"] * grown[:, None]
    of["threshold"] = np.maximum(magnitude - grown * gate, 0)
    of["b_enc"] = magnitude


def _saelens_card(facts: dict[str, Any], architecture: str, widths: tuple[int, int], f: int, k: int) -> Card:
    about = dict(facts)
    if isinstance(facts.get("metadata"), dict):
        about |= facts["metadata"]
    model = str(about.get("model_name") or "unknown")
    read = _ours(str(about.get("hook_name") or about.get("hook_point") or "unknown"), model)
    is_transcoder = "transcoder" in architecture
    write = _ours(str(about.get("hook_name_out") or "unknown"), model) if is_transcoder else read
    kind: Kind = "transcoder" if is_transcoder else "sae"
    activation: Activation = "topk" if architecture == "topk" else "jumprelu"
    return Card(kind, activation, (read,), (write,), widths, model, f, k, skip="skip" in architecture)


def _write_saelens(one: SAE, folder: Path) -> None:
    card = one.card
    if card.kind not in ("sae", "transcoder"):
        raise UserError(f"SAELens has no {card.kind}: sae and transcoder are written")
    if card.kind == "transcoder" and card.activation == "topk":
        raise UserError("SAELens has no TopK transcoder: train with --activation batch_topk or jumprelu")
    architecture = "topk" if card.activation == "topk" else "jumprelu"
    if card.kind == "transcoder":
        architecture = "jumprelu_skip_transcoder" if card.skip else "jumprelu_transcoder"
    about = {"sae_lens_version": "6.0.0", "model_name": card.model, "hook_name": _theirs(one.reads[0])}
    facts: dict[str, Any] = {"architecture": architecture, "d_in": card.widths[0], "d_sae": card.features}
    if card.kind == "transcoder":
        facts["d_out"] = card.widths[1]
        about["hook_name_out"] = _theirs(one.writes[0])
    facts |= {"k": card.k, "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {}
    facts |= {
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
    }
    facts |= {"reshape_activations": "hook_z" if about["hook_name"].endswith("hook_z") else "none"}
    tensors = one.tensors | {"W_enc": one.W_enc.T}
    if one.threshold is not None:
        tensors["threshold"] = np.maximum(one.threshold, 0)
    _write(folder / WEIGHTS, tensors)
    (folder / CONFIG).write_text(json.dumps(facts | {"metadata": about}, indent=1), "utf-8")


# ---- circuit-tracer ----------------------------------------------------------------------------------------


def _circuit_tracer(folder: Path) -> list[SAE]:
    facts = yaml_files.parsed(folder / SET)
    fields = Fields(facts, folder / SET)
    kind, model = fields.text("model_kind"), str(facts.get("model_name") or "unknown")
    if kind not in ("transcoder_set", "cross_layer_transcoder"):
        raise UserError(
            f"{folder / SET}: model_kind {quoted(kind)} is none of transcoder_set, cross_layer_transcoder"
        )
    hooks = tuple(fields.text(f"feature_{side}_hook") for side in ("input", "output"))
    names = lambda n: tuple(_ours(f"blocks.{n}.{hook}", model) for hook in hooks)  # noqa: E731
    crossing = kind == "cross_layer_transcoder"
    pattern = "W_enc_*.safetensors" if crossing else "layer_*.safetensors"
    count = len(list(folder.glob(pattern)))
    if not count or "transcoders" in facts:
        raise UserError(
            f"{folder}: has no {pattern}: fetch the files of its transcoders into it as layer_0.safetensors, "
            "..., and take `transcoders:` out of its config.yaml"
        )
    made = []
    for n in range(count):
        of = _layer_tensors(folder, n, count if crossing else 0)
        if np.any(of.get("threshold", np.zeros(1)) < 0):
            raise UserError(f"{folder}: layer {n} has thresholds below 0, where features could be negative")
        f, x = of["W_enc"].shape
        of.setdefault("threshold", np.zeros(f, np.float32))
        read, write = names(n)
        writes = tuple(names(later)[1] for later in range(n, count)) if crossing else (write,)
        widths = (x, *[of["b_dec"].shape[0] // len(writes)] * len(writes))
        own: Kind = "cross_layer" if crossing else "transcoder"
        made.append(SAE(Card(own, "jumprelu", (read,), writes, widths, model, f, 0, skip="W_skip" in of), of))
    return made


def _layer_tensors(folder: Path, n: int, layers: int) -> dict[str, np.ndarray]:
    """The tensors of layer ``n`` of a set; ``layers``: of a cross-layer one, how many it has."""
    path = folder / (f"W_enc_{n}.safetensors" if layers else f"layer_{n}.safetensors")
    if not path.is_file():
        raise UserError(f"{path}: is missing, and the set has later layers")
    ending = f"_{n}" if layers else ""
    threshold = f"threshold_{n}" if layers else "activation_function.threshold"
    there = safetensors.read_safetensors(path)
    f = there[f"b_enc{ending}"].shape[0] if f"b_enc{ending}" in there else None
    shapes: dict[str, tuple[int | None, ...]] = {f"W_enc{ending}": (f, None), f"b_enc{ending}": (f,)}
    shapes |= {f"b_dec{ending}": (None,)} | ({} if layers else {"W_dec": (f, None)})
    shapes |= {threshold: (f,)} if threshold in there else {}
    shapes |= {"W_skip": (None, None)} if not layers and "W_skip" in there else {}
    found = arrays(safetensors.read_shaped(path, shapes, TYPES))
    of = {name.removesuffix(ending) if ending else name: array for name, array in found.items()}
    if threshold in found:
        of["threshold"] = of.pop(threshold.removesuffix(ending) if ending else threshold)
    y = of["b_dec"].shape[0]
    if layers:
        decoder = folder / f"W_dec_{n}.safetensors"
        found = arrays(safetensors.read_shaped(decoder, {f"W_dec_{n}": (f, layers - n, y)}, TYPES))
        of["W_dec"] = found[f"W_dec_{n}"].reshape(len(of["b_enc"]), -1)
        of["b_dec"] = np.concatenate([of["b_dec"], np.zeros(y * (layers - n - 1), np.float32)])
    x = of["W_enc"].shape[1]
    if of["W_dec"].shape[1] != len(of["b_dec"]) or of.get("W_skip", np.empty((y, x))).shape != (y, x):
        raise UserError(f"{path}: W_dec, b_dec and W_skip are of different widths")
    return of


def _write_circuit_tracer(made: Sequence[SAE], folder: Path) -> None:
    kinds = {one.card.kind for one in made}
    if kinds not in ({"transcoder"}, {"cross_layer"}):
        raise UserError(f"circuit-tracer has transcoders alone, and this is {' and '.join(sorted(kinds))}")
    if [one.layer for one in made] != list(range(len(made))):
        has = ", ".join(str(one.layer) for one in made)
        raise UserError(f"circuit-tracer reads a transcoder of every layer from 0 on, and this set has {has}")
    if any(one.threshold is None for one in made):
        raise UserError("circuit-tracer has no TopK: train with --activation batch_topk or jumprelu")
    crossing = kinds == {"cross_layer"}
    hooks = [_theirs(name).split(".", 2)[2] for name in (made[0].reads[0], made[0].writes[0])]
    facts = {"model_name": made[0].card.model, "scan": made[0].card.model}
    facts |= {"model_kind": "cross_layer_transcoder" if crossing else "transcoder_set"}
    facts |= {"feature_input_hook": hooks[0], "feature_output_hook": hooks[1]}
    (folder / SET).write_text(
        "".join(f"{key}: {json.dumps(value)}\n" for key, value in facts.items()), "utf-8"
    )
    for n, one in enumerate(made):
        assert one.threshold is not None
        of = one.tensors | {"threshold": np.maximum(one.threshold, 0)}
        if not crossing:
            of["activation_function.threshold"] = of.pop("threshold")
            _write(folder / f"layer_{n}.safetensors", of)
            continue
        width = one.card.widths[1]
        decoder = of.pop("W_dec").reshape(one.card.features, len(one.writes), width)
        of["b_dec"] = of["b_dec"][:width]
        _write(folder / f"W_enc_{n}.safetensors", {f"{name}_{n}": array for name, array in of.items()})
        _write(folder / f"W_dec_{n}.safetensors", {f"W_dec_{n}": decoder})


def _write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    packed = {name: formats.pack(np.ascontiguousarray(array), "F32") for name, array in tensors.items()}
    safetensors.write_safetensors(path, packed)


# ---- names -------------------------------------------------------------------------------------------------


def _ours(hook: str, model: str) -> str:
    """A hook's name as ours; as it is where there is none."""
    found = LAYER.fullmatch(hook)
    if found is None:
        return hook
    i = int(found[1])
    ours = HOOKS.get(f"blocks.{{i}}.{found[2]}")
    if ours is None:
        return hook
    one = ours[0]
    if ours == OUTPUT:
        one = ours[0] if NORMED_AFTER.search(model) else ours[-1]
    if "{p}" in one and i == 0:
        return ours[-1]
    return one.format(i=i, p=i - 1)


def _theirs(name: str) -> str:
    """Our name of an activation as TransformerLens's; as it is where it has none."""
    found = LAYER.fullmatch(name)
    if found is None:
        return "blocks.0.hook_resid_pre" if name == "embed" else name
    for theirs, ours in TRANSFORMER_LENS.items():
        if f"blocks.{{i}}.{found[2]}" in ours:
            return theirs.format(i=found[1])
    return name
