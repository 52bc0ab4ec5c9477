"""Guessing ahead changes the speed of a text and nothing else: greedy text is equal, sampled text is equally
likely, and a rule that is a little wrong is found out."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import chi2

import cutaway
from cutaway.errors import UserError
from cutaway.generate import speculative
from cutaway.generate.decode import finish, generate
from cutaway.generate.sample import History, Sampler
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.session import Session
from cutaway.generate.speculative import DraftModel, PromptLookup, Proposal, Speculation, residual, verify
from cutaway.lm import LanguageModel
from cutaway.model.engine import PyTorchEngine
from tests import inputs
from tests.small import decoder
from tests.test_decode import Bytes

PROMPT = [5, 9, 200, 31, 7, 64] * 2


class Table:
    """A model of three words whose next word depends on the last alone; its state is how many it has read."""

    vocab, max_context = 3, 1000
    LOGITS = np.log(np.array([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25], [0.2, 0.1, 0.7]], np.float32))

    class State:
        length = 0

        def truncate(self, length: int) -> None:
            self.length = length

    def __init__(self, shift: float = 0.0) -> None:
        self.logits = self.LOGITS + np.array([[shift, 0, -shift]], np.float32)

    def new_state(self) -> State:
        return self.State()

    def prefill(self, ids, state) -> np.ndarray:
        state.length += len(ids)
        return self.logits[ids[-1]]

    def step(self, id, state) -> np.ndarray:
        return self.prefill([id], state)

    def prefill_all_logits(self, ids, state) -> np.ndarray:
        state.length += len(ids)
        return self.logits[list(ids)]


class Three(Bytes):
    def __len__(self) -> int:
        return 3


def written(seed: int, length: int, guesser=None, **options) -> tuple[int, ...]:
    """A text of the table's, guessed ahead by something."""
    settings = SamplingParams(max_tokens=length, seed=seed, ignore_eos=True, temperature=1.0, **options)
    guess = None if guesser is None else Speculation(guesser(settings))
    return finish(generate(Table(), Three(), [0], settings, speculation=guess)).ids


def draft(settings: SamplingParams) -> DraftModel:
    return DraftModel(Table(shift=1.2), 3, settings)


def surprising(counts: np.ndarray, expected: np.ndarray) -> float:
    """The chance of counts at least this far from what is expected."""
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1))


def texts_of_three(guesser, texts: int = 1200, **options) -> float:
    """How likely the counts of all 27 texts of three words are, under the table's own probabilities."""
    every = list(product(range(3), repeat=3))
    probabilities = np.exp(Table.LOGITS.astype(np.float64))
    chances = np.array([probabilities[0, a] * probabilities[a, b] * probabilities[b, c] for a, b, c in every])
    seen = [written(seed, 3, guesser, **options) for seed in range(texts)]
    counts = np.array([seen.count(each) for each in every])
    return surprising(counts, texts * chances)


def test_sampled_text_with_a_draft_is_as_likely_as_without():
    assert texts_of_three(draft) > 1e-4
    assert texts_of_three(None) > 1e-4


@pytest.mark.parametrize("fault", ["accepts all", "residual is the model's", "ratio upside down"])
def test_a_wrong_rule_is_found_out(fault: str, monkeypatch: pytest.MonkeyPatch):
    if fault == "residual is the model's":
        monkeypatch.setattr(speculative, "residual", lambda model, probabilities: model)
    else:
        swapped = fault == "ratio upside down"

        def wrong(chooser, logits, history, id, probabilities):
            model = speculative.probabilities(chooser.process(logits, history))
            accepted = not swapped or chooser.generator.random() * model[id] < probabilities[id]
            return id if accepted else chooser(logits, history)

        monkeypatch.setattr("cutaway.generate.batch.sequence.verify", wrong)
    assert texts_of_three(draft) < 1e-6


