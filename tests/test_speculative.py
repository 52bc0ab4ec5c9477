"""Drafts change the speed of a text and nothing else: each seed's text is the one without drafts, alone and
in a batch; a rule that is a little wrong is found out by the counts of texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

import cutaway
from cutaway import native
from cutaway.errors import UserError
from cutaway.generate.batch.many_prompts import answer_all
from cutaway.generate.batch.request import Generation, Piece, Request
from cutaway.generate.batch.scheduler import Scheduler
from cutaway.generate.batch.sequence import SequenceOutput
from cutaway.generate.decode import finish, generate
from cutaway.generate.internals import Internals
from cutaway.generate.sample import History, Sampler
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.session import Session
from cutaway.generate.speculative import (
    LONGEST_MATCH,
    SHORTEST_MATCH,
    DraftedText,
    Drafting,
    DraftLengths,
    DraftModel,
    PromptLookup,
    match,
)
from cutaway.lm import LanguageModel
from cutaway.model.engine import PyTorchEngine
from cutaway.runtime.edits import Edit
from scripts.check import drafted_distribution, drafted_greedy
from tests import inputs
from tests import test_runtime as tiny
from tests.small import decoder
from tests.test_decode import Bytes
from tests.test_serve_engine import Words, some_jobs

PROMPT = [5, 9, 200, 31, 7, 64] * 2
needs_core = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)


class Always(DraftLengths):
    """Drafts so many tokens, whatever it takes."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.count = count

    def choose(self, texts: Any, rooms: Sequence[int], proposer: Any, others: Any = ()) -> list[int]:
        return [min(self.count, room) for room in rooms]

    def rest(self, looked: float, texts: int) -> int:
        return 0


class Table:
    """A model of three words whose next word depends on the last alone; its state is how many it has read."""

    vocab, max_context, layers, scope = 3, 1000, 1, b""
    page, page_bytes, grid, weights_in_positions = 128, 1, 1, 1 << 30
    LOGITS = np.log(np.array([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25], [0.2, 0.1, 0.7]], np.float32))

    longest = 0  # that a state of it was

    class State:
        length = 0

        def truncate(self, length: int) -> None:
            assert length <= self.length
            self.length = length

    def __init__(self, shift: float = 0.0) -> None:
        self.logits = self.LOGITS + np.array([[shift, 0, -shift]], np.float32)

    def new_state(self) -> State:
        return self.State()

    def prefill(self, ids: Any, state: Any) -> np.ndarray:
        return self.prefill_all_logits(ids, state)[-1]

    def step(self, id: int, state: Any) -> np.ndarray:
        return self.prefill([id], state)

    def prefill_all_logits(self, ids: Any, state: Any) -> np.ndarray:
        state.length += len(ids)
        self.longest = max(self.longest, state.length)
        return self.logits[list(ids)]

    def read(self, texts: Any, states: Any, logits_at: Any) -> np.ndarray:
        rows = [self.prefill_all_logits(ids, state) for ids, state in zip(texts, states, strict=True)]
        return np.concatenate(rows)[list(logits_at)]

    def watch(self, *given: Any) -> Any:
        raise NotImplementedError

    def keep(self, state: Any, page: int) -> None:
        raise AssertionError("no page is full")

    def fork(self, state: Any) -> State:
        made = self.State()
        made.length = state.length
        return made

    def resume(self, kept: Any) -> State:
        return self.State()

    def no_rewinding(self) -> None:
        return None

    def mark(self, state: Any, lasting: bool = False) -> None:
        """A state of it forgets any words."""

    def rewindable(self, state: Any) -> int:
        return self.max_context - state.length


class Three(Bytes):
    def __len__(self) -> int:
        return 3


def draft() -> DraftModel:
    return DraftModel(Table(shift=1.2), 3)


PROPOSERS = {"draft": draft, "lookup": PromptLookup}


def texts_of(proposer: Any, settings: list[SamplingParams]) -> list[tuple[int, ...]]:
    """A text of the table's for each of the settings, in one batch."""
    drafting = None if proposer is None else Drafting(proposer(), Always())
    scheduler = Scheduler(Table(), Three(), max_sequences=64, max_queue=10**6, drafting=drafting)
    try:
        with scheduler.paused():  # nothing is drafted in a step that reads prompts: which ones, is not chance
            streams = [scheduler.submit(Request((0, 1, 0), each)) for each in settings]
        return [finish(stream).ids for stream in streams]
    finally:
        scheduler.close()


