"""Every kind of embedding table in a decoder: its shapes, its laws, and what becomes of it on disk."""

import importlib
import pkgutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from cutaway.embedding import tables
from cutaway.embedding.tables.modules import hashed
from cutaway.model.config import Decoder as Config
from cutaway.model.config_dict import from_dict, to_dict
from cutaway.model.decoder import Decoder
from cutaway.quantization import formats
from cutaway.weights import load, save
from cutaway.weights.build import decoder as filled
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors
from tests.small import decoder

SIZES = {"lowrank": {"rank": 3}, "hashed": {"buckets": 11, "hashes": 3}}
KINDS = [m.name for m in pkgutil.iter_modules(tables.__path__) if m.name != "modules"]


def config(kind: str, tied: bool) -> Config:
    table = importlib.import_module(f"cutaway.embedding.tables.{kind}").Config(**SIZES[kind])
    return replace(
        decoder("llama").config,
        table=table,
        tied=tied,
        embedding_scale=2.0,
    )


def model(kind: str, tied: bool) -> Decoder:
    torch.manual_seed(0)
    made = Decoder(config(kind, tied)).double().eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return made


cases = pytest.mark.parametrize(("kind", "tied"), [(kind, tied) for kind in KINDS for tied in (True, False)])
IDS = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(1))
POS = torch.arange(9).expand(2, 9)


def test_every_kind_is_tried() -> None:
    assert set(SIZES) == set(KINDS)


@cases
def test_rows_are_those_of_the_table_and_the_head_is_tied_to_them(kind: str, tied: bool) -> None:
    made = model(kind, tied)
    torch.testing.assert_close(made.embedding(IDS), made.embedding.weight[IDS])
    x = torch.randn(1, 2, made.config.width, dtype=torch.float64)
    head = made.embedding.weight if tied else made.head.weight
    torch.testing.assert_close(made.logits(x), made.norm(x) @ head.T)
    assert made.embedding.weight.shape == (made.config.vocab, made.config.width)


@cases
def test_read_in_pieces_is_read_at_once(kind: str, tied: bool) -> None:
    made = model(kind, tied)
    state = made.new_state()
    with torch.no_grad():
        pieces = [made(IDS[:, a:b], POS[:, a:b], state) for a, b in ((0, 4), (4, 5), (5, 9))]
        torch.testing.assert_close(torch.cat(pieces, 1), made(IDS, POS))


@cases
def test_gradients_check(kind: str, tied: bool) -> None:
    made = model(kind, tied)
    names = [name for name, _ in made.embedding.named_parameters()]
    whole = made.embedding
    for name in names:
        value = getattr(whole, name)
        made.zero_grad()
        cross_entropy(made(IDS, POS).flatten(0, 1), IDS.flatten()).backward()
        direction = torch.randn_like(value)
        with torch.no_grad():
            losses = []
            for step in (1e-6, -2e-6):
                value.add_(direction * step)
                losses.append(cross_entropy(made(IDS, POS).flatten(0, 1), IDS.flatten()))
            value.add_(direction * 1e-6)
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(
            float((value.grad * direction).sum()), rel=1e-4, abs=1e-8
        )


@cases
def test_config_and_weights_come_back(kind: str, tied: bool, tmp_path: Any) -> None:
    made = model(kind, tied).float()
    assert from_dict(to_dict(made.config)) == made.config
    packed = {name: formats.pack(one.detach().numpy(), "F32") for name, one in made.named_parameters()}
    assert {name: tuple(one.shape) for name, one in made.named_parameters()} == made.config.weights()
    save.write_checkpoint(tmp_path / "model", Checkpoint(made.config, Tensors(packed), None, tmp_path))
    back = load.read_checkpoint(tmp_path / "model")
    assert back.config == made.config
    torch.testing.assert_close(filled(back, "float32", "cpu")(IDS, POS), made(IDS, POS))


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_is_smaller(kind: str) -> None:
    made = model(kind, True).float().train()
    plain = made.config.vocab * made.config.width
    assert sum(one.numel() for one in made.embedding.parameters()) < plain
    optimiser = torch.optim.Adam(made.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = cross_entropy(made(IDS, POS)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_hashes_spread_and_differ() -> None:
    found = hashed(torch.arange(50_000), 100, 2)
    counts = torch.bincount(found.flatten(), minlength=100).float()
    assert (counts / counts.mean() - 1).abs().max() < 0.2
    assert ((found[:, 0] == found[:, 1]).float().mean() - 0.01).abs() < 0.005
