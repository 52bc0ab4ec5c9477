"""Encoders in the runtime: the numpy reference's bits for every shape, type and instruction set, alone and
beside other texts; the PyTorch model's vectors; hostile lengths; and no PyTorch for embeddings and labels.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import cutaway
from cutaway import cli, native
from cutaway.attention import bidirectional, disentangled
from cutaway.errors import OperationalError, UserError
from cutaway.layers.config import MLP, Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Convolution, Encoder
from cutaway.model.labels import HeadLayer, HeadNorm, LabelHead
from cutaway.native import library, packed_product
from cutaway.position import alibi, bias, distances, rope, sinusoidal, t5
from cutaway.position.scaling import DynamicNTK
from cutaway.quantization import formats
from cutaway.runtime import matmul, text_vectors
from cutaway.runtime.activation_functions import ACTIVATIONS
from cutaway.runtime.encoder import EncoderEngine, unsupported_reason
from cutaway.runtime.encoder_reference import ReferenceEncoder
from cutaway.weights.build import encoder
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors
from tests import inputs
from tests.rounding import noise
from tests.test_native import Run, on_each_set, python
from tests.test_runtime import tensors, weights

pytestmark = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)

LAYER, RMS = Norm("layer", 1e-5), Norm()
PLAIN: dict[str, Any] = {"heads": 4, "kv_heads": 4, "key_size": 12}
BIASED = PLAIN | {"bias": True, "out_bias": True}
WIDE = MLP(40, "gelu", gated=False, bias=True)


def shape(block: Block, *more: Block, norm: Norm = LAYER, **fields: Any) -> Encoder:
    return Encoder(101, 48, 300, (block, *more), norm, **fields)


def heads(**fields: Any) -> bidirectional.Config:
    return bidirectional.Config(**(PLAIN | fields))


FIRST: dict[str, Any] = {"norm_first": True, "learned": False, "segments": 0}
NEAR = Block(heads(reach=5, position=rope.Config(12)), MLP(72, "gelu"), LAYER)
SHAPES = {
    "bert": shape(*[Block(bidirectional.Config(**BIASED), WIDE, LAYER)] * 2),
    "modernbert": shape(
        replace(NEAR, attention_normed=False),
        replace(NEAR, attention=heads(position=rope.Config(12))),
        **FIRST,
    ),
    "gemma": shape(
        *[
            Block(
                heads(
                    kv_heads=1, key_size=20, reach=reach, qk_norm=RMS, position=rope.Config(20), softcap=3.0
                ),
                MLP(40, "gelu_tanh"),
                RMS,
                post_norm=True,
            )
            for reach in (140, None)
        ],
        norm=RMS,
        embedding_scale=6.9,
        embedding_norm=False,
        **FIRST,
    ),
    "t5": shape(
        *[Block(heads(relative=t5.Config(12, 20, True), scale=1.0), MLP(40, "relu", False), RMS)] * 2,
        norm=RMS,
        one_relative=True,
        embedding_norm=False,
        **FIRST,
    ),
    "alibi": shape(
        Block(
            heads(kv_heads=2, value_size=20, relative=alibi.Config(), qk_norm=RMS, qk_norm_over="width"),
            MLP(40, "silu", down_bias=True),
            LAYER,
        ),
        tasks=3,
    ),
    "albert": shape(
        Block(heads(qk_norm=RMS, qk_norm_over="each"), WIDE, LAYER),
        Block(heads(bias=True), WIDE, LAYER),
        embedding_width=20,
        order=(0, 0, 1),
    ),
    "esm": shape(
        Block(heads(position=rope.Config(8, interleaved=True)), WIDE, LAYER),
        mask=7,
        learned=False,
        norm_first=True,
    ),
    "sines": shape(Block(heads(reach=0), WIDE, LAYER), learned=False, sines=sinusoidal.Config(), offset=2),
}
LENGTHS = (40, 1, 150, 2, 17, 128, 33)
ROWS = [np.random.default_rng(n).integers(0, 101, length).tolist() for n, length in enumerate(LENGTHS)]
PARTS = [[int(2 * i > len(row)) for i in range(len(row))] for row in ROWS]


def parts_of(of: Encoder, n: int | None = None) -> list[list[int]] | None:
    """The segments of all texts, or of text ``n`` alone."""
    return None if not of.segments else PARTS if n is None else [PARTS[n]]


def pytorch(of: Encoder, entries: Tensors) -> Any:
    return encoder(Checkpoint(of, entries, None, Path("tiny")))


@pytest.mark.parametrize("name", SHAPES)
def test_a_text_has_the_references_bits_alone_and_beside_others(name: str) -> None:
    of = SHAPES[name]
    entries = tensors(of)
    engine = EncoderEngine(of, entries, threads=2)
    together = engine.encode(ROWS, parts_of(of))
    for n in (0, 1, 2, 4):  # and those that no reference reads: alone
        expected = ReferenceEncoder(of, entries).encode([ROWS[n]], parts_of(of, n))[0]
        assert np.array_equal(together[n], expected), (n, np.abs(together[n] - expected).max())
    one = EncoderEngine(of, entries, threads=1)
    for n in range(len(ROWS)):
        alone = one.encode([ROWS[n]], parts_of(of, n))[0]
        assert np.array_equal(alone, together[n]), n
    backwards = engine.encode(ROWS[::-1], parts_of(of) and PARTS[::-1])[::-1]
    assert all(map(np.array_equal, backwards, together))


@pytest.mark.parametrize("name", SHAPES)
def test_vectors_are_the_pytorch_models(name: str) -> None:
    of = SHAPES[name]
    entries = tensors(of)
    model, ours = pytorch(of, entries), EncoderEngine(of, entries).encode(ROWS, parts_of(of))
    for n in (0, 1, 2):
        ids, pos = torch.tensor([ROWS[n]]), torch.arange(len(ROWS[n]))[None]
        parts = torch.tensor([PARTS[n]]) if of.segments else None
        read = lambda ids=ids, pos=pos, parts=parts: model(ids, pos, parts)  # noqa: E731
        with torch.no_grad():
            apart = np.abs(read()[0].numpy() - ours[n]).max()
        assert apart < 3 * noise(model, read), n


def packed(type: str) -> tuple[Encoder, Tensors]:
    """A model of one type, whose rows are whole blocks of every type."""
    attention = bidirectional.Config(heads=4, kv_heads=2, key_size=64, bias=True, position=rope.Config(64))
    of = Encoder(64, 256, 160, (Block(attention, MLP(512, "gelu"), LAYER),), LAYER, learned=False)
    generator = np.random.default_rng(4)
    return of, Tensors(
        {
            name: weights(type, *size, seed=n)
            if len(size) == 2 and name != "segment.weight"
            else formats.pack(generator.normal(1, 0.1, size).astype(np.float32), "F32")
            for n, (name, size) in enumerate(of.weights().items())
        }
    )


@pytest.mark.parametrize("type", packed_product.TYPES)
def test_packed_weights_have_the_references_bits_and_round_what_they_read(type: str) -> None:
    of, entries = packed(type)
    first, *rows = [[id % 64 for id in ROWS[n]] for n in (2, 0, 1)]  # the others are past a tile of tokens
    ours = EncoderEngine(of, entries).encode([first, *rows])[1:]
    assert all(map(np.array_equal, ours, ReferenceEncoder(of, entries).encode(rows)))
    model = pytorch(of, entries)
    ids, pos = torch.tensor([rows[0]]), torch.arange(len(rows[0]))[None]

    def rounded(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (torch.from_numpy(matmul.rounded(given[0][0].numpy(), type))[None],)

    with torch.no_grad():
        plain = model(ids, pos)[0].numpy()
        for part in model.blocks.modules():
            if isinstance(part, torch.nn.Linear):
                part.register_forward_pre_hook(rounded)
        alike = model(ids, pos)[0].numpy()
    apart, costs = np.abs(ours[0] - alike), np.abs(plain - alike)
    assert np.median(apart) < (1e-5 if type in matmul.FLOATS else 2e-3), np.median(apart)
    assert (
        type in matmul.FLOATS or np.median(apart) < np.median(costs) / 3
    )  # a number near a tie goes either way


def test_matrices_of_several_types_read_each_what_it_needs() -> None:
    (of, one), (_, two), (_, three) = packed("F32"), packed("Q8_0"), packed("BF16")
    for names, others in ((("value", "down"), two), (("key", "gate"), three), (("out", "up"), two)):
        entries = Tensors({n: (others if n.split(".")[-2] in names else one)[n] for n in of.weights()})
        rows = [[id % 64 for id in ROWS[4]]]
        ours, expected = (made(of, entries).encode(rows)[0] for made in (EncoderEngine, ReferenceEncoder))
        assert np.array_equal(ours, expected), names
    of = replace(SHAPES["albert"], embedding_width=64)
    plain = tensors(of)
    entries = Tensors({name: plain[name] for name in plain} | {"projection.weight": weights("Q8_0", 48, 64)})
    ours, expected = (made(of, entries).encode(ROWS[3:4])[0] for made in (EncoderEngine, ReferenceEncoder))
    assert np.array_equal(ours, expected)


NEEDS = """
import sys
from cutaway import cli, native
from cutaway.native import packed_product as kernels
from tests.test_runtime_encoders import EncoderEngine, ReferenceEncoder, digests
expected = digests(ReferenceEncoder)
"""
DIGESTS = """
assert native.isa() == sys.argv[1]
ours = digests(EncoderEngine)
assert ours == expected, [name for name in expected if ours[name] != expected[name]]
print("same bits")
"""


def digests(engine: type[EncoderEngine | ReferenceEncoder]) -> dict[str, str]:
    """The SHA-256 of the vectors of some shapes and a type: one bit changes it."""
    models = {name: (SHAPES[name], tensors(SHAPES[name])) for name in ("modernbert", "gemma", "alibi")}
    models |= {type: packed(type) for type in ("BF16", "Q8_0")}
    before, row = ([id % 64 for id in ROWS[n]] for n in (5, 4))  # one that fills a tile of tokens
    rows = [before, row] if engine is EncoderEngine else [row]
    return {
        name: hashlib.sha256(engine(of, entries).encode(rows)[-1].tobytes()).hexdigest()
        for name, (of, entries) in models.items()
    }


@pytest.fixture(scope="module")
def computed() -> dict[str, Run]:
    return on_each_set(NEEDS, DIGESTS)


@pytest.mark.parametrize("isa", library.SETS)
def test_each_instruction_set_gives_the_references_vectors(isa: str, computed: dict[str, Run]) -> None:
    run = computed[isa]
    if "the best that this processor has" in run.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert run.stdout == "same bits\n", run.stderr


def test_the_longest_text_is_read_and_what_does_not_fit_is_refused() -> None:
    of = SHAPES["bert"]
    engine = EncoderEngine(of, tensors(of))
    longest = [3] * of.context
    found = engine.encode([longest, [3]])
    assert found[0].shape == (of.context, 48) and found[1].shape == (1, 48) and np.isfinite(found[0]).all()
    for rows, parts, words in (
        ([[*longest, 3]], None, "A text has 301 tokens, and the model reads at most 300"),
        ([[3], []], None, "do not divide 1 tokens into texts"),
        ([], None, "do not divide 0 tokens"),
        ([[101]], None, "outside the model's 0 to 100"),
        ([[-1]], None, "outside the model's 0 to 100"),
        ([[3]], [[2]], "segments are not numbers below 2"),
        ([[3, 4]], [[0]], "segments are not numbers below 2, one for each token"),
    ):
        with pytest.raises(UserError, match=words):
            engine.encode(rows, parts)


def test_what_has_no_kernel_is_named() -> None:
    of, own = SHAPES["bert"], SHAPES["bert"].blocks[0]
    grown = rope.Config(12, scaling=DynamicNTK(2.0, 299))
    apart = disentangled.Config(heads=4, key_size=12, relative=distances.Config(8))
    cases = {
        "reads 1,000,000,000,000 tokens": replace(SHAPES["sines"], context=10**12),
        "reads 200,000 tokens": replace(SHAPES["t5"], context=200_000),
        "a convolution": replace(of, convolution=Convolution(1)),
        "disentangled attention": replace(of, blocks=(replace(own, attention=apart),)),
        "first tokens see": replace(of, blocks=(replace(own, attention=heads(reach=2, globals=1)),)),
        "change as the text grows": replace(of, blocks=(replace(own, attention=heads(position=grown)),)),
        "has sinks": replace(of, blocks=(replace(own, attention=heads(clip=2.0)),)),
        "normed after": replace(of, blocks=(replace(own, attention=heads(qk_norm=RMS, qk_norm_after=True)),)),
        "a norm inside": replace(of, blocks=(replace(own, mlp=replace(WIDE, hidden_norm=RMS)),)),
        "is scaled": replace(of, blocks=(replace(own, mlp=replace(WIDE, out_scale=2.0)),)),
    }
    for words, config in cases.items():
        reason = unsupported_reason(config, entries := tensors(config))
        assert reason is not None and words.removeprefix("normed ") in reason, (words, reason)
        with pytest.raises(UserError, match="The runtime does not run this model, because"):
            EncoderEngine(config, entries)
    endless = replace(SHAPES["modernbert"], context=10**12)
    assert EncoderEngine(endless, tensors(endless)).encode([[3]])[0].shape == (1, 48)
    still = replace(of, context=299, blocks=(replace(own, attention=heads(position=grown)),))
    assert unsupported_reason(still, tensors(still)) is None


def test_positions_without_pytorch_are_those_of_its_modules() -> None:
    for of in (
        t5.Config(both_ways=True),
        t5.Config(12, 20, True),
        t5.Config(64, 512, True),
        t5.Config(33, 100),
    ):
        apart = np.arange(-9000, 9001)
        theirs = bias.Buckets(of, 1).bucket(torch.from_numpy(apart)).numpy()
        assert np.array_equal(of.bucket(apart), theirs), of
    for of in (sinusoidal.Config(), sinusoidal.Config(500.0, interleaved=False)):
        at = np.arange(3000)
        assert np.abs(of.vectors(at, 48) - of.build(48)(torch.from_numpy(at)).numpy()).max() < 1e-7


def test_gelu_is_the_normal_distributions() -> None:
    x = np.linspace(-13, 13, 20001).astype(np.float32)
    exact = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.astype(np.float64)])
    apart = np.abs(ACTIVATIONS["gelu"](x) - exact)
    near = (np.abs(x) < 4) & (x != 0)
    assert (apart[near] / np.abs(exact[near])).max() < 1e-6 and apart.max() < 5e-7
    with np.errstate(invalid="ignore"):
        odd = ACTIVATIONS["gelu"](np.array([np.nan, np.inf, -np.inf, 0, -1e30], np.float32))
    assert np.isnan(odd[0]) and odd[1] == np.inf and np.abs(odd[2:]).max() < 1e-30


class Counted:
    """An engine that gives its ids as vectors, of 13 NaN, and counts what it reads at once."""

    together = 512

    def __init__(self, pads: bool = False) -> None:
        self.read: list[int] = []
        self.pads = pads

    def encode(self, rows: Any, segments: Any = None) -> list[np.ndarray]:
        self.read.append(len(rows))
        return [np.array([[np.nan if id == 13 else id, 1.0] for id in row], np.float32) for row in rows]


def test_texts_are_pooled_one_by_one_and_read_in_pieces() -> None:
    rows, engine = [[3, 1, 5], [7], [2] * 500, [4] * 20, [9] * 600, [1, 2]], Counted()
    seen: list[int] = []
    mean = text_vectors.vectors(engine, rows, "mean", False, 32, lambda _, done, total: seen.append(done))
    assert engine.read == [3, 1, 1, 1] and seen == [3, 4, 5, 6]
    assert mean[:, 0].tolist() == [3, 7, 2, 4, 9, 1.5]
    longest_first = Counted(pads=True)
    again = text_vectors.vectors(longest_first, rows, "mean", False, 4)
    assert np.array_equal(again, mean) and longest_first.read == [1, 1, 4]
    engine = Counted()
    assert text_vectors.vectors(engine, rows, "cls", False, 2)[:, 0].tolist() == [3, 7, 2, 4, 9, 1]
    assert text_vectors.vectors(engine, rows, "last", False)[:, 0].tolist() == [5, 7, 2, 4, 9, 2]
    assert max(engine.read[:4]) == 2
    assert np.allclose(np.linalg.norm(text_vectors.vectors(engine, rows, "mean"), axis=1), 1)
    with pytest.raises(OperationalError, match="the vectors of text 1 are NaN"):
        text_vectors.vectors(engine, [[1], [13]], "mean")


@pytest.mark.parametrize("activation", ["tanh", "gelu", "relu"])
def test_heads_are_the_pytorch_models(activation: str) -> None:
    """The same head by PyTorch's own layers."""

    def of_tokens(head: LabelHead, x: np.ndarray) -> np.ndarray:
        assert head.layer is not None
        found = F.linear(torch.from_numpy(x), torch.from_numpy(w), torch.from_numpy(b))
        found = {"tanh": torch.tanh, "gelu": F.gelu, "relu": F.relu}[activation](found)
        if head.layer.norm is not None:
            found = F.layer_norm(found, (2,), torch.from_numpy(n), torch.from_numpy(b), 1e-5)
        return F.linear(found, torch.from_numpy(head.weight)).numpy()

    generator = np.random.default_rng(5)
    w, b, n = (generator.normal(size=size).astype(np.float32) for size in ((2, 2), 2, 2))
    out = generator.normal(size=(3, 2)).astype(np.float32)
    norm = HeadNorm(n, b, 1e-5) if activation == "gelu" else None
    for pooling in ("cls", "mean", "last", "late"):
        head = LabelHead(HeadLayer(w, b, activation, norm), out, None, pooling)
        x = np.array([[3.0, 1.0], [1.0, 1.0], [5.0, 1.0]], np.float32)
        ours = text_vectors.logits(Counted(), head, [[3, 1, 5], [7]])
        pooled = {"cls": x[:1], "mean": x.mean(0, keepdims=True), "last": x[-1:], "late": x}[pooling]
        assert np.abs(ours[0] - of_tokens(head, pooled).mean(0)).max() < 1e-5
        each = text_vectors.token_logits(Counted(), head, [[7], [3, 1, 5]])[1]
        assert np.abs(each - of_tokens(head, x)).max() < 1e-5