def surprise(texts: list[tuple[int, ...]]) -> float:
    """How likely the counts of all 27 texts of three words are, under the table's own probabilities."""
    every = list(product(range(3), repeat=3))
    p = np.exp(Table.LOGITS.astype(np.float64))
    expected = len(texts) * np.array([p[0, a] * p[a, b] * p[b, c] for a, b, c in every])
    counts = np.array([texts.count(each) for each in every])
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), len(every) - 1))


MANY = [SamplingParams(max_tokens=3, seed=seed, ignore_eos=True, temperature=1.0) for seed in range(1500)]
SEEDS = MANY[:700]


@pytest.mark.parametrize("name", PROPOSERS)
def test_drawn_texts_are_those_without_drafts_and_as_likely(name: str):
    texts = texts_of(PROPOSERS[name], SEEDS)
    assert surprise(texts) > 1e-4
    assert texts == texts_of(None, SEEDS)


def accepts_all(self: SequenceOutput, logits: np.ndarray, draft: Sequence[int]) -> Any:
    forced = [np.where(np.arange(3) == id, np.float32(0), np.float32(-np.inf)) for id in draft]
    return honest(self, np.array([*forced, logits[len(draft)]]), draft)


def draws_again(self: SequenceOutput, logits: np.ndarray, draft: Sequence[int]) -> Any:
    """What was drafted gets a second chance where another token was chosen."""
    rows = []
    for row, id in zip(logits, draft, strict=False):
        rows.append(row + np.float32(4.0) * (np.arange(3) == id).astype(np.float32))
    return honest(self, np.array([*rows, logits[len(draft)]]), draft)


def skips_a_row(self: SequenceOutput, logits: np.ndarray, draft: Sequence[int]) -> Any:
    return honest(self, np.array([*logits[1:], logits[-1]]), draft)


honest = SequenceOutput.append_all


@pytest.mark.parametrize("wrong", [accepts_all, draws_again, skips_a_row])
def test_a_wrong_rule_is_found_out(wrong: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SequenceOutput, "append_all", wrong)
    assert surprise(texts_of(draft, MANY)) < 1e-6


def test_a_draft_draws_with_the_numbers_of_the_sampler_and_takes_none():
    """The model as its own draft is always right, also where it draws."""
    settings = SamplingParams(max_tokens=30, ignore_eos=True, temperature=1.0, seed=4, top_p=0.95)
    for engine, vocab, tokenizer in (
        (Table(), 3, Three()),
        (PyTorchEngine(decoder()), 256, Bytes()),
    ):
        made = finish(generate(engine, tokenizer, [1, 2], settings, None, drafting(engine, vocab)))
        assert made.timings.acceptance == 1 and made.timings.drafted_tokens > 15
        assert made.ids == finish(generate(engine, tokenizer, [1, 2], settings)).ids


def drafting(engine: Any, vocab: int, count: int = 3) -> Drafting:
    return Drafting(DraftModel(engine, vocab), Always(count))


# ---- bits --------------------------------------------------------------------------------------------------


def shown(of: Generation) -> tuple:
    return of.text, of.ids, of.logprobs, of.top_logprobs, of.finish_reason, of.stop, of.stop_logprob


class Alternating:
    """Wants an even id after an odd one, and six of them."""

    def __init__(self) -> None:
        self.count, self.done = 0, False

    def mask(self, logits: np.ndarray) -> None:
        logits[np.arange(len(logits)) % 2 == self.count % 2] = -np.inf

    def accept(self, id: int) -> None:
        self.count += 1
        self.done = self.count == 6


