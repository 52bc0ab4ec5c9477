"""`cutaway explain --parallel`: its operations are those that torch counts, its steps those that wait."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import cutaway
from cutaway.attention import gqa
from cutaway.attention.common.registry import Sizes, kind
from cutaway.cli import main
from cutaway.inspect import parallel
from cutaway.layers.config import MLP, MoE
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.decoder import Decoder as Module
from cutaway.position import rope

HEADS = gqa.Config(heads=4, kv_heads=2, key_size=8, position=rope.Config(8))
SIZES = Sizes(width=32, heads=4, groups=2, key_size=8, value_size=8)


def config(*blocks: Block) -> Decoder:
    return Decoder(96, 32, 128, blocks)


def sizes(of: Decoder) -> dict[str, int]:
    return {name: 2 * torch.Size(shape).numel() for name, shape in of.weights().items()}


@pytest.mark.parametrize("mlp", [MLP(48), MoE(6, 2, 16), MoE(4, 3, 16, shared=8)])
@pytest.mark.parametrize("parallel_block", [None, "own"])
def test_operations_are_those_that_torch_counts(mlp: MLP | MoE, parallel_block: str | None) -> None:
    of = config(*[Block(HEADS, mlp, parallel=parallel_block)] * 2)
    model = Module(of).eval()
    ids = torch.arange(40)[None] % 96
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids, torch.arange(40)[None])
    found = parallel.forward(of, sizes(of), 40)
    attention = 2 * 2 * 40**2 * 4 * (8 + 8) / 2  # two layers: n² h (k + v) / 2 multiplications
    products = sum(n * s.flops for n, s in found.steps()) - attention - found.head.flops
    head = 2 * 40 * 96 * 32  # the model scores every token, prefill the last
    counted = counter.get_total_flops() - head
    assert counted - products in (0, 2 * attention)  # a kernel's, or with what the causal mask hides


def test_a_decoded_token_reads_each_weight_once_and_a_batch_no_more() -> None:
    of = config(*[Block(HEADS, MLP(48))] * 3)
    stored = sizes(of)
    one, many = parallel.forward(of, stored, 1, 50), parallel.forward(of, stored, 1, 50, 16)
    assert one.waits == many.waits == 3 * 5 + 1
    weights = sum(size for name, size in stored.items() if "norm" not in name)
    cache = of.bytes_per_token(2) * 51
    here = parallel.Machine(1e9, 1e9, 1, "F16")
    assert one.total(here)[1] == weights + cache
    assert many.total(here)[1] == weights + 16 * cache
    assert many.total(here)[0] == 16 * one.total(here)[0]


def test_a_prompt_reads_each_expert_at_most_once_and_a_token_those_that_it_chose() -> None:
    of = config(Block(HEADS, MoE(6, 2, 16)))
    stored = sizes(of)
    experts = sum(size for name, size in stored.items() if ".experts." in name)

    def read(tokens: int, after: int = 0) -> float:
        passed = parallel.forward(of, stored, tokens, after)
        return sum(step.bytes for _, step in passed.steps() if step.name.startswith("experts"))

    assert read(40) == read(3) == experts and read(1, 40) == experts * 2 / 6


def test_a_parallel_block_waits_less_and_a_latent_more() -> None:
    def waits(block: Block) -> int:
        of = config(block)
        return parallel.forward(of, sizes(of), 10).waits

    usual = waits(Block(HEADS, MLP(48)))
    assert waits(Block(HEADS, MLP(48), parallel="shared")) == usual - 2
    assert waits(Block(kind("mla").like(SIZES, {}), MLP(48))) == usual + 1
    assert waits(Block(HEADS, MoE(4, 2, 16))) == usual + 1


@pytest.mark.parametrize("name", ["linear", "gated_delta", "mamba2", "short_conv", "local", "dsa"])
def test_every_mechanism_has_its_steps(name: str) -> None:
    of = config(Block(kind(name).like(SIZES, {}), MLP(48)))
    for one in (parallel.forward(of, sizes(of), 20), parallel.forward(of, sizes(of), 1, 20)):
        assert all(step.flops > 0 and step.outputs > 0 for _, step in one.steps()), one


def test_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "The capital of France is", "--parallel", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    prompt, token, batch = found["passes"]
    layers = len(cutaway.load("smollm2").config.blocks)
    assert prompt["waits"] == token["waits"] == batch["waits"] == 5 * layers + 1
    assert (prompt["tokens"], token["after"], batch["sequences"]) == (5, 5, 16)
    assert found["machine"]["flops"] > 1e8 and found["machine"]["type"] in ("Q4_1", "float32")
    assert main(["explain", "a", "--parallel", "--backends"]) == 2
    assert "view of its own" in capsys.readouterr().err
