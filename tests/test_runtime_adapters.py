"""Adapters in the runtime: native and reference to the bit, the PyTorch model with the changed weights within
the law's tolerance, and texts of several adapters in one batch with the bits that each has alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway import native
from cutaway.attention.common.softmax import cut
from cutaway.errors import UserError
from cutaway.hooks import tracing
from cutaway.layers import packed
from cutaway.model.config import Decoder, Encoder
from cutaway.native import library
from cutaway.quantization import formats
from cutaway.runtime import matmul
from cutaway.runtime.engine import RuntimeEngine
from cutaway.runtime.reference import ReferenceEngine
from cutaway.train.adapted import freeze
from cutaway.weights import adapters, build, gguf_adapters, load
from cutaway.weights.adapters import joined
from cutaway.weights.changes import Adapter, LowRank, Saved, Scaled
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors
from tests import llama_cpp
from tests.test_native import Run, on_each_set
from tests.test_runtime import IDS, config, definition, tensors, weights, wide

pytestmark = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)
DENSE = ("llama", "odd", "qwen2", "qwen3", "gemma3", "plain", "e2b", "diffllama")
LINEAR = ("query", "key", "value", "out", "gate", "up", "down")


def low_rank(
    of: Decoder | Encoder, names: tuple[str, ...] = LINEAR, rank: int = 3, seed: int = 7, dora: bool = False
) -> dict[str, LowRank]:
    """Random pairs beside the matrices of these names, each of another rank, as large as the weights."""
    generator = np.random.default_rng(seed)
    made: dict[str, LowRank] = {}
    for name, shape in of.weights().items():
        if name.split(".")[-2] not in names or len(shape) != 2 or ".per_layer." in name:
            continue
        own = rank + len(made) % 4
        a = generator.normal(size=(own, shape[1])).astype(np.float32)
        b = (generator.normal(size=(shape[0], own)) * shape[1] ** -0.5).astype(np.float32)
        magnitude = generator.uniform(0.5, 2, shape[0]).astype(np.float32) if dora else None
        made[name] = LowRank(a, b, 0.3, magnitude)
    return made


def scaled(of: Decoder | Encoder) -> dict[str, Scaled]:
    generator = np.random.default_rng(8)
    made: dict[str, Scaled] = {}
    for name, shape in of.weights().items():
        if (kind := name.split(".")[-2]) in ("key", "value", "down"):
            size = shape[1] if kind == "down" else shape[0]
            factors = generator.uniform(0.3, 2, size).astype(np.float32)
            made[name] = Scaled(factors, "in" if kind == "down" else "out")
    return made


KINDS: dict[str, Any] = {
    "lora": low_rank,
    "part": lambda of: low_rank(of, ("key", "gate"), 16),
    "dora": lambda of: low_rank(of, dora=True),
    "ia3": scaled,
}


def changed(of: Decoder, entries: Tensors, adapter: Adapter) -> Tensors:
    return joined(Checkpoint(of, entries, None, Path("tiny")), adapter).tensors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DENSE)
def test_float_weights_give_the_definitions_logits(name: str, kind: str):
    """The PyTorch model with the changed weights, within what keys and values kept as halves cost."""
    if kind == "ia3" and name in ("qwen2", "plain", "diffllama"):
        pytest.skip("IA3 scales a bias there, which is refused: tested below")
    of = config(name)
    entries = tensors(of)
    adapter = KINDS[kind](of)
    expected = definition(of, changed(of, entries, adapter)).logits(IDS)
    engine = RuntimeEngine(of, entries)
    ours = engine.adapted(adapter).logits(IDS)
    assert np.abs(ours - expected).max() < 4e-3 * np.abs(expected).max()
    plain = engine.logits(IDS)
    assert np.abs(ours - plain).max() > 0.1 * np.abs(expected).max()
    assert np.array_equal(plain, RuntimeEngine(of, entries).logits(IDS)), "the base is as it was"


EXPECTED = """
import sys
import numpy as np
import cutaway
from cutaway import native
from cutaway.runtime.engine import RuntimeEngine
from cutaway.runtime.reference import ReferenceEngine
from tests.test_runtime import IDS, config, tensors, wide
from tests.test_runtime_adapters import KINDS

cases = []
for of, entries in (config("odd"), tensors(config("odd"))), wide("Q4_0"), wide("Q6_K"), wide("BF16"):
    for kind in KINDS:
        adapter = KINDS[kind](of)
        expected = ReferenceEngine(of, entries).adapted(adapter).logits(IDS[:40])
        cases.append((of, entries, kind, adapter, expected))