def same_in_a_batch(engine: Any, given: list[Request], other: Any) -> None:
    """Drafted or not, alone or in a batch, every answer is the same to the bit, and counts the same steps."""

    def requests() -> list[Request]:
        return [one if one.constraint is None else replace(one, constraint=Alternating()) for one in given]

    plain = answer_all(engine, Words(), requests(), max_sequences=5)
    for made in (Drafting(PromptLookup(), Always(5)), drafting(other, 101, 3), drafting(engine, 101, 4)):
        scheduler = Scheduler(engine, Words(), max_sequences=5, max_queue=10**6, drafting=made)
        try:
            streams = [scheduler.submit(one) for one in requests()]
            ahead = [finish(stream) for stream in streams]
            for one in (stream for stream in streams if stream.request.internals is not None):
                assert all(piece.inside for piece in list(one)[:-1]), "what is inside is shown at each token"
            figures = scheduler.stats()
        finally:
            scheduler.close()
        assert [shown(one) for one in ahead] == [shown(one) for one in plain]
        assert [one.timings.decode_tokens for one in ahead] == [one.timings.decode_tokens for one in plain]
        drafted = (
            sum(one.timings.drafted_tokens for one in ahead),
            sum(one.timings.accepted_tokens for one in ahead),
        )
        assert drafted == (figures.drafted_tokens, figures.accepted_tokens) and drafted[0] > 0
        assert figures.failed == figures.pages_used == 0


@needs_core
@pytest.mark.parametrize("name", ["gemma3", "llama"])
def test_a_batch_is_the_same_to_the_bit_whatever_is_drafted(name: str):
    """Windows and full attention, pages shared and rewound, greedy and drawn, penalties, stops, an edit."""
    of = tiny.config(name)
    engine, other = (tiny.RuntimeEngine(of, tiny.tensors(of, seed=seed)) for seed in (0, 1))
    jobs = some_jobs(24, 2, (0, 120, 128, 129, 250), 12)
    periodic = [Request((*[1, 2, 3, 4] * n, n), SamplingParams(max_tokens=20)) for n in (2, 31, 32)]
    cut = SamplingParams(
        max_tokens=20, temperature=0.9, min_p=0.05, repetition_penalty=1.3, seed=3, logprobs=2
    )
    banned = replace(cut, logit_bias={7: 3.0, 8: float("-inf")}, presence_penalty=0.4, typical_p=0.9)
    more = [Request((5, 6, 5, 6, 5), cut), Request((5, 6, 5, 6), banned)]
    edit = [Edit(0, np.ones(of.width, np.float32), 0.5, first=2)]
    more += [Request((5, 6, 5, 6), cut, edit=edit)]
    look = Internals((0,), attention=True, lens=True)
    more += [Request((5, 6, 5, 6), cut, prompt_logprobs=1), Request((5, 6, 5, 6), cut, internals=look)]
    more += [Request((5, 6, 5, 6), cut, drawn_logprobs=True), Request((1, 2, 1, 2), cut, Alternating())]
    same_in_a_batch(engine, [*jobs, *periodic, *more], other)


@needs_core
def test_a_page_that_ends_in_a_draft_is_kept_when_its_ids_are_chosen():
    """The next turn of a conversation begins with the page, and does not read it again."""
    of = tiny.config("llama")
    engine, other = (tiny.RuntimeEngine(of, tiny.tensors(of, seed=seed)) for seed in (0, 1))
    settings = SamplingParams(max_tokens=20, ignore_eos=True)
    scheduler = Scheduler(engine, Words(), drafting=drafting(other, 101, 5))
    try:
        for begin in range(118, 123):
            prompt = tuple(tiny.IDS[begin:240]) if begin % 2 else tuple(tiny.IDS[:begin])
            made = finish(scheduler.submit(Request(prompt, settings)))
            turn = (*prompt, *made.ids, 7)
            again = finish(scheduler.submit(Request(turn, replace(settings, max_tokens=1))))
            assert again.timings.prefill_tokens == len(turn) - 128
    finally:
        scheduler.close()


@needs_core
def test_a_text_near_longropes_first_lengths_rotates_as_without_drafts():
    of = tiny.config("phi3")
    engine, other = (tiny.RuntimeEngine(of, tiny.tensors(of, seed=seed)) for seed in (0, 1))
    first = engine._store.first_length
    assert first is not None
    settings = SamplingParams(max_tokens=12, ignore_eos=True)
    prompts = [tuple(tiny.IDS[: first - near]) for near in (9, 4, 2, 1, 0)]
    same_in_a_batch(engine, [Request(ids, settings) for ids in prompts], other)


