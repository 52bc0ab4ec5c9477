"""What attention looks at, against transformers' own: Llama 4's chunks, BigBird's blocks, Qwen2-VL's three
axes; tiny, random, every weight perturbed.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close

from cutaway.attention import chunked, gqa
from cutaway.attention.backends import blocked, naive, sdpa
from cutaway.attention.backends.inputs import AttentionInputs
from cutaway.attention.common.visibility import Positions, Random, Visibility
from cutaway.errors import UserError
from cutaway.layers.config import MLP, Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder as Config
from cutaway.model.decoder import Decoder
from cutaway.position import mrope, rope

WIDTH, VOCAB, LENGTH, CHUNK = 32, 61, 24, 7
NAMES = {
    "model.": "",
    "embed_tokens": "embedding",
    "layers.": "blocks.",
    "self_attn.": "attention.",
    "feed_forward.": "mlp.",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "mlp_norm",
    "lm_head": "head",
} | {f"{theirs}_proj": ours for theirs, ours in zip(
    ("q", "k", "v", "o", "gate", "up", "down"),
    ("query", "key", "value", "out", "gate", "up", "down"),
    strict=True,
)}  # fmt: skip
HF: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS: dict[str, Any] = {"heads": 4, "kv_heads": 2, "key_size": 8}


def _perturbed(module: nn.Module) -> Any:
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn_like(weight) * 0.3 + (weight.ndim == 1) * 0.7)
    return module.double().eval()


def _named(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _ours(config: Config, theirs: nn.Module) -> Decoder:
    """Ours with their weights. Those that they do not have, of norms without weights, stay ones."""
    model = Decoder(config).double().eval()
    taken = {_named(name): weight for name, weight in theirs.named_parameters()}
    missing, unknown = model.load_state_dict(taken, strict=False)
    assert not unknown and all("query_norm" in name or "key_norm" in name for name in missing)
    return model


def _ids() -> tuple[Tensor, Tensor]:
    ids = torch.randint(3, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(5))
    return ids, torch.arange(LENGTH).expand(2, -1)


@torch.no_grad()
@pytest.mark.parametrize("normed", [True, False])
def test_chunks_equal_llama4(normed: bool) -> None:
    """Three layers in chunks, and one that reads everything and has no position. Its norm of queries and keys
    has no weights and comes after they are mrope_config, which is the same: turning keeps a length.
    """
    hf = transformers.Llama4TextConfig(
        **HF, head_dim=8, num_hidden_layers=4, moe_layers=[], intermediate_size_mlp=40, use_qk_norm=normed,
        attention_chunk_size=CHUNK, attn_temperature_tuning=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    theirs = _perturbed(transformers.Llama4ForCausalLM(hf))
    norm = Norm(eps=1e-5) if normed else None
    near = chunked.Config(**HEADS, chunk=CHUNK, position=rope.Config(8, interleaved=True), qk_norm=norm)
    blocks = tuple(Block(attention, MLP(40)) for attention in (near, near, near, gqa.Config(**HEADS)))
    ours = _ours(Config(VOCAB, WIDTH, 64, blocks, tied=False), theirs)
    ids, pos = _ids()
    expected = theirs(ids).logits
    assert_close(ours(ids, pos), expected, rtol=1e-5, atol=1e-5)  # they turn in float32
    state, parts = ours.new_state(), []
    for start, end in ((0, 5), (5, 6), (6, 15), (15, LENGTH)):
        parts.append(ours(ids[:, start:end], pos[:, start:end], state))
    assert_close(torch.cat(parts, dim=1), expected, rtol=1e-5, atol=1e-5)
    wide = Block(gqa.Config(**HEADS, position=rope.Config(8, interleaved=True), qk_norm=norm), MLP(40))
    unchunked = _ours(Config(VOCAB, WIDTH, 64, (*(wide,) * 3, blocks[3]), tied=False), theirs)
    apart = (unchunked(ids, pos) - expected).abs().amax(-1)
    assert (apart[:, :CHUNK] < 1e-4).all() and (apart[:, CHUNK:] > 1e-3).all()


SIZE, BLOCKS = 4, 8
# One for each of blocks 1 to 6: none of its neighbours, not the first and not the last.
DRAWN = (4, 6, 5, 1, 2, 3)


@dataclass(frozen=True)
class Layout(Visibility):
    """BigBird's as an encoder: a block reads itself, its neighbours, the first and the last, which read all;
    and blocks that are drawn.
    """

    drawn: Random

    def sees(self, i: Tensor, j: Tensor) -> Tensor:
        i, j = i // SIZE, j // SIZE
        ends = (i == 0) | (j == 0) | (i == BLOCKS - 1) | (j == BLOCKS - 1)
        return ((i - j).abs() <= 1) | ends | self.drawn.sees(i * SIZE, j * SIZE)

    def may(self, i: Any, j: Any) -> Tensor:
        return (i.low == i.low) & (j.low == j.low)


class Given(Random):
    """Random blocks that are not drawn but given."""

    def _drawn(self, block: Tensor, n: int) -> Tensor:
        return torch.tensor((0, *DRAWN, 0))[block]


@torch.no_grad()
def test_random_blocks_equal_bigbird(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.big_bird import modeling_big_bird as bird

    hf = transformers.BigBirdConfig(
        hidden_size=WIDTH, num_attention_heads=4, num_random_blocks=1, block_size=SIZE,
        attention_type="block_sparse", num_hidden_layers=1, use_bias=False, max_position_embeddings=64,
    )  # fmt: skip
    theirs = _perturbed(bird.BigBirdBlockSparseAttention(hf))
    table = [torch.tensor(DRAWN)[:, None].numpy()] * 4
    monkeypatch.setattr(theirs, "_bigbird_block_rand_mask_with_head", lambda **_: table)
    length = SIZE * BLOCKS
    x = torch.randn(2, length, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    there = torch.ones(2, length, dtype=torch.float64)
    there[1, -3:] = 0
    blocks, band, rows, columns = bird.BigBirdModel.create_masks_for_block_sparse_attn(there, SIZE)
    expected = theirs(x, band, rows, columns, blocks, blocks)[0]
    q, k, v = (
        getattr(theirs, name)(x).unflatten(-1, (4, 8)).transpose(1, 2) for name in ("query", "key", "value")
    )
    positions = Positions(torch.where(there > 0, torch.arange(length), -1))
    inputs = AttentionInputs(
        q=q, k=k, v=v, query=positions, key=positions, visibility=Layout(Given(SIZE, 1, 0)), scale=8**-0.5
    )
    for path in (naive.attend, sdpa.attend, blocked.attend, lambda inputs: blocked.attend(inputs, SIZE)):
        ours = path(inputs).transpose(1, 2).flatten(2)
        assert_close(ours[0], expected[0])
        assert_close(ours[1, :-3], expected[1, :-3])


AXES = torch.tensor(
    [  # three words, an image of two by three pieces, four words, a film of two pictures of two by two, words
        [0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7, 8, 9, 10, 10, 10, 10, 11, 11, 11, 11, 12, 13, 14],
        [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7, 8, 9, 10, 10, 11, 11, 10, 10, 11, 11, 12, 13, 14],
        [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10, 11, 10, 11, 10, 11, 10, 11, 12, 13, 14],
    ]
)[:, None].expand(-1, 2, -1)


@torch.no_grad()
def test_three_axes_equal_qwen2_vl() -> None:
    parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 2, 1]}
    hf = transformers.Qwen2VLTextConfig(**HF, num_hidden_layers=3, rope_parameters=parameters)
    theirs = _perturbed(transformers.Qwen2VLTextModel(hf))
    mrope_config = mrope.Config(size=8, sections=(1, 2, 1))
    block = Block(gqa.Config(**HEADS, position=mrope_config, bias=True), MLP(48))
    ours = _ours(Config(VOCAB, WIDTH, 64, (block,) * 3), theirs)
    ids, pos = _ids()
    judged = theirs(ids, position_ids=AXES).last_hidden_state @ theirs.get_parameter("embed_tokens.weight").T
    whole = ours(ids, pos, axes=AXES)
    assert_close(whole, judged, rtol=1e-5, atol=1e-5)  # they count angles in float32
    assert (whole - ours(ids, pos)).abs().max() > 1e-3
    state, parts = ours.new_state(), []
    for start, end in ((0, 5), (5, 6), (6, 15), (15, LENGTH)):
        part = slice(start, end)
        parts.append(ours(ids[:, part], pos[:, part], state, axes=AXES[..., part]))
    assert_close(torch.cat(parts, dim=1), whole, rtol=1e-9, atol=1e-9)
    text = pos.expand(3, -1, -1)
    assert torch.equal(ours(ids, pos, axes=text), ours(ids, pos))


def test_axes_that_mean_nothing_are_refused() -> None:
    ids, pos = _ids()
    mrope_config = mrope.Config(size=8, sections=(1, 2, 1))
    model = Decoder(Config(VOCAB, WIDTH, 64, (Block(gqa.Config(**HEADS, position=mrope_config), MLP(8)),)))
    with pytest.raises(UserError, match="3 sections need as many axes, not 2"):
        model(ids, pos, axes=AXES[:2])
    plain = Decoder(Config(VOCAB, WIDTH, 64, (Block(gqa.Config(**HEADS, position=rope.Config(8)), MLP(8)),)))
    with pytest.raises(UserError, match="axes are for M-RoPE"):
        plain(ids, pos, axes=AXES)
