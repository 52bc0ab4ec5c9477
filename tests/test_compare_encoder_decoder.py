"""An encoder-decoder as an arm: rows, steps against a plain loop, budget, folder, a stopped run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import cutaway
from cutaway.attention import gqa, linear, mha
from cutaway.compare import arms, report, sweep
from cutaway.compare.arms import Arm, Experiment
from cutaway.compare.encoder_decoder import with_encoder
from cutaway.compare.tasks import copying, parity, reversal
from cutaway.errors import UserError
from cutaway.hooks import tracing
from cutaway.layers.config import MLP
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, EncoderDecoder
from cutaway.model.decoder import initialise
from cutaway.model.seq2seq import TransformerSeq2Seq
from cutaway.position import alibi, learned, rope, sinusoidal
from cutaway.train.flops import per_token
from cutaway.train.trainable import SOURCE
from cutaway.train.training import Training

TASK = reversal.Config(5, 6)
ARM = Arm("both", ("layers=1",), encoder=2)


def decoder(attention: Any = None, position: Any = None) -> Decoder:
    """Two blocks, 16 wide."""
    block = Block(attention or mha.Config(heads=2, key_size=8), MLP(24))
    return Decoder(TASK.vocab, 16, TASK.context, (block,) * 2, position=position)


def experiment(**settings: Any) -> Experiment:
    """A decoder and an encoder-decoder, for seconds."""
    chosen: dict[str, Any] = {"steps": 4, "trial_steps": 4, "batch_size": 4, "seeds": 1, "test": 8}
    chosen |= {"learning_rates": (0.01,), "model": decoder(position=sinusoidal.Config())} | settings
    return Experiment(TASK, arms=(Arm("decoder"), ARM), **chosen)


def training(steps: int = 4) -> Training:
    """A run of the encoder-decoder before its first step."""
    run = arms.run_of(experiment(), ARM, 0.01, steps, 3)
    return Training(run, arms.ready(run, Path(), print), note=lambda _: None)


def rows(training: Training, source: Any, first: int, count: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Sources, inputs and targets of a task's rows, one by one, each [1 5]."""
    for n in range(first, first + count):
        ids = torch.from_numpy(replace(source, source=0).row(n).ids)
        last = torch.from_numpy(replace(source, source=0).row(n).targets)[:, -1:]
        text, answer = ids[:, :5], torch.cat((ids[:, 6:], last), 1)
        assert answer.tolist()[0] == text.tolist()[0][::-1]
        yield text, torch.cat((torch.zeros_like(text[:, :1]), answer[:, :-1]), 1), answer


PLACES = torch.arange(5)[None]


def test_a_source_and_what_follows_it_are_the_row_that_a_decoder_reads():
    whole, apart = arms.Rows(TASK, 7, 0).batch(2, 3), arms.Rows(TASK, 7, 0, 5).batch(2, 3)
    source = apart.extra[SOURCE]
    assert source.shape == apart.ids.shape == (3, 5) and not whole.extra
    assert [*source[1], *apart.ids[1]] == whole.ids[1].tolist()
    assert apart.targets[1].tolist() == source[1][::-1].tolist() and not apart.ids[:, 0].any()
    assert apart.loss_weights.sum() == whole.loss_weights.sum() == 15
    assert (apart.pos == PLACES.numpy()).all()


def test_two_steps_are_those_of_a_plain_loop():
    ours = training()
    torch.manual_seed(ours.run.seed)
    model = TransformerSeq2Seq(ours.run.model)  # type: ignore[arg-type]
    model.encoder.apply(initialise)
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    assert all(0.01 < weight.std() < 0.03 for weight in matrices)  # in both halves
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    for step in range(2):
        losses = [
            cross_entropy(model(text, PLACES, given, PLACES)[0], answer[0])
            for text, given, answer in rows(ours, ours.data.train, 4 * step, 4)
        ]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * ours.run.schedule.factor(step, 4)
        optimizer.step()
        found = ours.advance()
        assert found["loss"] == pytest.approx(loss.item(), rel=1e-6)
        assert found["gradient_norm"] == pytest.approx(norm.item(), rel=1e-5)
    theirs = dict(model.named_parameters())
    assert theirs.keys() == dict(ours.model.named_parameters()).keys() == ours.run.model.weights().keys()
    for name, weight in ours.model.named_parameters():
        assert_close(weight, theirs[name], rtol=1e-5, atol=2e-6, msg=name)


def test_the_score_is_of_the_targets_given_all_before_them():
    ours = training()
    ours.advance()
    found = ours.evaluate(9)
    loss = right = 0.0
    for text, given, answer in rows(ours, ours.data.validation.rows, 0, 9):  # type: ignore[union-attr]
        logits = ours.model.eval()(text, PLACES, given, PLACES)[0].detach()
        loss += cross_entropy(logits, answer[0], reduction="sum").item()
        right += (logits.argmax(-1) == answer[0]).sum().item()
    assert found["validation_loss"] == pytest.approx(loss / 45, rel=1e-6)
    assert found["validation_accuracy"] == pytest.approx(right / 45)
    assert "validation_induction" not in found