"""
ON_EACH_SET = """
assert native.available() and native.isa() == sys.argv[1], native.isa()
for of, entries, kind, adapter, expected in cases:
    ours = RuntimeEngine(of, entries).adapted(adapter)
    assert np.array_equal(ours.logits(IDS[:40]), expected), kind
    state = ours.new_state()
    assert np.array_equal([ours.step(id, state) for id in IDS[:5]], expected[:5]), kind
print("same bits")
"""


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    return on_each_set(EXPECTED, ON_EACH_SET)


@pytest.mark.parametrize("isa", library.SETS)
def test_each_instruction_set_gives_the_references_bits(isa: str, runs: dict[str, Run]):
    run = runs[isa]
    if "the best that this processor has" in run.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert run.stdout == "same bits\n", run.stderr


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
@pytest.mark.parametrize("threads", [1, 3])
def test_texts_of_several_adapters_are_read_together(name: str, threads: int):
    """Prompts and single tokens of the base and two adapters in one call: the bits of each text alone."""
    of = config(name)
    entries = tensors(of)
    heads = ("query", "key", "value", "out")
    pairs = [None, low_rank(of, heads), low_rank(of, heads if name == "mixtral" else LINEAR, 17, seed=9)]
    base = RuntimeEngine(of, entries, threads)
    engines = [base.adapted(pairs[n]) for n in (1, 0, 1, 2, 2, 0)]
    texts = [IDS[n : n + length] for n, length in enumerate((150, 3, 40, 70, 1, 2))]
    alone = [engine.logits(text) for engine, text in zip(engines, texts, strict=True)]
    assert not np.allclose(alone[0][:1], base.logits(texts[0])[:1], atol=1e-2)
    states = [engine.new_state() for engine in engines]
    starts = [text[:-1] for text in texts]
    reading = [n for n, start in enumerate(starts) if start]
    base.read([starts[n] for n in reading], [states[n] for n in reading], [])
    together = base.step_each([text[-1] for text in texts], states)
    assert np.array_equal(together, [logits[-1] for logits in alone])
    copy = states[0].snapshot()
    assert np.array_equal(base.step(IDS[0], states[0]), base.step(IDS[0], copy)), "a copy keeps its adapter"
    assert engines[0].resume([]).adapter is states[0].adapter


def test_an_adapter_is_handed_over_anew():
    """A later adapter is a later engine: a text that is under way keeps the one that it began with."""
    of, entries = wide("Q8_0")
    base = RuntimeEngine(of, entries)
    first, second = base.adapted(low_rank(of)), base.adapted(low_rank(of, seed=1))
    assert first.packed is second.packed is base.packed
    state = first.new_state()
    first.prefill(IDS[:9], state)
    assert np.array_equal(second.step(IDS[9], state), first.logits(IDS[:10])[-1])
    assert np.array_equal(first.adapted(None).logits(IDS[:9]), base.logits(IDS[:9]))


@pytest.mark.parametrize(
    ("name", "adapter", "why"),
    [
        ("llama", {"norm.weight": Saved(np.ones(50, np.float32))}, "it changes norm.weight"),
        ("llama", low_rank(config("llama"), ("embedding",)), "it changes embedding.weight"),
        (
            "llama",
            {"blocks.0.mlp.up.weight": Saved(np.ones((72, 50), np.float32))},
            "it replaces blocks.0.mlp.up.weight",
        ),
        ("mixtral", low_rank(config("mixtral"), ("up",)), "it changes blocks.0.mlp.experts.0.up.weight"),
        ("qwen2", scaled(config("qwen2")), "it scales the bias or the inputs of blocks.0.attention.key"),
        ("plain", {"blocks.0.mlp.down.weight": Scaled(np.ones(72, np.float32), "in")}, "inputs of blocks.0"),
    ],
)
@pytest.mark.parametrize("engine", [RuntimeEngine, ReferenceEngine])
def test_what_the_definition_alone_applies_is_refused(engine: Any, name: str, adapter: Adapter, why: str):
    of = config(name)
    with pytest.raises(UserError, match=why):
        engine(of, tensors(of)).adapted(adapter)


# ---- llama.cpp's adapters ----------------------------------------------------------------------------------


def assert_folded(read: Any, written: Any, name: str) -> None:
    """The same pair, its scale in B."""
    assert read.scale == 1 and np.array_equal(read.a, written.a), name
    assert np.array_equal(read.b, np.float32(written.scale) * written.b), name


def test_llama_cpp_gives_a_written_adapter_our_logits(tmp_path: Path):
    """Queries' and keys' rows are permuted in its file; each pair's own scale is in B."""
    from tests import serving

    lm = serving.model(engine="pytorch")
    lm.save(tmp_path / "base.gguf")
    base = load.read_checkpoint(tmp_path / "base.gguf")
    adapter = {name: replace(change, scale=1.0) for name, change in low_rank(base.config, rank=8).items()}
    gguf_adapters.write_gguf_adapter(tmp_path / "talk.gguf", adapter, base)
    back = adapters.read_adapter(tmp_path / "talk.gguf", base)
    assert back.keys() == adapter.keys()
    for name, change in adapter.items():
        assert_folded(back[name], change, name)
    ids = lm.ids("The capital of France is")
    tuned = cutaway.load(tmp_path / "base.gguf", engine="pytorch", adapter=tmp_path / "talk.gguf")
    ours = tuned.logits(ids)[-1].astype(np.float64)
    with llama_cpp.opened(tmp_path / "base.gguf", len(ours), adapter=tmp_path / "talk.gguf") as theirs:
        scores = theirs(ids)

    def apart(logits: np.ndarray) -> float:
        return float(
            np.std(logits - scores) / np.std(logits)
        )  # log-probabilities are logits but for a constant

    assert apart(ours) < 0.03, apart(ours)
    assert apart(lm.logits(ids)[-1].astype(np.float64)) > 0.3
    for refused in (
        low_rank(base.config, dora=True),
        scaled(base.config),
        low_rank(base.config, ("embedding",)),
    ):
        with pytest.raises(UserError, match=r"LoRA alone|embedding table"):
            gguf_adapters.write_gguf_adapter(tmp_path / "no.gguf", refused, base)