def test_the_rule_gives_the_models_distribution():
    """By its own arithmetic, for random distributions with zeros: q min(1, p/q) + P(refused) residual = p."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        p, q = generator.dirichlet(np.full(7, 0.3), 2)
        p[generator.random(7) < 0.2] = 0
        q[generator.random(7) < 0.2] = 0
        p, q = p / p.sum(), q / q.sum()
        accepted = np.minimum(p, q)
        assert np.allclose(accepted + (1 - accepted.sum()) * residual(p, q), p, atol=1e-12)
    assert np.array_equal(residual(p, p), p)


def test_one_choice_follows_the_rule():
    """`verify` itself, many times at one place, with the cuts on."""
    settings = SamplingParams(temperature=0.7, top_k=4, seed=3)
    chooser = Sampler(settings)
    generator = np.random.default_rng(1)
    logits = generator.normal(size=6).astype(np.float32)
    wanted = speculative.probabilities(chooser.process(logits, History([0])))
    probabilities = generator.dirichlet(np.ones(6))
    drawn = generator.choice(6, size=20_000, p=probabilities)
    counts = np.bincount(
        [verify(chooser, logits, History([0]), id, probabilities) for id in drawn.tolist()], minlength=6
    )
    kept = wanted > 0
    assert counts[~kept].sum() == 0
    assert surprising(counts[kept], 20_000 * wanted[kept]) > 1e-4


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1.3, "top_p": 0.9}, {"top_k": 1}])
@pytest.mark.parametrize("guesser", ["lookup", "draft"])
def test_a_guess_without_chance_gives_the_same_text(guesser: str, options: dict):
    """PromptLookup gives the same text for every seed; a draft does where choices are greedy."""
    if guesser == "draft" and "top_p" in options:
        options = options | {"temperature": 0}
    model, small = (PyTorchEngine(decoder(seed=seed)) for seed in (0, 1))
    settings = SamplingParams(max_tokens=40, ignore_eos=True, repetition_penalty=1.1, seed=5, **options)
    plain = finish(generate(model, Bytes(), PROMPT, settings))
    guess = Speculation(PromptLookup() if guesser == "lookup" else DraftModel(small, 256, settings))
    session = Session(model)
    ahead = finish(generate(model, Bytes(), PROMPT, settings, session, guess))
    assert ahead.ids == plain.ids
    assert np.allclose(ahead.logprobs, plain.logprobs, atol=1e-4)
    assert ahead.timings.drafted_tokens == guess.drafted
    assert guess.drafted or options.get("top_p")
    assert ahead.timings.accepted_tokens <= ahead.timings.drafted_tokens
    assert finish(
        generate(model, Bytes(), [*PROMPT, *plain.ids[:9]], replace(settings, max_tokens=5), session)
    ).ids


def test_the_model_as_its_own_draft_is_always_right():
    model = PyTorchEngine(decoder())
    settings = SamplingParams(max_tokens=30, ignore_eos=True)
    guess = Speculation(DraftModel(PyTorchEngine(decoder()), 256, settings))
    done = finish(generate(model, Bytes(), PROMPT, settings, speculation=guess))
    assert done.timings.acceptance == 1
    assert len(done.ids) == 30


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 11])
@pytest.mark.parametrize("guesser", [None, draft, lambda settings: PromptLookup()])
def test_limits_are_kept(guesser, limit: int):
    assert len(written(1, limit, guesser)) == limit


def test_a_stop_inside_accepted_guesses_ends_the_text():
    class Certain:
        def propose(self, history: History, count: int) -> Proposal:
            return Proposal([int(id) for id in PLAIN.ids[len(history.ids) - len(PROMPT) :]][:count])

    model = PyTorchEngine(decoder())
    settings = SamplingParams(max_tokens=30, ignore_eos=True)
    PLAIN = finish(generate(model, Bytes(), PROMPT, settings))
    end = replace(settings, stop_ids=(PLAIN.ids[6],))
    expected = finish(generate(model, Bytes(), PROMPT, end))
    found = finish(generate(model, Bytes(), PROMPT, end, speculation=Speculation(Certain())))
    assert (found.ids, found.finish_reason, found.stop) == (expected.ids, "stop", expected.stop)
    whole = finish(generate(model, Bytes(), PROMPT, settings, speculation=Speculation(Certain())))
    assert whole.ids == PLAIN.ids
    assert whole.timings.acceptance == 1


def test_the_context_is_not_overrun():
    """The text fills it exactly, guesses or not."""
    model = PyTorchEngine(decoder())
    settings = SamplingParams(max_tokens=None, ignore_eos=True)
    plain = finish(generate(model, Bytes(), PROMPT, settings))
    ahead = finish(generate(model, Bytes(), PROMPT, settings, speculation=Speculation(PromptLookup())))
    assert (ahead.ids, ahead.finish_reason) == (plain.ids, "context")


def test_lookup_finds_the_longest_and_the_latest():
    look = PromptLookup()
    assert look.propose(History([1, 2, 3, 9, 1, 2, 3]), 2).ids == [9, 1]
    assert look.propose(History([2, 3, 7, 2, 3, 8, 2, 3]), 1).ids == [8]
    assert look.propose(History([2, 3, 8, 2, 3]), 5).ids == [8, 2, 3, 8, 2]
    assert look.propose(History([1, 2, 3, 7, 5, 2, 3, 8, 1, 2, 3]), 1).ids == [7]
    assert look.propose(History([5, 6, 5, 6]), 3).ids == [5, 6, 5]
    assert look.propose(History([4, 4, 4]), 3).ids == [4, 4, 4]
    for nothing in ([1], [1, 2], [1, 2, 3, 4, 5], [1, 9, 1]):
        assert look.propose(History(nothing), 4).ids == []


def test_how_many_are_guessed_follows_how_they_fared():
    guess = Speculation(PromptLookup())
    history = History([7] * 200)
    start = len(guess.propose(history, 100).ids)
    guess.update(start, start)
    assert guess.count == 2 * start
    guess.update(guess.count, 1)
    assert guess.count == 2
    guess.update(2, 0)
    assert guess.count == 1
    for _ in range(9):
        guess.update(guess.count, guess.count)
    assert guess.count == speculative.MOST
    assert guess.propose(history, 0).ids == []


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

    with pytest.raises(UserError, match="cannot verify drafts"):
        generate(Plain(), Three(), [0], SamplingParams(), speculation=Speculation(PromptLookup()))


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return cutaway.load(inputs.path("smollm2"))


def test_smollm2_says_the_same_and_guesses_right(lm: LanguageModel):
    prompt = "one two three four five\n" * 4
    plain = lm.generate(prompt, max_tokens=24, ignore_eos=True)
    ahead = lm.generate(prompt, max_tokens=24, ignore_eos=True, speculate="lookup")
    assert ahead.ids == plain.ids
    assert ahead.timings.accepted_tokens > 3
    early = lm.generate(prompt, max_tokens=8, ignore_eos=True, speculate=lm.first_layers(2))
    assert early.ids == plain.ids[:8]
    assert early.timings.drafted_tokens > 0


def test_what_cannot_guess_is_refused(lm: LanguageModel):
    with pytest.raises(UserError, match='use "lookup" or a smaller model'):
        lm._continuation.speculation(
            "luck", SamplingParams()
        )  # signatures are checked here, and `generate` allows no other word
    for count in (0, 31):
        with pytest.raises(UserError, match="the model has 30 layers"):
            lm.first_layers(count)


def test_the_command_says_how_guesses_fared(capsys: pytest.CaptureFixture[str]):
    from cutaway import cli

    words = ["generate", "a b c d a b c d a b c", "--max-tokens", "4", "--speculate", "lookup", "--json"]
    assert cli.main(words) == 0
    timings = json.loads(capsys.readouterr().out)["timings"]
    assert timings["drafted_tokens"] >= timings["accepted_tokens"] >= 0
    assert cli.main([*words, "--draft", "smollm2"]) == 2
    assert "two ways to guess" in capsys.readouterr().err
