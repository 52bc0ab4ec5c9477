"""Attention converted: the same function where algebra says so, a latent that loses no more than it must."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway.attention import gqa, local, mha
from cutaway.cli import main
from cutaway.errors import UserError
from cutaway.inspect.importance import moments
from cutaway.layers.config import MLP, Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.decoder import Decoder as Module
from cutaway.position import rope
from cutaway.position.scaling import DynamicNTK, YaRN
from cutaway.quantization import formats
from cutaway.weights import build, conversion
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors
from tests.small import model_file

WIDTH = 32
IDS = torch.arange(80).remainder(37)[None]
POS = torch.arange(80)[None]


def checkpoint(heads: Any, layers: int = 2) -> Checkpoint:
    torch.manual_seed(0)
    config = Decoder(64, WIDTH, 128, (Block(heads, MLP(48)),) * layers)
    module = Module(config)
    for weight in module.parameters():
        torch.nn.init.normal_(weight, 0.1, 0.2)
    tensors = {name: formats.pack(w.detach().numpy(), "F32") for name, w in module.named_parameters()}
    return Checkpoint(config, Tensors(tensors), None, Path("tiny"))


def logits(of: Checkpoint) -> torch.Tensor:
    with torch.no_grad():
        return build.decoder(of)(IDS, POS)


def grouped(position: rope.Config, **more: Any) -> Any:
    return gqa.Config(heads=6, kv_heads=3, key_size=8, position=position, **more)


@pytest.mark.parametrize(
    "heads",
    [
        grouped(rope.Config(8)),
        grouped(rope.Config(8, interleaved=True), value_size=6),
        grouped(rope.Config(4), scale=0.2),
        grouped(rope.Config(8, scaling=YaRN(4.0, 32))),
        mha.Config(heads=3, key_size=8, position=rope.Config(8)),
    ],
)
def test_a_latent_of_everything_is_the_same_function_at_the_same_cache(heads: Any) -> None:
    of = checkpoint(heads)
    made = conversion.converted(of, "mla")
    expected = logits(of)
    assert made.config.bytes_per_token(2) == of.config.bytes_per_token(2)
    torch.testing.assert_close(logits(made), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    model = build.decoder(made)
    state = model.new_state()
    with torch.no_grad():
        parts = [model(IDS[:, a:b], POS[:, a:b], state) for a, b in ((0, 50), (50, 51), (51, 80))]
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_a_smaller_latent_loses_less_the_more_it_keeps_and_chooses_by_the_text() -> None:
    of = checkpoint(grouped(rope.Config(8)))
    expected, seen = logits(of), moments(build.decoder(of), IDS[0].tolist())
    seen_by_none = {name: np.eye(WIDTH) for name in seen}

    def error(**options: Any) -> float:
        options = {"moments": seen} | options
        made = conversion.converted(of, "mla", **options)
        block = made.config.blocks[0]
        assert block.attention.bytes_per_token(1) == options["latent"] + 8 * options.get("rotary", 1)
        return float((logits(made) - expected).abs().mean())

    by_size = [error(latent=latent) for latent in (4, 8, 16, 40)]
    assert by_size == sorted(by_size, reverse=True) and by_size[0] > 3 * by_size[-1]
    assert error(latent=8) < 0.8 * error(latent=8, moments=seen_by_none)
    assert error(latent=24, rotary=3) < 1e-5  # all keys rotated, all values kept
    assert error(latent=24, rotary=2) < error(latent=24, rotary=1)


@pytest.mark.parametrize("rotary", [1, 2])
@pytest.mark.parametrize("interleaved", [True, False])
def test_keys_that_lose_their_rotation_are_whole_where_nothing_is_rotated(
    rotary: int, interleaved: bool
) -> None:
    of = checkpoint(grouped(rope.Config(6, interleaved=interleaved)))
    seen, still = moments(build.decoder(of), IDS[0].tolist()), torch.zeros_like(POS)
    made = conversion.converted(of, "mla", rotary=rotary, moments=seen)
    with torch.no_grad():
        ours, theirs = (build.decoder(each)(IDS, still) for each in (made, of))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    assert not torch.allclose(logits(made), logits(of), rtol=0, atol=1e-4)


def test_heads_are_copied_and_averaged() -> None:
    of = checkpoint(grouped(rope.Config(8), bias=True, out_bias=True, qk_norm=Norm()))
    many = conversion.converted(of, "mha")
    torch.testing.assert_close(logits(many), logits(of), rtol=0, atol=1e-5)
    again = conversion.converted(many, "gqa", kv_heads=3)
    assert again.config == of.config
    for name in of.tensors:
        assert np.allclose(
            formats.unpack(again.tensors[name]), formats.unpack(of.tensors[name]), atol=1e-6
        ), name
    one = conversion.converted(of, "mqa")
    keys = formats.unpack(of.tensors["blocks.1.attention.key.weight"]).reshape(3, 8, WIDTH).mean(0)
    assert np.allclose(formats.unpack(one.tensors["blocks.1.attention.key.weight"]), keys)
    near = conversion.converted(of, "local", window=16)
    torch.testing.assert_close(logits(near)[:, :16], logits(of)[:, :16], rtol=0, atol=1e-5)
    assert not torch.allclose(logits(near)[:, 40:], logits(of)[:, 40:], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("heads", "kind", "options", "message"),
    [
        (grouped(rope.Config(8)), "mqa", {"window": 3}, "window is no setting of mqa"),
        (grouped(rope.Config(8)), "local", {}, "local needs window"),
        (grouped(rope.Config(8)), "gqa", {"kv_heads": 2}, "3 key-value heads of 6 heads cannot become 2"),
        (grouped(rope.Config(8)), "mla", {"latent": 4}, "measure them first"),
        (grouped(rope.Config(8)), "mla", {"rotary": 4}, "rotary is 4"),
        (grouped(rope.Config(8), bias=True, softcap=9.0), "mla", {}, "a bias and a soft cap"),
        (grouped(rope.Config(8, scaling=DynamicNTK(2.0, 64))), "mla", {}, "change with the text's length"),
        (
            local.Config(heads=6, kv_heads=3, key_size=8, window=8, position=rope.Config(8)),
            "mha",
            {},
            "sees a window alone",
        ),
    ],
)
def test_what_cannot_be_held_is_refused(heads: Any, kind: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        conversion.converted(checkpoint(heads), kind, **options)


def test_the_verb_writes_reports_and_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, text = model_file(tmp_path / "model.gguf"), tmp_path / "text"
    text.write_text("Aequam memento rebus in arduis servare mentem. " * 14)
    words = ["convert", str(source), str(tmp_path / "mla"), "--text", str(text), "--json"]
    assert main([*words, "--attention", "mla"]) == 0
    whole = json.loads(capsys.readouterr().out)["conversion"]
    assert whole["kl_divergence"] < 1e-6 and whole["cache"] == whole["cache_before"]
    more = ["--attention", "mla", "--latent", "8", "--calibration", str(text), "--force"]
    assert main([*words, *more]) == 0
    part = json.loads(capsys.readouterr().out)["conversion"]
    assert part["logit_error"] > 100 * whole["logit_error"] and part["cache"] < part["cache_before"]
    assert cutaway.load(tmp_path / "mla").config.blocks[0].attention.latent == 8
    assert main(["convert", str(source), str(tmp_path / "no"), "--latent", "8"]) == 2
    assert "--latent is for --attention" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
