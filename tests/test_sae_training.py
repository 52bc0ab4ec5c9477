"""Transcoders, cross-layer sets and crosscoders: what is trained is what equations say, and is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cutaway.errors import OperationalError, UserError
from cutaway.inspect import sae, sae_check, sae_folders, sae_sparse, sae_training, sae_training_pytorch
from cutaway.inspect.activations import Activations, beside
from cutaway.inspect.sae import SAE, Card
from cutaway.inspect.sae_folders import load_set

WIDTH, TRUE = 12, 20
QUICK: Any = {"features": 40, "k": 3, "steps": 120, "batch": 64, "learning_rate": 1e-2}


def mlps(layers: int = 2, count: int = 600) -> Activations:
    """Layers whose MLP writes a sparse function of what it reads; a later one also what earlier ones do."""
    random = np.random.default_rng(0)
    shard: dict[str, np.ndarray] = dict.fromkeys(("token_ids", "documents"), np.zeros(count, np.int32))
    shard["positions"] = 1 + np.arange(count, dtype=np.int32)
    directions = random.standard_normal((layers + 1, TRUE, WIDTH))
    earlier = np.zeros((count, WIDTH))
    for n in range(layers):
        active = (random.random((count, TRUE)) < 0.1) * random.uniform(1, 2, (count, TRUE))
        x, y = active @ directions[n], active @ directions[n + 1] + 0.5 * earlier
        earlier = y
        shard[f"blocks.{2 * n}.mlp_norm"] = (x + 0.3).astype(np.float16)
        shard[f"blocks.{2 * n}.mlp.down"] = (10 * y - 4).astype(np.float16)
    return Activations([shard], {"model": "made"})


@pytest.fixture(scope="module")
def data() -> Activations:
    return mlps()


@pytest.mark.parametrize("choose", ["topk", "batch_topk"])
def test_sparse_training_is_autograd_over_the_dense_products(choose: str) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    x, y, k = draw(9, 7), draw(9, 5), 3
    fast = [draw(16, 7), draw(16), draw(16, 5)]
    naive = [tensor.clone().requires_grad_() for tensor in fast]
    fast = [tensor.requires_grad_() for tensor in fast]
    entries = getattr(sae_sparse, choose)(x, fast[0], fast[1], k)
    (y - sae_sparse.decoded(entries, fast[2])).square().sum().backward()
    pre = x @ naive[0].T + naive[1]
    if choose == "topk":
        kept = torch.zeros_like(pre).scatter(1, pre.topk(k, dim=1).indices, 1.0)
    else:
        kept = (
            torch.zeros(pre.numel()).to(pre).scatter(0, pre.flatten().topk(k * 9).indices, 1.0).view_as(pre)
        )
    (y - (kept * pre).relu() @ naive[2]).square().sum().backward()
    for ours, theirs in zip(fast, naive, strict=True):
        assert theirs.grad is not None and torch.allclose(torch.as_tensor(ours.grad), theirs.grad, atol=1e-10)


@pytest.mark.parametrize("activation", sae.ACTIVATIONS)
def test_a_transcoder_beats_the_linear_map(activation: str, data: Activations) -> None:
    names = ["blocks.0.mlp_norm", "blocks.0.mlp.down"]
    made = sae_training.train(data, names, kind="transcoder", activation=activation, **QUICK)
    card = made.card
    assert (made.reads, made.writes, made.layer) == ((names[0],), (names[1],), 0)
    assert card.linear is not None and card.unexplained < card.linear - 0.03 and 1 < card.l0 < 8, card
    x, y = (data.rows(name, np.arange(200)) for name in names)
    left = y - made.decode(made.encode(x), x)
    assert np.square(left).sum() < card.linear * np.square(y - y.mean(0)).sum()


def test_an_mlp_reads_what_its_model_says(data: Activations) -> None:
    """Without a norm before it (OLMo 2) an MLP reads the residual stream."""
    shard = {name.replace("mlp_norm", "middle"): rows for name, rows in data.shards[0].items()}
    inputs = [f"blocks.{n}.middle" for n in range(3)]
    found = sae_training.mlp_pairs(Activations([shard], {**data.facts, "mlp_inputs": inputs}))
    assert found == [(f"blocks.{n}.middle", f"blocks.{n}.mlp.down") for n in (0, 2)]
    with pytest.raises(UserError, match=r"--names blocks\.0\.middle --names blocks\.0\.mlp\.down"):
        sae_training.mlp_pairs(Activations(data.shards, {**data.facts, "mlp_inputs": inputs}))


def test_a_linear_skip_takes_what_is_linear(data: Activations) -> None:
    random = np.random.default_rng(1)
    x = data["blocks.0.mlp_norm"]
    shard = dict(data.shards[0])
    shard["blocks.0.mlp.down"] = (x @ random.standard_normal((WIDTH, WIDTH)) - 2).astype(np.float16)
    linear = Activations([shard], data.facts)
    names = ["blocks.0.mlp_norm", "blocks.0.mlp.down"]
    with_it, without = (
        sae_training.train(linear, names, kind="transcoder", skip=skip, **QUICK).card
        for skip in (True, False)
    )
    assert with_it.unexplained < 0.1 < without.unexplained and (with_it.linear or 1) < 0.01, (
        with_it,
        without,
    )
    with pytest.raises(UserError, match="a linear skip goes with --kind transcoder"):
        sae_training.train(linear, names[1], skip=True, **QUICK)


def test_a_cross_layer_set_writes_to_later_layers(data: Activations, tmp_path: Path) -> None:
    """The second layer's output is partly the first's: features of the first explain it."""
    alone = sae_training.train_set(data, kind="transcoder", **QUICK)
    crossing = sae_training.train_set(data, kind="cross_layer", output=tmp_path / "set", **QUICK)
    assert [one.writes for one in crossing] == [
        ("blocks.0.mlp.down", "blocks.2.mlp.down"),
        ("blocks.2.mlp.down",),
    ]
    assert crossing[1].card.unexplained < min(0.5, 0.9 * alone[1].card.unexplained)
    own = crossing[0].parts(crossing[0].b_dec[None])
    assert not own["blocks.2.mlp.down"].any() or abs(own["blocks.2.mlp.down"]).max() < 10
    read = load_set(tmp_path / "set")
    assert [one.card for one in read] == [one.card for one in crossing]
    rows = np.arange(50)
    total = np.zeros((50, WIDTH))
    for one in read:
        x = data.rows(one.reads[0], rows)
        f = one.encode(x)
        total += f @ one.decoder("blocks.2.mlp.down") + one.parts(one.b_dec[None])["blocks.2.mlp.down"]
    y = data.rows("blocks.2.mlp.down", rows)
    assert np.square(y - total).sum() < 0.6 * np.square(y - y.mean(0)).sum()


def test_a_crosscoder_reads_and_writes_several_activations(data: Activations) -> None:
    names = ["blocks.0.mlp_norm", "blocks.0.mlp.down"]
    made = sae_training.train(data, names, kind="crosscoder", **QUICK)
    assert made.reads == made.writes == tuple(names) and made.W_enc.shape == (40, 2 * WIDTH)
    assert made.card.unexplained < 0.4 and made.card.linear is None
    x = made.rows(data)
    parts = made.parts(made.decode(made.encode(x)))
    assert [part.shape for part in parts.values()] == [(600, WIDTH)] * 2
    with pytest.raises(UserError, match="write several activations"):
        made.add(3)
    with pytest.raises(UserError, match="two activations or more, not 1"):
        sae_training.train(data, names[:1], kind="crosscoder", **QUICK)


def test_a_crosscoder_of_two_models_names_whose_a_feature_is(data: Activations) -> None:
    """What one model alone has is written to it alone; what both have to both."""
    name, tuned = "blocks.0.mlp_norm", dict(data.shards[0])
    random, count = np.random.default_rng(5), len(data)
    base = {**tuned, name: (tuned[name] * 2).astype(np.float16)}
    new = (random.random((count, 1)) < 0.3) * random.standard_normal((1, WIDTH)) * 8
    tuned[name] = (base[name] + new).astype(np.float16)
    both = beside(Activations([base], data.facts), Activations([tuned], {"model": "tuned"}))
    names = (name, f"against.{name}")
    made = sae_training.train(both, names, kind="crosscoder", **QUICK | {"steps": 300})
    parts = made.parts_against
    assert parts is not None and both.facts["against"] == "tuned"
    active = made.encode(made.rows(both)).mean(0)
    strongest = int(np.argmax(active * (parts > 0.8)))
    fires = made.encode(made.rows(both))[:, strongest] > 0
    assert fires[new[:, 0] != 0].mean() > 0.7 > 0.2 > fires[new[:, 0] == 0].mean(), parts
    assert 0.4 < np.median(parts[active > 0]) < 0.6
    one = sae_training.train(data, name, **QUICK | {"steps": 1})
    assert one.parts_against is None
    with pytest.raises(UserError, match="of other tokens: read the same texts"):
        beside(data, Activations([{**base, "token_ids": base["token_ids"] + 1}], data.facts))
    with pytest.raises(UserError, match="none of them can be run"):
        sae_check.check(None, [made], [])


def test_a_stopped_training_goes_on_to_the_same_bits(
    data: Activations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sae_training_pytorch, "EVERY", 10)
    options = QUICK | {"steps": 25, "activation": "batch_topk"}
    whole = sae_training.train_set(data, **options)

    def stop(doing: str, done: int, total: int | None) -> None:
        if done == 25 + 17:  # in the second layer
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sae_training.train_set(data, output=tmp_path, progress=stop, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layer_0", "layer_2.part.safetensors"]
    steps: list[int] = []
    resumed = sae_training.train_set(
        data, output=tmp_path, progress=lambda doing, done, total: steps.append(done), **options
    )
    assert steps[0] == 25 + 11 and sorted(path.name for path in tmp_path.iterdir()) == ["layer_0", "layer_2"]
    for ours, theirs in zip(resumed, whole, strict=True):
        assert ours.card == theirs.card
        assert all(np.array_equal(ours.tensors[name], tensor) for name, tensor in theirs.tensors.items())
    with pytest.raises(UserError, match=r"layer_0 has k 3, and 4 is asked for: give the same options"):
        sae_training.train_set(data, output=tmp_path, **options | {"k": 4})


def test_folders_of_before_there_were_kinds_are_read(tmp_path: Path) -> None:
    from cutaway.quantization import formats
    from cutaway.weights import safetensors

    random = np.random.default_rng(0)
    of = {"encoder": random.standard_normal((6, 4)), "bias": random.standard_normal(6)}
    of |= {"decoder": random.standard_normal((6, 4)), "center": random.standard_normal(4) * 9}
    of |= {"threshold": np.full(6, 0.2)}
    safetensors.write_safetensors(
        tmp_path / "sae.safetensors",
        {name: formats.pack(array.astype(np.float32), "F32") for name, array in of.items()},
    )
    card = '{"name": "blocks.1.out", "model": "m", "kind": "jumprelu", "features": 6, "k": 2, "steps": 1'
    (tmp_path / "sae.json").write_text(card + ', "batch": 1, "seed": 0, "l0": 2.5}')
    made, x = sae_folders.load(tmp_path), random.standard_normal((5, 4)).astype(np.float32) * 5
    pre = (x - of["center"]) @ of["encoder"].T + of["bias"]
    f = np.where(pre > 0.2, pre, 0)
    assert np.allclose(made.encode(x), f, atol=1e-4) and made.card.kind == "sae" and made.card.keep_sinks
    assert np.allclose(made.decode(made.encode(x)), f @ of["decoder"] + of["center"], atol=1e-3)


def test_what_does_not_fit_is_refused(data: Activations, tmp_path: Path) -> None:
    card = Card("sae", "topk", ("blocks.1.out",), ("blocks.1.out",), (4, 4), "m", 6, 2)
    zeros = {"W_enc": np.zeros((6, 4)), "b_enc": np.zeros(6), "W_dec": np.zeros((6, 4)), "b_dec": np.zeros(4)}
    with pytest.raises(UserError, match="topk goes with no thresholds"):
        SAE(card, zeros | {"threshold": np.zeros(6)})
    with pytest.raises(UserError, match="kind 'cross_layer' is not known: use one of sae, transcoder"):
        sae_training.train(data, "blocks.0.mlp_norm", kind="cross_layer")
    only = Activations([{k: v for k, v in data.shards[0].items() if "mlp_norm" not in k}], data.facts)
    with pytest.raises(UserError, match="transcoders need what an MLP reads and writes"):
        sae_training.train_set(only)
    with pytest.raises(UserError, match="takes what an MLP reads and what it writes, not 1"):
        sae_training.train(data, "blocks.0.mlp_norm", kind="transcoder")
    for options, why in (
        ({"features": 10**11, "k": 3}, "100,000,000,000 features"),
        ({"batch": 10**12}, "GB"),
    ):
        with pytest.raises(UserError, match=f"{why}.* give fewer features, or a smaller batch"):
            sae_training.train(data, "blocks.0.mlp_norm", **options)
    with pytest.raises(UserError, match="the learning rate is 0"):
        sae_training.train(data, "blocks.0.mlp_norm", learning_rate=0)


@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_a_training_that_diverges_is_no_result(activation: str, data: Activations, tmp_path: Path) -> None:
    names = ["blocks.0.mlp_norm", "blocks.0.mlp.down"]
    wild: Any = QUICK | {"steps": 6, "learning_rate": 1e30, "activation": activation}
    with pytest.raises(OperationalError, match=r"diverged at step \d.* lower learning rate than 1e\+30"):
        sae_training.train(data, names, kind="transcoder", **wild)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 3e38])
def test_a_dictionary_of_damaged_numbers_is_refused(value: float, tmp_path: Path) -> None:
    card = Card("sae", "topk", ("blocks.0.out",), ("blocks.0.out",), (2, 2), "m", 2, 1)
    zeros: Any = {"b_enc": np.zeros(2, "f4"), "b_dec": np.zeros(2, "f4")}
    made = SAE(card, zeros | {name: np.eye(2, dtype=np.float32) for name in ("W_enc", "W_dec")})
    made.tensors["W_enc"] = np.array([[1, value], [0, 1]], np.float32)
    made.save(tmp_path / "made")
    with pytest.raises(
        UserError, match="W_enc has numbers that are NaN or beyond 1e\\+18; its file is damaged"
    ):
        sae_folders.load(tmp_path / "made")