def test_an_adapter_is_converted_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from cutaway import cli
    from tests import inputs

    monkeypatch.chdir(tmp_path)
    base = load.read_checkpoint(inputs.path("smollm2"))
    adapter = low_rank(base.config, ("query", "down"), rank=2)
    adapters.write_adapter("talk", adapter, base, str(inputs.path("smollm2")))
    assert cli.main(["convert", "talk", "talk.gguf", "--adapter"]) == 0
    assert cli.main(["convert", "talk.gguf", "back", "--adapter"]) == 2
    assert (
        cli.main(["convert", "talk.gguf", "back", "--adapter", "--model", str(inputs.path("smollm2"))]) == 0
    )
    back = adapters.read_adapter("back", base)
    for name, change in adapter.items():
        assert_folded(back[name], change, name)


# ---- several adapters in one batch of the scheduler and of the server --------------------------------------


@pytest.fixture(scope="module")
def base() -> Any:
    from tests import serving

    return serving.model(engine="runtime")


@pytest.fixture(scope="module")
def engines(base: Any) -> dict[str, Any]:
    """Engines with adapters that change every answer."""
    pairs = {name: low_rank(base.config, rank=8, seed=seed) for name, seed in (("talk", 1), ("other", 2))}
    return {name: base.engine.adapted(adapter) for name, adapter in pairs.items()}


def test_the_prefix_cache_is_each_adapters_own(base: Any, engines: dict[str, Any]):
    """A prompt of three pages under one adapter, then another, in one scheduler: each as it is alone."""
    from cutaway.generate.batch.many_prompts import generate_batch
    from cutaway.generate.batch.request import Request
    from cutaway.generate.batch.scheduler import Scheduler
    from cutaway.generate.decode import finish
    from cutaway.generate.sampling_params import SamplingParams

    ids = tuple(base.ids("The capital of France is " * 80))
    assert len(ids) > 3 * base.engine.page
    settings = SamplingParams(max_tokens=6, temperature=0)
    order = [None, engines["talk"], engines["other"], engines["talk"], None]
    alone = [generate_batch(one or base.engine, base.tokenizer, [ids], settings)[0].logprobs for one in order]
    scheduler = Scheduler(base.engine, base.tokenizer)
    try:
        apart = [finish(scheduler.submit(Request(ids, settings, engine=one))) for one in order]
        assert [each.logprobs for each in apart] == alone
        assert [each.timings.prefill_tokens < 128 for each in apart] == [False, False, False, True, True]
        streams = [scheduler.submit(Request(ids[n:], settings, engine=one)) for n, one in enumerate(order)]
        together = [finish(stream).logprobs for stream in streams]
    finally:
        scheduler.close()
    for n, one in enumerate(order):
        single = generate_batch(one or base.engine, base.tokenizer, [ids[n:]], settings)
        assert together[n] == single[0].logprobs, n
    assert len(set(alone)) == 3


