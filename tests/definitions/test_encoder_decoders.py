"""The encoder-decoders against their papers' equations: the recurrent ones as float64 loops over words, the
transformer against torch's own layers.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from cutaway.attention import bahdanau, luong
from cutaway.layers.config import MLP, Norm
from cutaway.model.seq2seq import Recurrent, TransformerSeq2Seq, transformer

WORDS, TARGET = 11, 12
SIZES = {"source": WORDS, "target": TARGET, "width": 6, "hidden": 8}
SOURCE, ANSWER = torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([[0, 9, 2, 6]])


def _made(config: Any) -> Any:
    torch.manual_seed(3)
    made = config.build() if isinstance(config, Recurrent) else TransformerSeq2Seq(config)
    model = made.double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return model


def _output(model: Any) -> Tensor:
    with torch.no_grad():
        return model(
            SOURCE, torch.arange(SOURCE.shape[1])[None], ANSWER, torch.arange(ANSWER.shape[1])[None]
        )[0]


# ---- the recurrent translators -----------------------------------------------------------------------------


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _gru(w: dict[str, np.ndarray], name: str, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """1406.1078's unit, with the reset gate after the matrix, as torch stores it: r, z, n."""
    of_x = (w[f"{name}.cell.weight_ih"] @ x + w[f"{name}.cell.bias_ih"]).reshape(3, -1)
    of_h = (w[f"{name}.cell.weight_hh"] @ h + w[f"{name}.cell.bias_hh"]).reshape(3, -1)
    r, z = _sigmoid(of_x[0] + of_h[0]), _sigmoid(of_x[1] + of_h[1])
    return z * h + (1 - z) * np.tanh(of_x[2] + r * of_h[2])


def _loop(model: Any, config: Recurrent) -> np.ndarray:
    w = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    words = [w["embedding.weight"][i] for i in SOURCE[0].tolist()]
    there, back, h = [], [], np.zeros(config.hidden // 2)
    for x in words:
        there.append(h := _gru(w, "forwards", x, h))
    h = np.zeros(config.hidden // 2)
    for x in reversed(words):
        back.insert(0, h := _gru(w, "backwards", x, h))
    memory = np.array([np.concatenate(pair) for pair in zip(there, back, strict=True)])
    whole = np.concatenate((there[-1], back[0]))

    def look(h: np.ndarray) -> np.ndarray:
        """The mechanism itself is judged in test_bahdanau.py."""
        attention = model.writer.attention
        values, pos = torch.from_numpy(memory)[None], torch.arange(len(memory))[None]
        with torch.no_grad():
            read, _ = attention(torch.from_numpy(h)[None, None], attention.remember(values, pos))
        return read[0, 0].numpy()

    h, o, rows = np.tanh(w["first.weight"] @ whole + w["first.bias"]), np.zeros(config.hidden), []
    for i in ANSWER[0].tolist():
        y = w["writer.embedding.weight"][i]
        if config.attention is None:  # 1406.1078: the same summary at every word
            c = whole
            h = _gru(w, "writer.gru", np.concatenate((y, c)), h)
        elif isinstance(config.attention, bahdanau.Config):  # 1409.0473: look, then step
            c = look(h)
            h = _gru(w, "writer.gru", np.concatenate((y, c)), h)
        else:  # 1508.04025: step with the last output, then look
            h = _gru(w, "writer.gru", np.concatenate((y, o)), h)
            c = look(h)
        o = np.tanh(w["writer.read.weight"] @ np.concatenate((h, c)) + w["writer.read.bias"])
        rows.append(w["writer.head.weight"] @ o + w["writer.head.bias"])
    return np.array(rows)


@pytest.mark.parametrize(
    "attention", [None, bahdanau.Config(size=4), luong.Config()], ids=["one vector", "bahdanau", "luong"]
)
def test_recurrent_is_its_loop(attention: Any) -> None:
    config = Recurrent(**SIZES, attention=attention)
    model = _made(config)
    assert_close(_output(model), torch.from_numpy(_loop(model, config)), rtol=1e-10, atol=1e-10)


# ---- the transformer ---------------------------------------------------------------------------------------


def _attention(theirs: nn.MultiheadAttention, ours: Any) -> None:
    theirs.in_proj_weight.copy_(torch.cat((ours.query.weight, ours.key.weight, ours.value.weight)))
    theirs.in_proj_bias.zero_()
    theirs.out_proj.weight.copy_(ours.out.weight)
    theirs.out_proj.bias.zero_()


def _copy(theirs: Any, ours: Any, norms: dict[str, str]) -> None:
    for name, own in norms.items():
        getattr(theirs, name).load_state_dict(getattr(ours, own).state_dict())
    _attention(theirs.self_attn, ours.attention)
    theirs.linear1.load_state_dict(ours.mlp.up.state_dict())
    theirs.linear2.load_state_dict(ours.mlp.down.state_dict())


def _sines(count: int, width: int) -> Tensor:
    """1706.03762, 3.5, a number at a time."""
    table = torch.empty(count, width, dtype=torch.float64)
    for p in range(count):
        for i in range(width):
            angle = p / 10000 ** (2 * (i // 2) / width)
            table[p, i] = np.sin(angle) if i % 2 == 0 else np.cos(angle)
    return table


@torch.no_grad()
def test_transformer_is_torchs_layers() -> None:
    mlp = MLP(16, activation="relu", gated=False, bias=True)
    model = _made(
        transformer(source=WORDS, target=TARGET, width=12, layers=2, heads=3, mlp=mlp, norm=Norm("layer"))
    )
    words = {"dropout": 0.0, "batch_first": True, "norm_first": True, "dtype": torch.float64}
    x = model.encoder.embedding(SOURCE) + _sines(SOURCE.shape[1], 12)
    for block in model.encoder.blocks:
        layer = nn.TransformerEncoderLayer(12, 3, 16, **words).eval()
        _copy(layer, block, {"norm1": "attention_norm", "norm2": "mlp_norm"})
        x = layer(x)
    memory = model.encoder.last_norm(x)
    y = model.decoder.embedding(ANSWER) + _sines(ANSWER.shape[1], 12)
    ahead = torch.ones(ANSWER.shape[1], ANSWER.shape[1]).triu(1).bool()
    for block in model.decoder.blocks:
        layer = nn.TransformerDecoderLayer(12, 3, 16, **words).eval()
        _copy(layer, block, {"norm1": "attention_norm", "norm2": "cross_norm", "norm3": "mlp_norm"})
        _attention(layer.multihead_attn, block.cross)
        y = layer(y, memory, tgt_mask=ahead)
    expected = model.decoder.head(model.decoder.norm(y))[0]
    assert_close(_output(model), expected, rtol=1e-6, atol=1e-6)  # the sines pass through float32
