"""Activations of a prompt, and edits, in the scheduler's batch: to the bit what each gives alone."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import cutaway
from cutaway import native
from cutaway.errors import UserError
from cutaway.generate.batch.observation import Observation
from cutaway.generate.batch.request import Request, RequestCancelledError
from cutaway.generate.batch.scheduler import Scheduler
from cutaway.generate.decode import finish
from cutaway.generate.sampling_params import SamplingParams
from cutaway.inspect.edits import Ablate, Add
from cutaway.lm import LanguageModel
from cutaway.model.engine import PyTorchEngine
from tests import test_explain_kinds
from tests.small import model_file

pytestmark = pytest.mark.skipif(not native.available(), reason="the runtime is not built here")
VECTOR = np.random.default_rng(3).normal(size=32).tolist()
EDITS = [Add(0, VECTOR, strength=4.0), Ablate(1, "head", 2)]
PARAMS = SamplingParams(max_tokens=6, ignore_eos=True)
NAMES = ["embed", "blocks.0.attention.q", "blocks.1.attention.pattern", "blocks.2.mlp.hidden", "blocks.2.out"]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return cutaway.load(model_file(tmp_path_factory.mktemp("model") / "tiny.gguf"))


@pytest.fixture
def scheduler(lm: LanguageModel) -> Iterator[Scheduler]:
    made = Scheduler(lm.engine, lm.tokenizer, prefill_chunk=48)
    yield made
    made.close()


def text(seed: int, count: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(1, 250, count).tolist())


def alone(lm: LanguageModel, ids: tuple[int, ...], edit: Any = None) -> tuple[Any, Any]:
    """The values and the logits of one text by the engine itself."""
    engine: Any = lm.engine
    state = engine.new_state() if edit is None else engine.edited_state(edit)
    logits, found = engine.observe([list(ids)], [state], NAMES, range(len(ids)))
    return found, logits


def together(scheduler: Scheduler, requests: list[Request]) -> list[Any]:
    with scheduler.paused():  # all of them before the first step
        streams = [scheduler.submit(one) for one in requests]
    return [finish(stream) for stream in streams]


def test_what_is_seen_in_a_batch_is_what_is_seen_alone(lm: LanguageModel, scheduler: Scheduler) -> None:
    """Prompts that are read in several steps, beside others with edits, internals and neither."""
    prompts = [text(n, length) for n, length in enumerate((100, 37, 130, 100))]
    hooks: Any = lm.edited_engine(EDITS, prompts[0]).hooks
    wanted = [[0, 3, 64, 99], [36], list(range(130)), [50, 51]]
    edits = [hooks, None, None, hooks]
    seen = [Observation([*NAMES, "logits"], positions) for positions in wanted]
    requests = [
        Request(ids, PARAMS, edit=edit, observation=one)
        for ids, edit, one in zip(prompts, edits, seen, strict=True)
    ]
    beside = [
        Request(prompts[1], PARAMS),
        Request(prompts[2], PARAMS),
        Request(prompts[0], PARAMS, edit=hooks),
    ]
    *others, first, _, third, _ = together(scheduler, [*beside, *requests])
    for ids, edit, positions, one in zip(prompts, edits, wanted, seen, strict=True):
        values, logits = alone(lm, ids, edit)
        for name in NAMES:
            for row, at in zip(one.rows[name], positions, strict=True):
                assert np.array_equal(row, values[name][at]), (name, at)
        assert np.array_equal(np.stack(one.rows["logits"]), logits[positions])
        assert one.logits is not None and np.array_equal(one.logits, logits[-1])
    assert first.ids == others[2].ids and third.ids == others[1].ids
    assert first.ids != together(scheduler, [Request(prompts[0], PARAMS)])[0].ids, "the edits change it"
    expected = lm.generate(prompts[0], max_tokens=6, ignore_eos=True, edit=EDITS)
    assert first.ids == expected.ids and first.logprobs == expected.logprobs


def test_pages_before_what_is_asked_for_are_shared(lm: LanguageModel) -> None:
    scheduler, ids = Scheduler(lm.engine, lm.tokenizer), text(5, 400)
    together(scheduler, [Request(ids, PARAMS)])
    read = scheduler.stats().cached_tokens
    late, early, first = (Observation(NAMES, positions) for positions in ([300, 399], [130], [127]))
    together(scheduler, [Request(ids, PARAMS, observation=late)])
    assert scheduler.stats().cached_tokens - read == 256
    together(scheduler, [Request(ids, PARAMS, observation=early)])
    assert scheduler.stats().cached_tokens - read == 256 + 128
    together(scheduler, [Request(ids, PARAMS, observation=first)])
    assert scheduler.stats().cached_tokens - read == 256 + 128, "the first page has the position itself"
    scheduler.close()
    values, _ = alone(lm, ids)
    for one, positions in ((late, [300, 399]), (early, [130]), (first, [127])):
        for name in NAMES:
            assert all(
                np.array_equal(row, values[name][at])
                for row, at in zip(one.rows[name], positions, strict=True)
            )


def test_what_is_selected_is_all_that_is_kept(
    lm: LanguageModel, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No array of a step is held on to; no step is longer than was asked for, and its values are not computed
    where none is asked for.
    """
    one = Observation(["blocks.0.attention.q", "blocks.2.out"], [7, 90], lambda name, row: row[:1], chunk=16)
    engine: Any = scheduler.engine
    steps, read, watch = [], engine.read, engine.watch_values
    monkeypatch.setattr(
        engine, "read", lambda texts, *more: steps.append(len(texts[0])) or read(texts, *more)
    )
    monkeypatch.setattr(
        engine, "watch_values", lambda texts, *more: steps.append(-len(texts[0])) or watch(texts, *more)
    )
    together(scheduler, [Request(text(1, 100), PARAMS, observation=one)])
    assert steps == [-16, 16, 16, 16, 16, -16, 4, *[1] * 5]
    assert [row.shape for row in one.rows["blocks.0.attention.q"]] == [(1, 8)] * 2
    assert all(row.base is None for rows in one.rows.values() for row in rows)


