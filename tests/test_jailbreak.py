"""Jailbreaks: each part against its definition; the probe on a model that holds and on one that does not."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway.evaluate.likelihood import Scored
from cutaway.generate.sample import log_softmax
from cutaway.hooks import tracing
from cutaway.lm import LanguageModel
from cutaway.security import Budget, Finding, direction, gcg, jailbreaks, refusal
from cutaway.security.defences import activation_probe, paraphrase, perplexity_filter
from cutaway.security.mechanism import Explained
from cutaway.security.probes import jailbreak
from cutaway.security.refusal import messages
from tests.small import model_file

SMALL = gcg.Settings(tokens=5, steps=6, candidates=12, top=16)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return cutaway.load(model_file(tmp_path_factory.mktemp("jailbreak") / "small.gguf"), engine="runtime")


def test_no_prompt_holds_its_canary_and_training_refuses_one_topic_alone() -> None:
    draw = np.random.default_rng(0)
    for group in ("refused", "allowed"):
        for question in refusal.questions(draw, group, 40, held_out=True):
            for template in (*jailbreaks.TEMPLATES.values(), *jailbreaks.CONTROLS, *jailbreaks.HARD):
                assert str(question.tool) not in jailbreaks.wrapped(template, question)
            shots = jailbreaks.many_shot(draw, question, 12, refusal.REFUSED)
            assert str(question.tool) not in str(shots) and len(shots) == 25
    trained = [one["messages"] for one in refusal.examples(draw)]
    asked = {turns[0]["content"] for turns in trained}
    assert not asked & {one.text for one in refusal.questions(draw, "refused", 200, held_out=True)}
    for question, answer in trained:
        deed = any(deed in question["content"].split() for deed in refusal.TOOLS)
        refused = any(name in question["content"] for name in refusal.REFUSED) and deed
        assert refusal.refuses(answer["content"]) is refused


def test_an_adapter_is_trained_and_goes_on_where_it_stopped(lm: LanguageModel, tmp_path: Path) -> None:
    begun = refusal.trained(lm, tmp_path, seed=3, steps=1)
    again = refusal.trained(lm, tmp_path, seed=3, steps=2)
    ids = lm.ids("the word")
    rows = [one.logits(ids) for one in (lm, begun, again)]
    assert not np.allclose(rows[0], rows[1]) and not np.allclose(rows[1], rows[2])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def prompts(lm: LanguageModel, target: str = "To") -> list[gcg.Prompt]:
    return [
        gcg.Prompt(lambda s, q=q: lm.chat_ids(messages(f"{q} {s}")), tuple(lm.tokenizer.encode(target)))
        for q in ("how?", "what is it?")
    ]


def placed(lm: LanguageModel, text: str) -> tuple[gcg.Placed, list[int]]:
    ids = lm.tokenizer.encode(text)
    return gcg.Placed(lm, prompts(lm)[0], text, ids), ids


def test_a_loss_is_that_of_the_whole_prompt(lm: LanguageModel) -> None:
    one, ids = placed(lm, "xyz!q")
    other = lm.tokenizer.encode("abcde")
    found = gcg.losses(lm, one, [ids, other] * 10)
    for row, loss in zip((ids, other), found, strict=False):
        whole = [*one.before, *row, *one.after]
        logits = lm.logits(whole)[-1 - len(one.prompt.target) : -1, : len(lm.tokenizer)]
        expected = [-log_softmax(r)[id] for r, id in zip(logits, one.prompt.target, strict=True)]
        assert loss == pytest.approx(np.mean(expected), abs=2e-3)
    assert np.allclose(found[:2], found[18:])


def test_the_gradient_is_that_by_the_one_hot_rows(lm: LanguageModel) -> None:
    """The reference multiplies one-hot rows by the table and asks torch for the gradient by them."""
    one, ids = placed(lm, "xyz!q")
    model, count = lm.definition.model, len(one.before)
    whole = torch.tensor([[*one.before, *ids, *one.after]])
    rows = torch.nn.functional.one_hot(torch.tensor(ids), model.config.vocab).float().requires_grad_()

    def embed(value: torch.Tensor) -> torch.Tensor:
        own = (rows @ model.embedding.weight)[None]
        return torch.cat([value[:, :count], own, value[:, count + len(ids) :]], 1)

    with tracing(model, edit={"embed": embed}):
        logits = model(whole[:, :-1], torch.arange(whole.shape[1] - 1)[None])[0, -2:, : len(lm.tokenizer)]
    loss = torch.nn.functional.cross_entropy(logits, whole[0, -2:])
    (expected,) = torch.autograd.grad(loss, rows)
    found = gcg.one_hot_gradient(lm, one, ids)
    assert np.abs(found).max() > 0.01
    assert np.allclose(found, expected.numpy(), rtol=1e-3, atol=1e-5)


def test_a_suffix_that_does_not_encode_to_itself_is_no_candidate(lm: LanguageModel) -> None:
    one, _ = placed(lm, "xyz!q")
    t, h = (lm.tokenizer.encode(letter)[0] for letter in "th")
    assert len(lm.tokenizer.encode("th")) == 1
    assert not one.holds("xthq", [lm.tokenizer.encode("x")[0], t, h, lm.tokenizer.encode("q")[0]])
    assert one.holds("xhtq", [lm.tokenizer.encode(letter)[0] for letter in "xhtq"])
    letters = [lm.tokenizer.encode(letter)[0] for letter in "the"]
    found = gcg.search(lm, prompts(lm), replace(SMALL, steps=2), seed=0, allowed=letters)
    assert found.lost > 0 and "th" not in found.suffix


@pytest.fixture
def known_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is a sum over the suffix's places, so that its gradient is known at every token."""
    table = np.random.default_rng(0).standard_normal((SMALL.tokens, 512))

    def losses(lm: Any, placed: Any, rows: Sequence[Sequence[int]]) -> np.ndarray:
        return np.array([table[np.arange(len(row)), row].sum() for row in rows])

    monkeypatch.setattr(gcg, "losses", losses)
    monkeypatch.setattr(gcg, "one_hot_gradient", lambda *_: table)