@pytest.mark.parametrize(
    ("proposer", "options"),
    [("lookup", {"temperature": 0}), ("lookup", {"top_k": 1}), ("draft", {"temperature": 1.3, "top_p": 0.9})],
)
def test_the_pytorch_models_text_is_the_same(proposer: str, options: dict):
    model, small = (PyTorchEngine(decoder(seed=seed)) for seed in (0, 1))
    settings = SamplingParams(max_tokens=40, ignore_eos=True, repetition_penalty=1.1, seed=5, **options)
    plain = finish(generate(model, Bytes(), PROMPT, settings))
    made = Drafting(PromptLookup(), Always()) if proposer == "lookup" else drafting(small, 256)
    session = Session(model)
    ahead = finish(generate(model, Bytes(), PROMPT, settings, session, made))
    assert ahead.ids == plain.ids
    assert np.allclose(ahead.logprobs, plain.logprobs, atol=1e-4)
    assert ahead.timings.decode_tokens == plain.timings.decode_tokens
    assert 0 <= ahead.timings.accepted_tokens <= ahead.timings.drafted_tokens
    assert ahead.timings.drafted_tokens or "top_p" in options
    longer = [*PROMPT, *plain.ids[:9]]
    assert finish(generate(model, Bytes(), longer, replace(settings, max_tokens=5), session)).ids


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 11])
@pytest.mark.parametrize("name", PROPOSERS)
def test_limits_are_kept(name: str, limit: int):
    settings = SamplingParams(max_tokens=limit, seed=1, ignore_eos=True, temperature=1.0)
    (text,) = texts_of(PROPOSERS[name], [settings])
    made, table = Drafting(PROPOSERS[name](), Always()), Table()
    assert len(text) == limit
    assert finish(generate(table, Three(), [0, 1, 0], settings, drafting=made)).ids == text
    assert table.longest <= 3 + limit - 1, "no more is read than there are pages for"


class Certain(PromptLookup):
    """Drafts what will be chosen."""

    def __init__(self, ids: Sequence[int], prompt: int) -> None:
        self.ids, self.prompt = ids, prompt

    def kind(self, text: DraftedText) -> int | None:
        return 0

    def propose(self, texts: Sequence[DraftedText], counts: Sequence[int]) -> list[list[int]]:
        starts = [len(text.history.ids) - self.prompt for text in texts]
        return [list(self.ids[at : at + count]) for at, count in zip(starts, counts, strict=True)]


def test_a_stop_inside_accepted_drafts_ends_the_text():
    model = PyTorchEngine(decoder())
    settings = SamplingParams(max_tokens=30, ignore_eos=True)
    plain = finish(generate(model, Bytes(), PROMPT, settings))
    for end in (
        replace(settings, stop_ids=(plain.ids[6],)),
        replace(settings, stop=[chr(plain.ids[6])]),
        settings,
    ):
        expected = finish(generate(model, Bytes(), PROMPT, end))
        made = Drafting(Certain(plain.ids, len(PROMPT)), Always(4))
        found = finish(generate(model, Bytes(), PROMPT, end, drafting=made))
        assert shown(found)[1] == expected.ids and shown(found)[4:6] == shown(expected)[4:6]
        assert found.timings.decode_tokens == expected.timings.decode_tokens


def test_the_context_is_not_overrun():
    """The text fills it exactly, drafted or not."""
    model = PyTorchEngine(decoder())
    settings = SamplingParams(max_tokens=None, ignore_eos=True)
    plain = finish(generate(model, Bytes(), PROMPT, settings))
    ahead = finish(generate(model, Bytes(), PROMPT, settings, drafting=Drafting(PromptLookup(), Always())))
    assert (ahead.ids, ahead.finish_reason) == (plain.ids, "context")


# ---- proposers ---------------------------------------------------------------------------------------------


def naive_match(ids: list[int]) -> tuple[int, int] | None:
    for length in range(min(LONGEST_MATCH, len(ids) - 1), SHORTEST_MATCH - 1, -1):
        for start in range(len(ids) - length - 1, -1, -1):
            if ids[start : start + length] == ids[-length:]:
                return start + length, length
    return None


def test_lookup_finds_the_longest_match_and_of_those_the_latest():
    dice = np.random.default_rng(0)
    for n in range(400):
        ids = dice.integers(0, 2 + n % 4, 1 + n % 37)
        assert match(ids) == naive_match(ids.tolist()), ids
    ids = np.tile(dice.integers(0, 9, 30), 3)
    assert match(ids) == naive_match(ids.tolist()) == (60, LONGEST_MATCH)