def test_a_cancelled_request_frees_its_pages(lm: LanguageModel) -> None:
    """With edits and an observation, while it is read and while it decodes; and it is counted."""
    scheduler = Scheduler(lm.engine, lm.tokenizer, prefill_chunk=16)
    hooks = lm.edited_engine(Add(0, VECTOR), [1] * 300).hooks
    request = Request(text(2, 300), SamplingParams(max_tokens=200, ignore_eos=True), edit=hooks)
    begun = threading.Event()
    for published in (0, 1):
        seen = Observation(NAMES, range(300))
        stream = scheduler.submit(Request(**{**vars(request), "observation": seen}))
        if published:
            stream.subscribe(lambda event: begun.set())
            assert begun.wait(30)
        stream.cancel()
        with pytest.raises(RequestCancelledError):
            finish(stream)
        assert scheduler.stats().pages_used == 0
    stats = scheduler.stats()
    assert (stats.cancelled, stats.running, stats.finished) == (2, 0, 0) and stats.prompt_tokens >= 300
    scheduler.close()


def test_an_engine_that_shows_nothing_says_so(lm: LanguageModel) -> None:
    class Blind(type(lm.pytorch)):
        watch_values: Any = None

        def __getattribute__(self, name: str) -> Any:
            if name == "watch_values":
                raise AttributeError(name)
            return super().__getattribute__(name)

    scheduler = Scheduler(Blind(lm.pytorch.model), lm.tokenizer)
    with pytest.raises(UserError, match="shows no activations of a text beside others"):
        scheduler.submit(Request(text(1, 5), PARAMS, observation=Observation(["embed"], [0])))
    scheduler.close()


def test_the_pytorch_model_shows_what_it_shows_alone(lm: LanguageModel) -> None:
    """Of prompts of several steps beside others: the values that one pass over each text has."""
    ids, other = text(1, 600), text(2, 40)
    longer = replace(lm.checkpoint, config=replace(lm.checkpoint.config, context=1024))
    small = LanguageModel(longer, engine="pytorch")
    seen = Observation([*NAMES, "blocks.1.attention.scores", "logits"], [3, 511, 512, 599])
    scheduler = Scheduler(small.pytorch, small.tokenizer)
    together(scheduler, [Request(other, PARAMS), Request(ids, PARAMS, observation=seen)])
    scheduler.close()
    trace = small.trace(ids, names=[*NAMES, "blocks.1.attention.scores"])
    for name in seen.names[:-1]:
        for row, at in zip(seen.rows[name], seen.positions, strict=True):
            expected = trace[name][..., at, :]
            expected = expected[:, : at + 1] if name.endswith(("pattern", "scores")) else expected
            assert row.shape == expected.shape and np.allclose(row, expected, rtol=1e-3, atol=1e-4), (
                name,
                at,
            )
    assert np.allclose(np.stack(seen.rows["logits"]), small.logits(ids)[seen.positions], rtol=1e-3, atol=1e-3)


def test_a_windows_keys_are_those_of_the_ids_that_are_read() -> None:
    """The PyTorch model's layer has the window's earlier keys in its hand too."""
    model = test_explain_kinds.model(*[test_explain_kinds._mixer("local", {})] * 2)
    engine, ids, name = PyTorchEngine(model), list(range(12)), "blocks.1.attention.k"
    whole, parts = engine.resume([]), engine.resume([])
    *_, expected = engine.watch_values([ids], [whole], [], [], [], [name])
    engine.read([ids[:8]], [parts], [])
    *_, found = engine.watch_values([ids[8:]], [parts], [], [], [], [name])
    assert found[name].shape[0] == 4 and np.allclose(found[name], expected[name][8:], atol=1e-5)