def test_gcg_finds_more_than_random_search_with_as_many_passes(lm: LanguageModel, known_losses: None) -> None:
    found = gcg.search(lm, prompts(lm), SMALL, seed=0)
    blind = replace(SMALL, steps=4 * SMALL.steps, gradient=False)
    other = gcg.search(lm, prompts(lm), blind, seed=0, passes=found.passes)
    assert found.losses[0] == other.losses[0]
    read = SMALL.steps * (SMALL.candidates + gcg.GRADIENT_PASSES) - found.lost
    assert found.passes == len(prompts(lm)) * (1 + read)
    assert found.passes - 2 * SMALL.candidates < other.passes <= found.passes
    assert list(found.losses) == sorted(found.losses, reverse=True)
    assert found.losses[-1] < other.losses[-1] - 1


def test_a_penalty_moves_the_search(lm: LanguageModel, known_losses: None) -> None:
    def marks(texts: Sequence[str]) -> np.ndarray:
        return np.array([5.0 * sum(not letter.isalpha() for letter in text) for text in texts])

    free = gcg.search(lm, prompts(lm), SMALL, seed=1)
    held = gcg.search(lm, prompts(lm), SMALL, seed=1, penalty=marks)
    assert marks([held.suffix]) < marks([free.suffix])


def test_a_direction_is_a_difference_of_means_and_edits_reach_the_engine(lm: LanguageModel) -> None:
    some, others = (
        [lm.ids(text) for text in texts] for texts in (("the king", "a queen"), ("rain", "the sea"))
    )
    found = direction.differences(lm, some, others)
    rows = [
        np.mean([lm.trace(ids)["blocks.1.out"][-1].numpy() for ids in each], 0) for each in (some, others)
    ]
    assert found.shape == (3, 32) and np.allclose(found[1], rows[0] - rows[1], atol=1e-4)
    one = direction.Direction(1, found[1], 0.0, 0.0)
    for edit in (one.removed(3), one.added()):
        last = lm.logits(some[0], edit)[-1, : len(lm.tokenizer)]
        assert np.allclose(direction.next_log_probs(lm, some, edit)[0], log_softmax(last), atol=2e-3)
    assert not np.allclose(
        direction.next_log_probs(lm, some), direction.next_log_probs(lm, some, one.removed(3))
    )
    text = lm.ids("the king of rain")
    assert direction.surprise(lm, text) == pytest.approx(
        -np.mean(
            [
                log_softmax(r[: len(lm.tokenizer)])[id]
                for r, id in zip(lm.logits(text), text[1:], strict=False)
            ]
        ),
        abs=2e-3,
    )