def test_a_short_match_is_repeated():
    def proposed(ids: list[int], count: int) -> list[int]:
        text, look = DraftedText(History(ids), Sampler(SamplingParams())), PromptLookup()
        return look.propose([text], [count])[0] if look.kind(text) is not None else []

    assert proposed([1, 2, 3, 9, 1, 2, 3], 2) == [9, 1]
    assert proposed([2, 3, 8, 2, 3], 5) == [8, 2, 3, 8, 2]
    assert proposed([5, 6, 5, 6], 3) == [5, 6, 5] and proposed([4, 4, 4], 3) == [4, 4, 4]
    for nothing in ([1], [1, 2], [1, 2, 3, 4, 5], [1, 9, 1]):
        assert proposed(nothing, 4) == []


def test_a_long_prompt_is_read_by_the_draft_in_steps(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cutaway.generate.speculative.CATCH_UP", 4)
    text = DraftedText(History([0, 1, 2] * 5), Sampler(SamplingParams()))
    proposer = draft()
    kinds = [proposer.kind(text) for _ in range(5)]
    assert kinds == [None, None, None, 0, 0]
    assert len(proposer.propose([text], [3])[0]) == 3 and text.own.state.length == 17
    text.history.append(2)
    assert proposer.kind(text) == 0 and text.own.state.length <= 15


def test_a_draft_model_whose_logits_are_no_numbers_drafts_nothing():
    broken = Table()
    broken.logits = np.full_like(Table.LOGITS, np.nan)
    scheduler = Scheduler(Table(), Three(), drafting=drafting(broken, 3))
    try:
        made = finish(scheduler.submit(Request((0, 1), SamplingParams(max_tokens=5, ignore_eos=True))))
    finally:
        scheduler.close()
    assert len(made.ids) == 5 and made.timings.drafted_tokens == 0


# ---- what is refused, and what is counted ------------------------------------------------------------------


def test_a_state_that_cannot_forget_is_read_again():
    class Fixed(Table):
        class State:
            length = 0

    session = Session(Fixed())
    session.prefill([0, 1, 2])
    session.prefill_all_logits([1, 1])
    session.truncate(4)
    assert session.ids == (0, 1, 2, 1)
    assert session.step(2).shape == (3,)


def test_engines_that_cannot_check_are_refused():
    class Plain:
        vocab, max_context = 3, 10
        new_state = prefill = step = Table.step

    made = Drafting(PromptLookup())
    with pytest.raises(UserError, match="cannot verify drafts"):
        generate(Plain(), Three(), [0], SamplingParams(), drafting=made)
    with pytest.raises(UserError, match="depend on how a text is cut"):
        Scheduler(PyTorchEngine(decoder()), Bytes(), drafting=made)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return cutaway.load(inputs.path("smollm2"))


def test_smollm2_says_the_same(lm: LanguageModel):
    prompt = "one two three four five\n" * 4
    plain = lm.generate(prompt, max_tokens=24, ignore_eos=True)
    ahead = lm.generate(prompt, max_tokens=24, ignore_eos=True, speculate="lookup")
    assert ahead.ids == plain.ids
    early = lm.generate(prompt, max_tokens=8, ignore_eos=True, speculate=lm.first_layers(2))
    assert early.ids == plain.ids[:8]


def test_what_cannot_guess_is_refused(lm: LanguageModel):
    with pytest.raises(UserError, match='use "lookup", "mtp", a smaller model'):
        lm._continuation.drafting("luck")  # signatures are checked here, and `generate` allows no other word
    for count in (0, 31):
        with pytest.raises(UserError, match="the model has 30 layers"):
            lm.first_layers(count)


def test_a_draft_of_another_vocabulary_as_large_is_refused(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    own = lm.tokenizer

    class Shifted:
        def __len__(self) -> int:
            return len(own)

        def token_bytes(self, id: int) -> bytes:
            return own.token_bytes((id + 1) % len(own))

    other = lm.first_layers(1)
    assert lm._continuation.drafting(other)
    shifted: Any = SimpleNamespace(engine=other.engine, checkpoint=other.checkpoint, tokenizer=Shifted())
    with pytest.raises(UserError, match="its tokens are others, such as id"):
        lm._continuation.drafting(shifted)


def test_the_command_says_how_drafts_fared(capsys: pytest.CaptureFixture[str]):
    from cutaway import cli

    words = ["generate", "a b c d a b c d a b c", "--max-tokens", "4", "--draft", "lookup", "--json"]
    assert cli.main(words) == 0
    timings = json.loads(capsys.readouterr().out)["timings"]
    assert timings["drafted_tokens"] >= timings["accepted_tokens"] >= 0


def test_pieces_of_one_step_come_one_by_one():
    settings = SamplingParams(max_tokens=9, ignore_eos=True)
    scheduler = Scheduler(Table(), Three(), drafting=drafting(Table(), 3))
    try:
        pieces: list[Piece] = list(scheduler.submit(Request((0,), settings)))
    finally:
        scheduler.close()
    assert [piece.id for piece in pieces[:-1]] == list(pieces[-1].generation.ids) and len(pieces) == 10  # type: ignore[union-attr]


def test_a_server_tells_what_was_drafted(monkeypatch: pytest.MonkeyPatch):
    from tests import serving

    usual = serving.Limits.scheduler
    made = Drafting(PromptLookup(), Always())
    monkeypatch.setattr(serving.Limits, "scheduler", lambda *given, **more: usual(*given, made, **more))
    with serving.running(serving.model()) as server:
        body = {"prompt": [7, 8, 9] * 4, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        counts = server.post("/v1/completions", body).json()["usage"]["completion_tokens_details"]
        chat = {"messages": [{"role": "user", "content": "a b a b a b"}], "max_tokens": 6, "ignore_eos": True}
        more = server.post("/v1/chat/completions", chat).json()["usage"]["completion_tokens_details"]
        timings = server.post("/completion", {"prompt": "a b a b a b", "n_predict": 6}).json()["timings"]
        page = server.get("/metrics").text
        assert server.get("/slots").json()[0]["speculative"] is True
    names = ("accepted_prediction_tokens", "rejected_prediction_tokens")
    drafted = sum(one.get(name, 0) for one in (counts, more) for name in names) + timings["draft_n"]
    accepted = sum(one.get(names[0], 0) for one in (counts, more)) + timings["draft_n_accepted"]
    assert drafted > 0 and f'cutaway_drafted_tokens_total{{model="{serving.NAME}"}} {drafted}.0' in page
    assert f'cutaway_accepted_tokens_total{{model="{serving.NAME}"}} {accepted}.0' in page


def test_the_server_command_drafts_for_its_first_model(capsys: pytest.CaptureFixture[str]):
    from cutaway import cli
    from cutaway.commands import serve
    from cutaway.commands.serve_options import Loading, Several
    from cutaway.serve.service import Limits

    loader = serve.Loader(("smollm2",), Loading(draft="lookup"), Several(), Limits())
    models = loader.models()
    try:
        assert models.default.scheduler is not None and models.default.scheduler.drafts
    finally:
        models.default.stop(0)
    assert cli.main(["serve", "--draft", "no-such-model"]) == 2
    assert "no-such-model" in capsys.readouterr().err


# ---- the script of 100,000 draws ---------------------------------------------------------------------------


def test_of_the_rules_that_the_script_tries_one_is_right():
    p = np.array([0.5, 0.3, 0.2])
    right = {
        name
        for name, rule in drafted_distribution.RULES.items()
        if all(
            np.allclose(chance * np.eye(3)[id] + (1 - chance) * rest / rest.sum(), p)
            for id in range(3)
            for chance, rest in [rule(p, id)]
        )
    }
    assert right == {"rejection sampling"} and len(drafted_distribution.RULES) == 4


@needs_core
def test_the_script_sees_texts_that_are_not_those_without_drafts(monkeypatch: pytest.MonkeyPatch):
    assert not drafted_distribution.compared(["an edit"], 40)
    wrong = drafted_distribution.verified_by(drafted_distribution.accept_always)
    monkeypatch.setattr(SequenceOutput, "append_all", wrong)
    assert drafted_distribution.compared(["an edit"], 40)


@needs_core
def test_the_script_of_500_prompts_sees_a_text_that_differs_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(drafted_greedy, "SHAPES", ["llama"])
    words = ["--engine", "runtime", "--prompts", "8", "--tokens", "5"]
    kept = ["--output", str(tmp_path / "kept.jsonl")]
    drafted_greedy.main([*words, *kept])
    rows = capsys.readouterr().out
    assert "| 0 of 16 | 0 |" in rows
    monkeypatch.setattr(SequenceOutput, "append_all", skips_a_row)
    drafted_greedy.main([*words, *kept])
    assert capsys.readouterr().out == rows, "what was kept is not run again"
    with pytest.raises(SystemExit):
        drafted_greedy.main(words)
