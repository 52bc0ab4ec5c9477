"""The encoder-decoders: written word by word they say what they say with the target given, padding changes
nothing, the future cannot change the past, what they look at can be watched and edited, and they learn to
reverse.
"""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from cutaway.attention import bahdanau, luong
from cutaway.errors import UserError
from cutaway.hooks import tracing
from cutaway.layers.config import MLP, Norm
from cutaway.model.config_dict import from_dict, to_dict
from cutaway.model.seq2seq import Recurrent, TransformerSeq2Seq, transformer

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
BEGIN, END, WORDS, TARGET = 0, 1, 11, 12
SIZES = {"source": WORDS, "target": TARGET, "width": 10, "hidden": 12}
CASES: dict[str, Any] = {
    "one vector": Recurrent(**SIZES),
    "bahdanau": Recurrent(**SIZES, attention=bahdanau.Config(size=6)),
    "luong dot": Recurrent(**SIZES, attention=luong.Config(score="dot")),
    "luong general": Recurrent(**SIZES, attention=luong.Config()),
    "luong concat local": Recurrent(**SIZES, attention=luong.Config(score="concat", window=2)),
    "transformer": transformer(
        source=WORDS, target=TARGET, width=12, layers=2, heads=2, mlp=MLP(16), norm=Norm("layer")
    ),
}
ALIGNED = [case for case in CASES if case not in ("one vector", "transformer")]


def _built(config: Any) -> Any:
    return config.build() if isinstance(config, Recurrent) else TransformerSeq2Seq(config)


def _model(case: str) -> Any:
    torch.manual_seed(0)
    model = _built(CASES[case]).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return model


def _text(batch: int, length: int, words: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, words, (batch, length), generator=generator)
    return ids, torch.arange(length).expand(batch, -1)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cuts", [[1, 2, 3, 4, 5, 6], [3], [1, 5]])
def test_word_by_word_is_teacher_forcing(case: str, cuts: list[int]) -> None:
    model = _model(case)
    source, target = _text(2, 5, WORDS), _text(2, 7, TARGET, seed=1)
    whole = model(*source, *target)
    assert whole.shape == (2, 7, TARGET)
    state = model.start(*source)
    parts = [
        model.read(target[0][:, a:b], target[1][:, a:b], state)
        for a, b in zip([0, *cuts], [*cuts, 7], strict=True)
    ]
    assert_close(torch.cat(parts, dim=1), whole, **TIGHT)
    assert state.length == 7


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_the_future_cannot_change_the_past_but_the_source_can(case: str) -> None:
    model = _model(case)
    source, (ids, pos) = _text(1, 5, WORDS), _text(1, 7, TARGET, seed=1)
    before = model(*source, ids, pos)
    changed = ids.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % TARGET
    after = model(*source, changed, pos)
    assert_close(after[:, :4], before[:, :4], **TIGHT)
    assert (after[:, 4:] - before[:, 4:]).abs().max() > 1e-3
    for word in range(5):
        other = source[0].clone()
        other[:, word] = (other[:, word] + 1) % WORDS
        assert (model(other, source[1], ids, pos) - before).abs().max() > 1e-6


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_padding_changes_nothing(case: str) -> None:
    model = _model(case)
    (source, source_pos), (ids, pos) = _text(1, 5, WORDS), _text(1, 6, TARGET, seed=1)
    plain = model(source, source_pos, ids, pos)
    for positions in ([-1, -1, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, -1], [0, -1, 1, 2, -1, 3, 4]):
        where = torch.tensor(positions)[None]
        padded = torch.where(where >= 0, source.gather(1, where.clamp(min=0)), 3)
        assert_close(model(padded, where, ids, pos), plain, **TIGHT)
    where = torch.tensor([-1, 0, 1, -1, 2, 3, 4, 5])[None]
    padded = torch.where(where >= 0, ids.gather(1, where.clamp(min=0)), 3)
    out = model(source, source_pos, padded, where)
    assert_close(out[where >= 0][None], plain, **TIGHT)
    assert out.isfinite().all()
    assert model(source, torch.full_like(source_pos, -1), ids, pos).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_a_snapshot_is_not_touched(case: str) -> None:
    model = _model(case)
    source, (ids, pos) = _text(2, 5, WORDS), _text(2, 6, TARGET, seed=1)
    state = model.start(*source)
    model.read(ids[:, :3], pos[:, :3], state)
    kept = state.snapshot()
    expected = model.read(ids[:, 3:], pos[:, 3:], state)
    assert kept.length == 3
    assert_close(model.read(ids[:, 3:], pos[:, 3:], kept), expected, **TIGHT)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_watching_changes_nothing(case: str) -> None:
    model = _model(case)
    texts = (*_text(2, 5, WORDS), *_text(2, 6, TARGET, seed=1))
    with tracing(model) as seen:
        watched = model(*texts)
    assert_close(watched, model(*texts), **TIGHT)
    assert "logits" in seen
    patterns = [name for name in seen if name.endswith("pattern")]
    assert bool(patterns) == (case != "one vector")
    if "local" not in case:
        for name in patterns:
            assert_close(seen[name].sum(-1), torch.ones_like(seen[name].sum(-1)))


