"""Sparse autoencoders: they find the directions that data is made of, and their features are edits."""

import base64
import json
import re
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway import cli
from cutaway.errors import UserError
from cutaway.inspect import reports, sae, sae_folders, sae_training, sae_training_pytorch
from cutaway.inspect.activations import Activations
from tests.small import model_file

TRUE, WIDTH, ACTIVE = 24, 16, 2


def made_of(directions: np.ndarray, count: int, seed: int) -> Activations:
    """Rows that are sums of a few directions, far from zero and in large units."""
    random = np.random.default_rng(seed)
    weights = np.zeros((count, TRUE), np.float32)
    for row in weights:
        row[random.choice(TRUE, ACTIVE, replace=False)] = random.uniform(1, 2, ACTIVE)
    rows = (30 * weights @ directions + 7).astype(np.float16)
    return dataset(rows, 1 + np.arange(count))


def dataset(rows: np.ndarray, positions: np.ndarray) -> Activations:
    numbers = np.zeros(len(rows), np.int32)
    shard = {"token_ids": numbers, "documents": numbers, "positions": positions, "blocks.1.out": rows}
    return Activations([shard], {"model": "made"})


@pytest.fixture(scope="module")
def directions() -> np.ndarray:
    drawn = np.random.default_rng(0).normal(size=(TRUE, WIDTH)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("activation", sae.ACTIVATIONS)
def test_it_finds_what_data_is_made_of(activation: Any, directions: np.ndarray, tmp_path: Path) -> None:
    data = made_of(directions, 4000, 1)
    options: Any = {
        "features": 48,
        "activation": activation,
        "k": 3,
        "steps": 600,
        "batch": 256,
        "learning_rate": 5e-3,
    }
    made = sae_training.train(data, "blocks.1.out", **options)
    card = made.card
    assert card.unexplained < 0.15 and 1 < card.l0 < 6, card
    found = made.W_dec / np.linalg.norm(made.W_dec, axis=1, keepdims=True)
    near = (directions @ found.T).max(axis=1)
    assert np.median(near) > 0.9, near
    made.save(tmp_path / "made")
    x = data.rows("blocks.1.out", range(5))
    read = sae_folders.load(tmp_path / "made")
    assert read.card == card and np.array_equal(read.encode(x), made.encode(x))
    of = {name: tensor.astype(np.float64) for name, tensor in read.tensors.items()}
    for row, z in zip(x.astype(np.float64), read.encode(x), strict=True):
        pre = of["W_enc"] @ row + of["b_enc"]
        three = np.isin(np.arange(48), np.argsort(-pre)[:3])
        kept = pre > of["threshold"] if activation != "topk" else three
        assert np.allclose(z, np.where(kept & (pre > 0), pre, 0), atol=1e-3)
        best = read.top(row[None].astype(np.float32))[0]
        assert [one.feature for one in best] == np.argsort(-z)[: len(best)].tolist()
    assert (
        sae_training.train(data, "blocks.1.out", **(options | {"steps": 5})).card.unexplained
        > card.unexplained
    )


def test_attention_sinks_are_left_out_and_measured(directions: np.ndarray, tmp_path: Path) -> None:
    """Texts' first tokens and those of massive norm: trained on, they are all that is explained."""
    usual = made_of(directions, 4000, 1)
    rows, positions = usual["blocks.1.out"], 1 + np.arange(4000) % 99
    first, massive = np.arange(0, 4000, 100), np.arange(50, 4000, 400)
    rows[first], positions[first] = 3000 * (directions[0] - directions[1]), 0
    rows[massive] = -2000 * directions[1:4].sum(0)
    data = dataset(rows.astype(np.float16), positions)
    sinks = np.zeros(4000, bool)
    sinks[first] = sinks[massive] = True
    assert np.array_equal(data.sinks("blocks.1.out"), sinks)
    options: Any = {"features": 48, "k": 3, "steps": 600, "batch": 256, "learning_rate": 5e-3}
    card = sae_training.train(data, "blocks.1.out", **options).card
    assert (card.tokens, card.sinks, card.keep_sinks) == (4000, 50, False)
    assert card.unexplained < 0.15 and card.unexplained_with_sinks > 0.3, card
    kept = sae_training.train(data, "blocks.1.out", keep_sinks=True, **options)
    assert kept.card.unexplained_with_sinks < 0.01 and kept.card.unexplained > 2 * card.unexplained, kept.card
    batches = [
        np.concatenate(list(data.batches("blocks.1.out", 50, keep_sinks=keep))) for keep in (False, True)
    ]
    assert [len(each) for each in batches] == [3950, 4000] and np.abs(batches[0]).max() < 200
    text = data.rows("blocks.1.out", range(99))
    assert not kept.sinks(text).any()
    made = sae.SAE(card, kept.tensors)
    assert np.flatnonzero(made.sinks(text)).tolist() == [0, 50]
    made.save(tmp_path / "made")
    assert sae_folders.load(tmp_path / "made").card == card
    with pytest.raises(UserError, match="0 tokens beside 4000 attention sinks, and at least 20"):
        sae_training.train(dataset(rows, np.zeros(4000, int)), "blocks.1.out", **options)
    with pytest.raises(UserError, match="this dataset has 3950 tokens beside attention sinks"):
        next(data.batches("blocks.1.out", 4000))


def test_the_report_counts_how_often_each_feature_fires(directions: np.ndarray) -> None:
    data = made_of(directions, 300, 2)
    made = sae_training.train(data, "blocks.1.out", features=48, k=3, steps=40, batch=64)
    document = reports.autoencoder(made, data)
    block = re.search(r'id="data">([^<]*)</script>', document)
    assert block is not None
    charts = json.loads(zlib.decompress(base64.b64decode(block[1])))
    *_, features = charts
    active = made.encode(data.rows("blocks.1.out", np.flatnonzero(~data.sinks("blocks.1.out"))))
    for id, often, most in features["rows"][:5]:
        assert often == pytest.approx(float((active[:, id] > 0).mean()))
        assert most == pytest.approx(float(active[:, id].max()), rel=1e-5)
    fires = [row[1] for row in features["rows"]]
    assert fires == sorted(fires, reverse=True) and charts[0]["rows"][0] == ["features", 48]


def test_dead_features_learn_again() -> None:
    """AuxK: features that begin without ever firing explain what the others leave, and fire."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, WIDTH, generator=generator)
    all_of_it = slice(0, WIDTH)
    names = ("blocks.1.out",)
    card = sae.Card("sae", "topk", names, names, (WIDTH, WIDTH), "made", 8, 2)
    part = sae_training_pytorch.begun(card, all_of_it, all_of_it, 0)
    for tensor in part.weights():
        tensor.requires_grad_()
    part.of["b_enc"].data[4:] = -50.0
    sae_training_pytorch.loss_of([part], [all_of_it], x, x).backward()
    assert not torch.as_tensor(part.of["W_dec"].grad)[4:].any()
    assert part.of["silent"].tolist() == [0.0] * 4 + [1.0] * 4
    part.of["silent"] = torch.tensor([0.0] * 4 + [sae.DEAD + 1.0] * 4)
    part.of["b_enc"].data[4:] = -1.0  # the others win still
    sae_training_pytorch.loss_of([part], [all_of_it], x, x).backward()
    assert torch.as_tensor(part.of["W_dec"].grad)[4:].any()


def test_features_are_edits_and_explain_shows_them(tmp_path: Path, capsys: Any) -> None:
    file = model_file(tmp_path / "tiny.gguf")
    (tmp_path / "text.txt").write_text("all of it adds up, and then some more of it " * 9)
    acts, out = str(tmp_path / "acts"), str(tmp_path / "sae")
    command = ["activations", str(tmp_path / "text.txt"), "--names", "blocks.1.out", "--model", str(file)]
    assert cli.main([*command, "--output", acts]) == 0
    train = ["sae", acts, "--output", out, "--steps=20", "--batch=64", "--k=4"]
    assert cli.main([*train, "--keep-sinks"]) == 0
    shown, err = capsys.readouterr()
    assert "1 of 378 tokens are attention sinks and trained on too" in shown and "drew" not in err
    assert cli.main([*train[:4], "--force", "--batch=5000", "--steps=1"]) == 0
    assert "each step drew 5,000 tokens of 339, some" in " ".join(capsys.readouterr().err.split())
    assert cli.main([*train, "--force"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "1 of 378 tokens are attention sinks and left out" in shown and "dead; with attention sinks" in shown
    )
    assert cli.main([*train, "--force", "--json"]) == 0
    assert '"unexplained_with_sinks"' in capsys.readouterr().out
    assert cli.main(["explain", "all of it", "--model", str(file), "--sae", out, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    lm, made = cutaway.load(file), sae_folders.load(out)
    rows = lm.activations(["all of it"], ["blocks.1.out"])["blocks.1.out"]
    assert shown["activation"] == "blocks.1.out" and made.card.features == 256
    best = made.top(rows)
    assert [one["features"][0]["feature"] for one in shown["tokens"]] == [row[0].feature for row in best]
    assert [one["attention_sink"] for one in shown["tokens"]] == [True] + [False] * (len(rows) - 1)
    assert cli.main(["explain", "all of it", "--model", str(file), "--sae", out]) == 0
    assert capsys.readouterr().out.count("an attention sink, not trained on") == 1
    feature = best[-1][0].feature
    seen = lambda edit: lm.trace("all of it", edit=edit)["blocks.1.out"]  # noqa: E731
    usual, added = seen(None), seen(made.add(feature, 3.0))
    assert np.allclose(added - usual, 3 * made.W_dec[feature], rtol=1e-5, atol=1e-2)
    removed = seen(made.remove(feature))
    unit = made.W_dec[feature] / np.linalg.norm(made.W_dec[feature])
    assert np.abs(removed @ unit).max() < 1e-2 * np.linalg.norm(removed, axis=1).max()
    with pytest.raises(UserError, match="there is no feature 256: they are 0 to 255"):
        made.add(256)
    assert cli.main(["explain", "all of it", "--model", str(file), "--sae", out, "--ablate", "0.1"]) == 2
    assert "--sae is a view of its own" in capsys.readouterr().err


def test_what_is_taken_and_how_to_go_on_are_printed(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several activations the one that is trained on is named; a stop says what the same command does."""
    lm, acts, out = cutaway.load(model_file(tmp_path / "tiny.gguf")), tmp_path / "acts", tmp_path / "sae"
    lm.activations(["all of it adds up " * 9], ["embed", "blocks.1.out"], acts)
    train = ["sae", str(acts), "--output", str(out), "--steps=6", "--batch=16", "--k=4"]

    def stopped(*words: str) -> str:
        def stop(doing: str, done: int, total: int | None) -> None:
            if done > 3:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("cutaway.commands.console.watched", lambda: nullcontext(stop))
            assert cli.main([*train, *words]) == 130
        return " ".join(capsys.readouterr().err.split())

    assert stopped() == (
        "blocks.1.out is trained on; --name takes another of the dataset: embed "
        "stopped: the same command begins anew: no checkpoint is written yet"
    )
    monkeypatch.setattr(sae_training_pytorch, "EVERY", 2)
    assert stopped("--name=embed") == "stopped: the same command goes on from the last checkpoint"
    forced = "stopped: the same command without --force goes on from the last checkpoint"
    assert stopped("--name=embed", "--force") == forced
    assert cli.main([*train, "--name=embed"]) == 0 and "trained on;" not in capsys.readouterr().err
    assert stopped("--name=embed", "--force") == "stopped: the same command begins anew, by its --force"