def test_the_server_answers_by_adapters_names(base: Any, engines: dict[str, Any]):
    from concurrent.futures import ThreadPoolExecutor

    from tests import serving

    with serving.running(base, adapters=engines) as server:
        names = [card["id"] for card in server.get("/v1/models").json()["data"]]
        assert names == [serving.NAME, "talk", "other"]
        assert server.get("/v1/models/talk").json()["parent"] == serving.NAME
        body = {"prompt": "The capital of France is " * 24, "max_tokens": 6, "temperature": 0, "logprobs": 1}

        def ask(name: str) -> Any:
            answer = server.post("/v1/completions", body | {"model": name}).json()
            assert answer["model"] == name
            return answer["choices"]

        alone = {name: ask(name) for name in names}
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(ask, names * 2)) == [alone[name] for name in names * 2]
        assert len({str(choices) for choices in alone.values()}) == 3
        chat = {"model": "talk", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        assert server.post("/v1/chat/completions", chat).json()["model"] == "talk"
        assert (
            server.post("/v1/responses", {"model": "other", "input": "Hi", "max_output_tokens": 2}).json()[
                "model"
            ]
            == "other"
        )
        missing = server.post("/v1/completions", body | {"model": "third"})
        assert missing.status_code == 404 and "'talk', 'other'" in missing.json()["error"]["message"]
        edits = [{"kind": "ablate", "layer": 0, "part": "mlp"}]
        for path, more in (("/v1/completions", {"edits": edits}), ("/v1/trace", {"text": "Hi"})):
            refused = server.post(path, (body if "edits" in more else {}) | {"model": "talk"} | more)
            assert refused.status_code == 400 and "adapter" in refused.json()["error"]["message"], path


# ---- training beside packed weights ------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["Q4_0", "Q4_1", "Q6_K", "Q8_0", "BF16"])
def test_a_packed_base_multiplies_as_it_is_served(type: str, monkeypatch: pytest.MonkeyPatch):
    """Forward the kernels' bits; backward the gradient of the unpacked matrix, tile by tile."""
    monkeypatch.setattr(packed, "TILE", 3 * 256)
    weight = weights(type, 37, 256)
    layer = packed.PackedLinear(weight, torch.ones(37), formats.unpack)
    x = torch.randn(2, 5, 256, requires_grad=True)
    unrounded = layer(x)
    assert torch.equal(unrounded, torch.nn.functional.linear(x, layer.weight, layer.bias))
    layer.serve()
    served = layer(x)
    expected = matmul.product(weight, x.detach().numpy().reshape(10, 256)) + np.float32(1)
    assert np.array_equal(served.detach().numpy().reshape(10, 37), expected)
    assert not torch.equal(served, unrounded)
    grad = torch.randn_like(served)
    served.backward(grad)
    assert torch.allclose(x.grad, grad @ layer.weight, atol=1e-5)  # pyright: ignore[reportArgumentType]


def test_a_packed_base_attends_as_it_is_served():
    """Keys and values are halves, and their gradient is not: it may be far below a half's smallest number."""
    of, stored = wide("Q8_0")
    model = build.decoder(Checkpoint(of, stored, None, Path("tiny")), "packed")
    freeze(model)
    ids = torch.tensor([[n % 160 for n in IDS[:40]]])
    with tracing(model, "*.k", "*.v") as seen:
        model(ids, torch.arange(40)[None])
    assert len(seen) == 4 and all(torch.equal(x, x.half().float()) for x in seen.values())
    attention: Any = model.blocks[0].attention
    grads = []
    for attention.halves in (True, False):
        x = torch.randn(1, 40, 256, generator=torch.Generator().manual_seed(0)).requires_grad_()
        k = attention._stored(cut(attention.key(x), 2))
        grads.append(torch.autograd.grad(k.sum() * 1e-12, x)[0])
    assert torch.equal(*grads) and grads[0].abs().max() > 0