@torch.no_grad()
@pytest.mark.parametrize("case", ALIGNED)
def test_where_it_looks_can_be_changed(case: str) -> None:
    model = _model(case)
    texts = (*_text(2, 5, WORDS), *_text(2, 6, TARGET, seed=1))
    with tracing(model, "writer.pattern") as seen:
        plain = model(*texts)
    assert seen["writer.pattern"].shape == (2, 6, 5)
    first = torch.zeros(2, 1, 5, dtype=torch.float64)
    first[..., 0] = 1
    with tracing(model, "writer.pattern", edit={"writer.attention.pattern": lambda _: first}) as seen:
        edited = model(*texts)
    assert (edited - plain).abs().max() > 1e-3
    assert torch.equal(seen["writer.pattern"], first.expand(-1, 6, -1))


@pytest.mark.parametrize("case", CASES)
def test_config_and_weights_round_trip(case: str) -> None:
    config, model = CASES[case], _model(case)
    assert from_dict(to_dict(config), type(config)) == config
    copy = _built(config).double()
    copy.load_state_dict(model.state_dict())
    texts = (*_text(2, 5, WORDS), *_text(2, 6, TARGET, seed=1))
    assert torch.equal(copy(*texts), model(*texts))
    model(*texts).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def _reversals(batch: int, length: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    words = torch.randint(2, WORDS, (batch, length), generator=generator)
    return words, words.flip(1)


def _learned(config: Any, steps: int) -> tuple[Any, float]:
    """Trained to reverse four words; the model, and its loss in the end."""
    torch.manual_seed(0)
    model = _built(config)
    generator = torch.Generator().manual_seed(5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=steps)
    pos, target_pos = torch.arange(4).expand(32, -1), torch.arange(5).expand(32, -1)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        words, answer = _reversals(32, 4, generator)
        inputs = torch.nn.functional.pad(answer, (1, 0), value=BEGIN)
        wanted = torch.nn.functional.pad(answer, (0, 1), value=END)
        loss = cross_entropy(model(words, pos, inputs, target_pos).flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        slower.step()
    return model, float(loss.detach())


@torch.no_grad()
def _written(model: Any, words: torch.Tensor) -> torch.Tensor:
    """The words that follow greedily."""
    state = model.start(words, torch.arange(words.shape[1]).expand(words.shape))
    ids = torch.full((words.shape[0], 1), BEGIN)
    out = []
    for t in range(words.shape[1] + 1):
        ids = model.read(ids, torch.full_like(ids, t), state).argmax(-1)
        out.append(ids)
    return torch.cat(out, dim=1)


WORDS_TO = {"source": WORDS, "target": TARGET}
LEARNERS: dict[str, Any] = {
    "bahdanau": Recurrent(**WORDS_TO, width=24, hidden=32, attention=bahdanau.Config(size=24)),
    "luong": Recurrent(**WORDS_TO, width=24, hidden=48, attention=luong.Config()),
    "transformer": transformer(**WORDS_TO, width=32, layers=1, heads=2, mlp=MLP(64)),
}


@pytest.mark.parametrize("case", LEARNERS)
def test_it_learns_to_reverse(case: str) -> None:
    model, loss = _learned(LEARNERS[case], steps=150)
    assert loss < 0.02
    words, answer = _reversals(200, 4, torch.Generator().manual_seed(77))
    written = _written(model, words)
    assert (written[:, :-1] == answer).all(1).float().mean() > 0.95
    assert (written[:, -1] == END).float().mean() > 0.95


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="each direction has half"):
        Recurrent(source=3, target=3, width=4, hidden=5)
    with pytest.raises(UserError, match="a multiple of heads"):
        transformer(source=3, target=3, width=6, layers=1, heads=4, mlp=MLP(4))
    with pytest.raises(UserError, match="width"):
        transformer(source=3, target=3, width=9, layers=1, heads=3, mlp=MLP(4))
    for none in (0, -2):
        with pytest.raises(UserError, match=f"heads is {none}"):
            transformer(source=3, target=3, width=4, layers=1, heads=none, mlp=MLP(4))