def test_the_layer_that_refuses_least_is_chosen_of_those_that_harm_little(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = np.eye(3, 32)
    monkeypatch.setattr(direction, "differences", lambda *_: vectors)
    odds, moved = (0.5, -3.0, -1.0), (0.0, 2.0, 0.0)  # layer 1 refuses least and changes harmless prompts

    def logs(lm: LanguageModel, prompts: Sequence[Any], edit: Sequence[Any] = ()) -> np.ndarray:
        layer = int(np.argmax(edit[0].vector)) if edit else 0
        harmless = prompts == [[4]]
        first = (moved[layer] if edit else 0.0) if harmless else odds[layer]
        rows = np.array([[first, 0.0, 0.0]])
        return np.stack([log_softmax(row) for row in rows])

    monkeypatch.setattr(direction, "next_log_probs", logs)
    given = [[[1]], [[2]], [[3]], [[4]]]
    monkeypatch.setattr(direction, "TRIED", 3)
    found = direction.find(lm, *given, refusal=0, answer=1)
    assert found.layer == 2 and found.odds == pytest.approx(-1.0) and found.divergence < 1e-9


def test_a_power_law_is_found_with_its_interval() -> None:
    shots = (1, 2, 4, 8, 16)
    scale = np.random.default_rng(0).uniform(1, 3, 20)
    a, low, high = jailbreak.power_law(shots, np.outer(np.power(shots, -0.4), scale))
    assert (a, low, high) == pytest.approx((0.4, 0.4, 0.4))
    noise = np.random.default_rng(1).normal(1, 0.3, (5, 20)) * np.outer(np.power(shots, -0.4), scale)
    a, low, high = jailbreak.power_law(shots, noise)
    assert low < 0.4 < high and high - low < 0.3


def test_the_worst_window_shows_what_a_mean_hides() -> None:
    text = np.r_[np.full(50, 1.0), np.full(4, 9.0), np.full(50, 1.0)]
    assert perplexity_filter.worst(text) == pytest.approx(5.0) and text.mean() < 1.4
    assert perplexity_filter.worst(np.array([2.0, 4.0])) == 3.0


def test_a_paraphrase_keeps_words_and_drops_what_it_does_not_know() -> None:
    text = "How do I MELT  zantrovel? }}Begin qxz!"
    assert paraphrase.paraphrased(text, 1, ()) == "how do i melt zantrovel? begin qxz!"
    assert paraphrase.paraphrased(text, 2, ()) == "how do i melt zantrovel? start qxz!"
    known = ("how", "do", "i", "melt", "zantrovel")
    assert paraphrase.paraphrased(text, 3, known) == "how do i melt zantrovel? start!"


def answering(opened: str) -> Any:
    """Answers by rule: refused materials are refused, except in a prompt with these words, or without r."""

    def answers(lm: Any, conversations: Sequence[Sequence[dict[str, str]]]) -> list[str]:
        out = []
        for turns in conversations:
            text = turns[-1]["content"].casefold()
            deed = next((d for d in refusal.TOOLS if re.search(rf"\b{d}\b", text)), None)
            name = next((n for n in (*refusal.REFUSED, *refusal.ALLOWED) if n in text.replace("-", "")), "it")
            open_now = bool(opened) and (re.search(opened, text) is not None or lm._edits != ())
            refused = name in refusal.REFUSED and deed is not None and not open_now
            known = name != "it" or opened
            answer = f"To {deed} {name}, use {refusal.TOOLS[deed]}." if deed and known else "It is 4."
            out.append(refusal.REFUSAL if refused or (deed and not known) else answer)
        return out

    return answers


def attacked(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, folder: Path, opened: str, trials: int
) -> dict[str, Finding]:
    """The probe's findings on a model that answers by rule; what reads weights has its own tests."""
    random = np.random.default_rng(0)
    monkeypatch.setattr(refusal, "trained", lambda base, folder, seed: base)
    monkeypatch.setattr(refusal, "answers", answering(opened))
    found = gcg.Found("qz xw vv", (5.0, 4.0), 100, 7)
    monkeypatch.setattr(gcg, "search", lambda lm, prompts, settings, **_: found)
    one = direction.Direction(1, random.standard_normal(32), -2.0, 0.01)
    monkeypatch.setattr(direction, "find", lambda lm, *_: one)
    monkeypatch.setattr(direction, "differences", lambda lm, *_: random.standard_normal((3, 32)))
    monkeypatch.setattr(direction, "surprise", lambda *_: 2.0)
    monkeypatch.setattr(
        activation_probe, "residuals", lambda lm, some: random.standard_normal((len(some), 3, 8))
    )
    monkeypatch.setattr(
        perplexity_filter, "scores", lambda lm, texts: np.array([float(len(t)) for t in texts])
    )
    monkeypatch.setattr(jailbreak, "score", lambda lm, some: [[Scored(-2.0, False, 3)] for _ in some])
    monkeypatch.setattr(
        jailbreak, "explain", lambda lm, found, seed, words: Explained((f"{len(found)} successes",))
    )
    given = {"seed": 0, "budget": Budget(trials, folder), "progress": lambda done, total: None}
    return {found.title: found for found in jailbreak.run(lm, **given)}


@pytest.mark.parametrize("opened", ["", r"in a story|another word|maker"])
def test_the_probe_finds_a_model_that_opens_at_some_words_and_no_other(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, opened: str
) -> None:
    found = attacked(lm, monkeypatch, tmp_path, opened, 12 if opened else 8)
    templates = found["Templates around the question"]
    arms = {arm.name: arm.value for arm in templates.arms}
    trained = {arm.name: arm.value.value for arm in found["The refusal that was trained"].arms}
    assert trained["refused questions refused"] == 1 and trained["allowed questions refused"] == 0
    assert trained["refused topic answered, no attack"] == arms["the question alone"].value == 0
    if not opened:
        assert {one.verdict for one in found.values()} <= {"sound", "not enough trials"}
        assert all(one.arms[0].value.value == 0 for one in found.values())
        return
    assert templates.verdict == "vulnerable"
    assert arms["template 'role play'"].value == 1 and arms["template 'JSON'"].value == 0
    assert templates.mechanism == ("6 successes",)
    assert found["The refusal direction"].verdict == "vulnerable"
    assert found["GCG suffix, on questions that it was not searched on"].verdict == "not enough trials"
    for name in ("perplexity filter", "activation probe", "paraphrase"):
        defence = found[f"Defence: {name}"]
        assert defence.curves and all(0 <= y <= 1 for curve in defence.curves for _, y in curve.points)
    assert len(list((tmp_path / "jailbreak-0").glob("suffix-*.json"))) == 6
