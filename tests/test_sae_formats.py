"""Folders of SAELens and circuit-tracer in their documented form: read as the equations say, and written.

`python -m scripts.check.sae_formats` does the same beside the two libraries.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway.errors import UserError
from cutaway.inspect import sae_folders, sae_formats
from cutaway.inspect.sae import SAE, Card
from cutaway.inspect.sae_folders import load_set
from cutaway.quantization import formats
from cutaway.weights import safetensors

X, Y, F, ROWS = 6, 5, 9, 11
random = np.random.default_rng(0)


def drawn(*shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32)


def write(path: Path, of: dict[str, np.ndarray], type: str = "F32") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.write_safetensors(path, {name: formats.pack(array, type) for name, array in of.items()})


def saelens(folder: Path, of: dict[str, np.ndarray], type: str = "F32", **facts: Any) -> SAE:
    write(folder / "sae_weights.safetensors", of, type)
    about = {"model_name": "gpt2-small", "hook_name": "blocks.3.hook_resid_pre", "sae_lens_version": "6.0.0"}
    about |= facts.pop("metadata", {})
    (folder / "cfg.json").write_text(json.dumps({"d_in": X, "d_sae": F, "metadata": about} | facts))
    return sae_folders.load(folder)


def autoencoder() -> dict[str, np.ndarray]:
    return {"W_enc": drawn(X, F), "b_enc": drawn(F), "W_dec": drawn(F, X), "b_dec": drawn(X)}


def close(made: SAE, x: np.ndarray, f: np.ndarray, y: np.ndarray) -> None:
    assert np.allclose(made.encode(x), f, atol=1e-5) and np.allclose(
        made.decode(made.encode(x), x), y, atol=1e-5
    )


def test_saelens_architectures(tmp_path: Path) -> None:
    x, of = drawn(ROWS, X), autoencoder()
    pre = (x - of["b_dec"]) @ of["W_enc"] + of["b_enc"]
    f = np.maximum(pre, 0)
    made = saelens(tmp_path / "standard", of, architecture="standard", apply_b_dec_to_input=True)
    close(made, x, f, f @ of["W_dec"] + of["b_dec"])
    assert (made.name, made.card.model, made.layer) == ("blocks.2.out", "gpt2-small", 2)
    threshold = np.abs(drawn(F))
    pre = x @ of["W_enc"] + of["b_enc"]
    f = np.where(pre > threshold, pre, 0)
    facts: Any = {"architecture": "jumprelu", "apply_b_dec_to_input": False}
    close(
        saelens(tmp_path / "jump", of | {"threshold": threshold}, **facts),
        x,
        f,
        f @ of["W_dec"] + of["b_dec"],
    )
    half = saelens(tmp_path / "half", of | {"threshold": threshold}, "BF16", **facts)
    assert np.allclose(half.W_enc, of["W_enc"].T, atol=0.05)


def test_a_gated_encoder_is_a_jumprelu(tmp_path: Path) -> None:
    x, of = drawn(ROWS, X), autoencoder()
    del of["b_enc"]
    gate = {"b_gate": drawn(F), "b_mag": drawn(F), "r_mag": drawn(F)}
    read = (x - of["b_dec"]) @ of["W_enc"]
    opened = read + gate["b_gate"] > 0
    f = opened * np.maximum(read * np.exp(gate["r_mag"]) + gate["b_mag"], 0)
    made = saelens(tmp_path / "gated", of | gate, architecture="gated", apply_b_dec_to_input=True)
    close(made, x, f, f @ of["W_dec"] + of["b_dec"])


def test_topk_with_decoder_norms(tmp_path: Path) -> None:
    x, of = drawn(ROWS, X), autoencoder()
    norms = np.linalg.norm(of["W_dec"], axis=1)
    pre = (x @ of["W_enc"] + of["b_enc"]) * norms
    f = np.where(pre >= np.sort(pre, axis=1)[:, -3:-2], np.maximum(pre, 0), 0)
    facts: Any = {"k": 3, "rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": False}
    made = saelens(tmp_path / "topk", of, architecture="topk", **facts)
    close(made, x, f, f / norms @ of["W_dec"] + of["b_dec"])
    older = saelens(tmp_path / "older", of, activation_fn_str="topk", activation_fn_kwargs={"k": 3})
    assert older.card.activation == "topk" and older.card.k == 3


@pytest.mark.parametrize("skip", [False, True])
def test_transcoders_there_and_back(skip: bool, tmp_path: Path) -> None:
    x, of = drawn(ROWS, X), {"W_enc": drawn(X, F), "b_enc": drawn(F), "W_dec": drawn(F, Y), "b_dec": drawn(Y)}
    of |= {"threshold": np.abs(drawn(F))} | ({"W_skip": drawn(Y, X)} if skip else {})
    names = {"hook_name": "blocks.3.ln2.hook_normalized", "hook_name_out": "blocks.3.hook_mlp_out"}
    architecture = "jumprelu_skip_transcoder" if skip else "jumprelu_transcoder"
    made = saelens(tmp_path / "t", of, architecture=architecture, d_out=Y, metadata=names)
    pre = x @ of["W_enc"] + of["b_enc"]
    f = np.where(pre > of["threshold"], pre, 0)
    close(made, x, f, f @ of["W_dec"] + of["b_dec"] + (x @ of["W_skip"].T if skip else 0))
    assert (made.reads, made.writes) == (("blocks.3.mlp_norm",), ("blocks.3.mlp.down",))
    sae_formats.save([made], tmp_path / "again", "saelens")
    facts = json.loads((tmp_path / "again" / "cfg.json").read_text())
    assert facts["architecture"] == architecture and facts["d_out"] == Y
    assert facts["metadata"]["hook_name_out"] == "blocks.3.hook_mlp_out"
    again = sae_folders.load(tmp_path / "again")
    assert again.card == made.card
    assert all(np.array_equal(again.tensors[name], array) for name, array in made.tensors.items())
    made.save(tmp_path / "ours")
    assert sae_folders.load(tmp_path / "ours").card == made.card


def config(folder: Path, kind: str) -> None:
    hooks = "feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n"
    (folder / "config.yaml").write_text(
        f"model_kind: {kind}\nmodel_name: google/gemma-2-2b\nscan: s\n{hooks}"
    )


def test_circuit_tracers_sets(tmp_path: Path) -> None:
    x, layers = drawn(ROWS, X), []
    for n in range(2):
        of = {"W_enc": drawn(F, X), "b_enc": drawn(F), "W_dec": drawn(F, X), "b_dec": drawn(X)}
        of |= {"activation_function.threshold": np.abs(drawn(F))} if n else {"W_skip": drawn(X, X)}
        write(tmp_path / "set" / f"layer_{n}.safetensors", of)
        layers.append(of)
    config(tmp_path / "set", "transcoder_set")
    made = load_set(tmp_path / "set")
    for one, of in zip(made, layers, strict=True):
        pre = x @ of["W_enc"].T + of["b_enc"]
        f = np.where(pre > of.get("activation_function.threshold", 0), pre, 0)
        skip = x @ of["W_skip"].T if "W_skip" in of else 0
        close(one, x, f, f @ of["W_dec"] + of["b_dec"] + skip)
    assert made[1].reads == ("blocks.1.mlp_norm",) and made[1].writes == (
        "blocks.1.mlp_post_norm",
    )  # Gemma 2
    sae_formats.save(made, tmp_path / "again", "circuit-tracer")
    again = load_set(tmp_path / "again")
    assert [one.card.skip for one in again] == [True, False]
    assert all(np.array_equal(b.W_dec, a.W_dec) for a, b in zip(made, again, strict=True))
    (tmp_path / "set" / "layer_1.safetensors").rename(tmp_path / "set" / "layer_2.safetensors")
    with pytest.raises(UserError, match=r"layer_1.safetensors: is missing, and the set has later layers"):
        load_set(tmp_path / "set")


def test_circuit_tracers_cross_layer_transcoder(tmp_path: Path) -> None:
    x, count, of = drawn(ROWS, X), 3, {}
    for n in range(count):
        own = {"W_enc": drawn(F, X), "b_enc": drawn(F), "b_dec": drawn(X), "threshold": np.abs(drawn(F))}
        write(
            tmp_path / "c" / f"W_enc_{n}.safetensors", {f"{name}_{n}": array for name, array in own.items()}
        )
        of[n] = own | {"W_dec": drawn(F, count - n, X)}
        write(tmp_path / "c" / f"W_dec_{n}.safetensors", {f"W_dec_{n}": of[n]["W_dec"]})
    config(tmp_path / "c", "cross_layer_transcoder")
    made = load_set(tmp_path / "c")
    totals: dict[str, Any] = {}
    for one in made:
        for name, y in one.parts(one.decode(one.encode(x))).items():
            totals[name] = totals.get(name, 0) + y
    features = [x @ of[n]["W_enc"].T + of[n]["b_enc"] for n in range(count)]
    features = [np.where(pre > of[n]["threshold"], pre, 0) for n, pre in enumerate(features)]
    for m, y in enumerate(totals.values()):
        true = of[m]["b_dec"] + sum(features[n] @ of[n]["W_dec"][:, m - n] for n in range(m + 1))
        assert np.allclose(y, true, atol=1e-5)
    sae_formats.save(made, tmp_path / "again", "circuit-tracer")
    assert all(
        np.array_equal(b.tensors[name], array)
        for a, b in zip(made, load_set(tmp_path / "again"), strict=True)
        for name, array in a.tensors.items()
    )


def test_what_they_have_no_form_for_is_refused(tmp_path: Path) -> None:
    names = (("blocks.3.mlp_norm",), ("blocks.3.mlp.down",), (X, X), "m", F, 2)
    tensors = {"W_enc": drawn(F, X), "b_enc": drawn(F), "W_dec": drawn(F, X), "b_dec": drawn(X)}
    topk = SAE(Card("transcoder", "topk", *names), tensors)
    jumps = SAE(Card("transcoder", "jumprelu", *names), tensors | {"threshold": np.zeros(F, np.float32)})
    for made, format, why in (
        ([topk], "saelens", "SAELens has no TopK transcoder"),
        ([topk, topk], "saelens", "holds one dictionary, and this set has 2"),
        ([jumps], "circuit-tracer", "of every layer from 0 on, and this set has 3"),
        ([jumps], "mystery", "use one of saelens, circuit-tracer"),
    ):
        with pytest.raises(UserError, match=why):
            sae_formats.save(made, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()
    for facts, why in (
        ({"architecture": "temporal"}, "the architecture is 'temporal'"),
        ({"normalize_activations": "layer_norm"}, "divides each token by its own norm"),
        ({"architecture": "topk"}, "k is None, and a number from 1 up is needed"),
    ):
        with pytest.raises(UserError, match=why):
            saelens(tmp_path / str(len(why)), autoencoder(), **facts)
    with pytest.raises(UserError, match="'W_enc' is F32 of 6 x 9, and F32 or F16 or BF16 of 7 x 9 is needed"):
        saelens(tmp_path / "width", autoencoder(), d_in=7)