def test_the_runtime_answers_until_the_pytorch_model_is_asked_for() -> None:
    lm = cutaway.load(inputs.path("minilm"))
    texts = ["A cat sits on a mat.", "", "unaffable " * 100]
    ours = lm.embed(texts)
    assert lm.engine_choice == ("runtime", "it is the fastest here") and not lm.engines.built
    assert np.array_equal(ours[2:], lm.embed(texts[2:]))
    with cutaway.tracing(lm.model):
        assert lm.engine_choice[0] == "pytorch" and np.abs(lm.embed(texts) - ours).max() < 1e-6
    asked = cutaway.load(inputs.path("minilm"), engine="runtime")
    with cutaway.tracing(asked.model), pytest.raises(UserError, match="which a trace"):
        asked.embed(texts)
    assert np.array_equal(asked.embed(texts), ours)


def test_embeddings_and_their_command_need_no_pytorch(tmp_path: Path) -> None:
    run = python(
        """
import sys
sys.modules["torch"] = None  # an import of it fails
from cutaway import cli
sys.argv = ["cutaway", "embed", "text", "A cat", "A kitten", "--model", sys.argv[1], "--output", sys.argv[2]]
cli.main()
""",
        str(inputs.path("minilm")),
        str(tmp_path / "vectors.npy"),
    )
    assert "2 vectors of 384" in run.stdout, run.stderr
    a, b = np.load(tmp_path / "vectors.npy")
    assert a @ b > 0.6


def test_a_model_that_the_runtime_does_not_run_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "it has a convolution beside its first layer"
    monkeypatch.setattr("cutaway.runtime.encoder.unsupported_reason", lambda config, tensors: reason)
    texts = ["A cat", "A kitten"]
    lm = cutaway.load(inputs.path("minilm"))
    assert lm.embed(texts).shape == (2, 384) and lm.engines.built and lm.engine_choice[1] == reason
    assert cli.main(["embed", "text", *texts, "--model", str(inputs.path("minilm"))]) == 0
    assert f"because {reason}" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"The runtime does not run .*, because {reason}"):
        cutaway.load(inputs.path("minilm"), engine="runtime")
