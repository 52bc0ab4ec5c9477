"""Training an EAGLE-3 head: the module computes what the runtime drafts, the loss is that of each text alone,
and only the head is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cutaway import native
from cutaway.errors import UserError
from cutaway.runtime.draft_heads import EagleHead
from cutaway.runtime.engine import RuntimeEngine
from cutaway.train.eagle3_head import Eagle3Head
from cutaway.train.objectives import eagle3 as objective
from cutaway.train.trainable import Trainable, TrainingBatch
from cutaway.weights import eagle3
from tests import test_runtime as tiny
from tests.test_draft_heads import IDS, SCORED, folder_of, target

needs_core = pytest.mark.skipif(native.unavailable_reason() is not None, reason="the core is not built")
CLOSE = 4e-3  # the runtime keeps keys and values as halves


@needs_core
@pytest.mark.parametrize("form", ["safeailab", "speculators"])
def test_what_training_unrolls_is_what_the_runtime_drafts(form: str, tmp_path: Path):
    """At each position, three tokens on: the hidden states of the head's own chain."""
    folder, _ = folder_of(tmp_path, form)
    of, entries = target()
    engine = RuntimeEngine(of, entries, 1)
    head = EagleHead(engine, of, entries, eagle3.read(folder))
    module = Eagle3Head(eagle3.read(folder), eagle3.weights(folder))
    _, values = engine.observe([IDS], [engine.new_state()], head.watches)
    streams = torch.from_numpy(np.concatenate([values[name] for name in head.watches], axis=1))[None]
    table = tiny.formats.unpack(entries["embedding.weight"]) if module.table is None else module.table.numpy()
    length, steps = len(IDS) - 3, 3
    embedded = [torch.from_numpy(table[IDS[1 + k : 1 + k + length]])[None] for k in range(steps)]
    pos = torch.arange(length)[None]
    with torch.no_grad():
        found = module.unrolled(
            embedded, streams[:, :length], pos, torch.ones(1, length, length).tril().bool()
        )
    hidden = head.hidden(head.seen(values))
    for at in (0, 1, 30, length - 1):
        state = head.new_state()
        logits, last = head.read([(IDS[1 : at + 2], hidden[: at + 1])], [state])
        for k in range(steps):
            own = found[k][0, at]
            assert np.abs(own.numpy() - last[-1]).max() < CLOSE * float(own.abs().max())
            scores = logits[0] - np.logaddexp.reduce(logits[0].astype(np.float64))
            with torch.no_grad():
                assert np.allclose(module.log_probs(own[None])[0].numpy(), scores, atol=0.05)
            if k + 1 < steps:
                logits, last = head.read([([IDS[at + 2 + k]], last[-1:])], [state])


def trainable(tmp_path: Path) -> tuple[Trainable, objective.Config]:
    folder, _ = folder_of(tmp_path, "safeailab")
    of, entries = target()
    config = objective.Config(head=str(folder), chunk_size=7)
    model = tiny.definition(of, entries).model
    config.attach(model)
    return Trainable(model, config, torch.zeros(of.vocab)), config


def batch_of(texts: list[list[int]], prompts: list[int]) -> TrainingBatch:
    """One row with these texts side by side, of which the first so many ids are prompts."""
    ids = torch.tensor([[id for text in texts for id in text]])
    pos = torch.tensor([[n for text in texts for n in range(len(text))]])
    documents = torch.tensor([[number for number, text in enumerate(texts) for _ in text]])
    weights = [
        float(prompt - 1 <= n < len(text) - 1)
        for text, prompt in zip(texts, prompts, strict=True)
        for n in range(len(text))
    ]
    targets = ids.roll(-1, 1)
    return TrainingBatch(ids, targets, pos, documents, torch.tensor([weights]), sum(weights))


def test_texts_side_by_side_have_the_loss_of_each_alone(tmp_path: Path):
    made, _ = trainable(tmp_path)
    texts, prompts = [IDS[:17], IDS[20:45], IDS[45:64]], [5, 1, 12]
    alone = [
        made(batch_of([text, [1, 2, 3]], [prompt, 3])) for text, prompt in zip(texts, prompts, strict=True)
    ]
    together, report = made(batch_of([*texts, [1, 2, 3]], [*prompts, 3]))
    assert together.item() == pytest.approx(sum(loss.item() for loss, _ in alone), rel=1e-5)
    for name, value in report.items():
        assert float(value) == sum(float(sums[name]) for _, sums in alone)