@pytest.mark.parametrize("position", [None, learned.Config(TASK.context), sinusoidal.Config()])
def test_both_halves_have_the_decoders_parts(position: Any):
    attention = gqa.Config(heads=4, kv_heads=2, key_size=4, position=rope.Config(4))
    made = with_encoder(decoder(attention, position), 3, 5, 4)
    reader, writer = made.encoder, made.decoder
    assert (len(reader.blocks), len(writer.blocks), made.shared) == (3, 2, True)
    assert (reader.context, writer.context, reader.vocab) == (5, 4, writer.vocab)
    mixers: list[Any] = [reader.blocks[0].attention, writer.blocks[0].attention, writer.blocks[0].cross]
    assert {(each.heads, each.groups, each.key_size) for each in mixers} == {(4, 2, 4)}
    assert [each.position for each in mixers] == [rope.Config(4), rope.Config(4), None]
    sizes = {learned.Config: (learned.Config(5), learned.Config(4))}
    assert (reader.position, writer.position) == sizes.get(type(position), (position, position))
    model = TransformerSeq2Seq(made)
    ids = torch.ones(1, 5, dtype=torch.long)
    assert model(ids, PLACES, ids[:, :4], PLACES[:, :4]).shape == (1, 4, TASK.vocab)


def test_an_encoder_decoder_has_the_budget_and_its_own_price():
    made = experiment()
    one, both = (arms.model_of(made, arm) for arm in made.arms)
    assert isinstance(both, EncoderDecoder) and len(both.encoder.blocks) == 2
    assert abs(arms.parameters(both) - arms.parameters(one)) <= 3 * 3 * 16 / 2
    assert per_token(both) < per_token(one)
    assert report._state(both, 10, 5) == 2 * 16 * (5 + 5) and report._state(one, 10, 5) == 2 * 2 * 16 * 10
    assert report._state(both, 9, 6) == 2 * 16 * (3 + 6)

    longer = with_encoder(decoder(), 3, 6, 4)
    source, target = torch.ones(2, 6, dtype=torch.long), torch.ones(2, 4, dtype=torch.long)
    places = torch.arange(6).expand(2, -1)
    with FlopCounterMode(display=False) as counter:  # which counts no attention: it is one kernel
        TransformerSeq2Seq(longer)(source, places, target, places[:, :4]).sum().backward()
    heads = 12 * 16 * (6 * 3 * 6 + 4 * 2 * (4 / 2 + 6))  # three layers read all, two write and look across
    assert per_token(longer) == pytest.approx((counter.get_total_flops() / 2 + heads) / 10)


def test_a_run_that_was_stopped_ends_with_the_same_table_and_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = experiment()
    advance, count = Training.advance, 0

    def stopped(self: Training) -> dict[str, float]:
        nonlocal count
        count += isinstance(self.run.model, EncoderDecoder)
        if count == 4:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(Training, "advance", stopped)
    with pytest.raises(KeyboardInterrupt):
        sweep.run_sweep(made, tmp_path / "a", lambda _: None)
    monkeypatch.setattr(Training, "advance", advance)
    saved = tmp_path / "a/both/0.01-4-0/checkpoints"
    assert [path.name for path in saved.iterdir()] == ["step-00000003"]
    resumed, whole = (sweep.run_sweep(made, tmp_path / name, lambda _: None) for name in ("a", "b"))
    found = [report.save(made, resumed, tmp_path / "a"), report.document(made, whole, tmp_path / "a")]
    for arm in (arm for one in found for arm in one["arms"].values()):
        del arm["tokens_per_second"]
    assert found[0] == found[1]

    own = found[0]["arms"]["both"]
    lm = cutaway.load(tmp_path / "a" / own["runs"][0])
    written = lm.generate("1 2 3 4 5", max_tokens=3, temperature=0).ids
    given, source = torch.zeros(1, 1, dtype=torch.long), torch.tensor([[1, 2, 3, 4, 5]])
    for _ in range(3):
        next_ = lm.model(source, PLACES, given, torch.arange(given.shape[1])[None])[:, -1:].argmax(-1)
        given = torch.cat((given, next_), 1)
    assert list(written) == given[0, 1:].tolist()
    with pytest.raises(UserError, match="is an encoder-decoder: `generate` reads a source"):
        lm.logits([1, 2])
    looks = found[0]["attention"]["both"]
    assert list(looks) == ["0.0", "0.1"] and all(len(heads) == 5 for heads in looks.values())
    row = arms.Rows(TASK, arms.number(0, "held out"), 1, 5).row(0)
    texts = torch.from_numpy(row.extra[SOURCE]), PLACES, torch.from_numpy(row.ids), PLACES
    with torch.no_grad(), tracing(lm.model, "*.pattern") as seen:
        lm.model(*texts)
    across = seen["decoder.blocks.0.cross.pattern"][0, :, -1]
    assert_close(torch.tensor(list(looks.values())), across, atol=1e-4, rtol=0)
    assert json.loads((tmp_path / "a/results.json").read_text())["arms"]["both"]["params"] == own["params"]
    assert arms.read_experiment(str(tmp_path / "a" / report.EXPERIMENT)) == made


def test_what_cannot_be_an_encoder_decoder_is_refused():
    made = replace(experiment(), task=parity.Config(5))
    with pytest.raises(UserError, match="arm both: the rows of parity have no source apart"):
        arms.model_of(made, ARM)
    assert copying.Config(5, 6).source == 5
    for attention in (
        linear.Config(heads=2, key_size=8),
        mha.Config(heads=2, key_size=8, relative=alibi.Config()),
    ):
        with pytest.raises(UserError, match="mha, gqa, mqa without relative positions"):
            with_encoder(decoder(attention), 1, 5, 5)