def test_the_loss_is_the_mean_divergence_by_hand(tmp_path: Path):
    """Of one text, token by token in float64: the model's distribution over the ids that the head scores."""
    made, config = trainable(tmp_path)
    text, prompt = IDS[:20], 4
    loss, report = made(batch_of([text, [1, 2, 3]], [prompt, 3]))
    model: Any = made.decoder
    head: Any = model.get_submodule(objective.OF_DRAFT)
    ids, pos = torch.tensor([text]), torch.arange(len(text))[None]
    with torch.no_grad():
        logits = model(ids, pos)[0, :, torch.from_numpy(head.ids)].double()
        states = streams_of(model, head, ids, pos)
        n = len(text)
        embedded = [model.embedding(torch.tensor([[*text, 1, 2, 3][1 + k : 1 + k + n]])) for k in range(3)]
        visible = torch.ones(1, n, n).tril().bool()
        drafted = head.unrolled(embedded, states, pos, visible)
        wanted, agreed = 0.0, [0, 0, 0]
        for k in range(3):
            own = head.log_probs(drafted[k][0]).double()
            for at in range(n):
                if prompt - 1 <= at + 1 + k < n - 1:  # the next token is one of the answer
                    theirs = logits[at + 1 + k].log_softmax(-1)
                    wanted += config.decay**k * float((theirs.exp() * (theirs - own[at])).sum())
                    agreed[k] += int(theirs.argmax() == own[at].argmax())
    assert loss.item() == pytest.approx(wanted, rel=1e-4) and wanted > 1
    assert [float(report[f"agreement_{k}"]) for k in (1, 2, 3)] == agreed


def streams_of(model: Any, head: Any, ids: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
    from cutaway.hooks import tracing

    names = head.watches(len(model.blocks))
    with tracing(model, *names) as seen:
        model(ids, pos)
    return torch.cat([seen[name] for name in names], dim=-1)


def test_only_the_head_is_trained_and_written_as_it_was_read(tmp_path: Path):
    made, config = trainable(tmp_path)
    trained = {name for name, p in made.model.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith("draft_head.") for name in trained)
    loss, _ = made(batch_of([IDS[:20], [1, 2, 3]], [4, 3]))
    loss.backward()
    grads = {name: p.grad for name, p in made.model.named_parameters() if p.requires_grad}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads.values()), "all of it is reached"
    (tmp_path / "run").mkdir()
    config.save(made.decoder, tmp_path / "run")
    assert eagle3.is_head(tmp_path / "run")
    back, was = eagle3.read(tmp_path / "run"), eagle3.read(tmp_path / "safeailab")
    assert back.config == was.config and back.ids is not None and was.ids is not None
    assert np.array_equal(back.ids, was.ids) and len(back.ids) == SCORED
    for name in was.tensors:
        one, other = (tiny.formats.unpack(head.tensors[name]) for head in (back, was))
        assert np.allclose(one, other, rtol=2**-8), "matrices are stored as BF16"


@pytest.mark.parametrize(
    ("head", "printed"), [("", "names no folder"), ("nowhere", "nowhere: give the folder of")]
)
def test_a_run_without_a_head_is_refused(head: str, printed: str):
    of, entries = target()
    with pytest.raises(UserError, match=printed):
        objective.Config(head=head).attach(tiny.definition(of, entries).model)


@needs_core
def test_a_head_in_eight_bits_is_nearly_the_head(tmp_path: Path):
    folder, _ = folder_of(tmp_path, "safeailab")
    of, entries = target()
    read = eagle3.read(folder)
    assert eagle3.in_eight_bits(read).fc.type == "F32", "rows of 150 columns are no whole groups"
    wide = eagle3.Packed(
        "F32", (3, 64), np.linspace(-1, 1, 192, dtype=np.float32).reshape(3, 64).view(np.uint8)
    )
    import dataclasses

    packed = eagle3.in_eight_bits(dataclasses.replace(read, fc=wide))
    assert packed.fc.type == "Q8_0"
    assert np.abs(tiny.formats.unpack(packed.fc) - tiny.formats.unpack(wide)).max() < 1 / 127
    EagleHead(RuntimeEngine(of, entries, 1), of, entries, eagle3.in_eight_bits(read))
