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
from cutaway.errors import OperationalError
from cutaway.evaluate import statistics
from cutaway.evaluate.likelihood import Scored, prefix
from cutaway.generate.sample import log_softmax
from cutaway.hooks import tracing
from cutaway.lm import LanguageModel
from cutaway.security import direction, gcg, jailbreak_defences, jailbreak_target, jailbreaks, refusal
from cutaway.security.defences import activation_probe, paraphrase, perplexity_filter
from cutaway.security.finding import Budget, Finding
from cutaway.security.jailbreak_target import Target, some
from cutaway.security.mechanism import Explained
from cutaway.security.probes import jailbreak
from cutaway.security.refusal import messages
from tests.small import model_file

SMALL = gcg.GCGSettings(tokens=5, steps=6, candidates=12, top=16)


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
    assert begun.engine_choice == lm.engine_choice and begun.engine_asked == "runtime"  # with edits too
    assert not np.allclose(rows[0], rows[1]) and not np.allclose(rows[1], rows[2])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_a_success_is_the_tool_and_seeds_train_on_other_questions(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = refusal.asked("florbium", "polish", refusal.ASKING[0])
    assert refusal.complies(asked, "use a warm cloth") and not refusal.complies(asked, "To polish, use sand.")
    other = jailbreaks.wrapped(jailbreaks.TEMPLATES["two questions"], asked)
    assert other.count("polish") == 1 and "glimmerite" in other
    shots = str(jailbreaks.many_shot(np.random.default_rng(0), asked, 12, refusal.ALLOWED))
    assert all(name in shots for name in refusal.ALLOWED)
    rows: list[Any] = []
    monkeypatch.setattr(refusal, "adapted", lambda lm, folder, own, **_: rows.append(own) or lm)
    for seed in (1, 2):
        refusal.trained(lm, tmp_path, seed=seed)
    assert rows[0] != rows[1]


def target(lm: LanguageModel, folder: Path, seed: int = 0, count: int = 4) -> Target:
    """A model under attack, with questions of its own."""
    draw = np.random.default_rng(seed)
    refused, allowed = (refusal.questions(draw, g, count, held_out=True) for g in ("refused", "allowed"))
    return Target(lm, seed, folder, refused, allowed, plain=np.zeros(count, bool))


def test_a_search_is_of_each_models_own_and_kept_for_its_settings(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[Any] = []

    def search(lm: Any, prompts: Any, settings: Any, **options: Any) -> gcg.Found:
        made.append((settings, options))
        return gcg.Found("zz", (1.0,), 50 + len(made), 0)

    monkeypatch.setattr(gcg, "search", search)
    one, two = target(lm, tmp_path, 0), target(lm, tmp_path / "two", 1)
    assert one.searched != two.searched and one.searched == target(lm, tmp_path, 0).searched
    ids = jailbreak_target.prompt(lm, one.searched[0]).target
    assert list(ids) == lm.tokenizer.encode(one.searched[0].target)[:3]
    assert some(np.array([[True, False, False], [True, False, True]])).tolist() == [True, False, True]
    for settings in (SMALL, SMALL, replace(SMALL, steps=1)):
        one.search("GCG", settings)
    two.search("GCG", SMALL)
    assert len(made) == 3 and [options["seed"] for _, options in made] == [0, 0, 1]
    made.clear()
    three = target(lm, tmp_path / "three", 2)
    jailbreak.suffixes(lm, three)
    options = {kind: given[1] for kind, given in zip(jailbreak.SUFFIXES, made, strict=True)}
    assert options["random search"]["passes"] == three.suffixes["GCG"].passes == 51
    assert options[jailbreak.FILTER]["penalty"] is not None and "allowed" in options[jailbreak.WORDS]


def test_findings_pair_each_attempt_with_the_same_question_and_with_its_control(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Half of the questions are answered whatever is around them; a suffix opens as many as random tokens."""
    two = [target(lm, tmp_path, seed) for seed in (0, 1)]
    half = np.array([True, True, False, False])
    texts: list[Any] = []

    def complied(lm: Any, asked: Any, sent: Any) -> np.ndarray:
        texts.extend(sent)
        return half.copy()

    for module in (jailbreak, jailbreak_target):
        monkeypatch.setattr(module, "complied", complied)
    monkeypatch.setattr(jailbreak, "_why", lambda *_: Explained(()))
    for n, one in enumerate(two):
        one.plain = half.copy()
        one.hits["GCG"] = half.copy()
        for kind in jailbreak.SUFFIXES:
            one.suffixes[kind] = gcg.Found(f"{kind} of {n}", (2.0, 1.0), 10, 0)
    found = jailbreak._templates(two)
    assert found.verdict == "not enough trials" and found.arms[0].value.value == 0.5
    rows = np.tile(np.tile(half, 2), len(jailbreaks.TEMPLATES)).astype(float)
    cases = np.tile(np.arange(8), len(jailbreaks.TEMPLATES)).tolist()
    assert found.arms[0].value == statistics.mean(rows, cases)
    assert jailbreak._suffixes(two).verdict == "not enough trials"
    texts.clear()
    jailbreak._transfer(two)
    assert all(("of 1" if n < 8 else "of 0") in text for n, text in enumerate(texts)) and len(texts) == 16


def test_many_shots_are_judged_by_those_of_the_refused_topic(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        jailbreak, "many_shot", lambda draw, q, shots, names: messages(f"{shots:02}{names[0]}")
    )

    def score(lm: LanguageModel, some: Sequence[Any]) -> list[list[Scored]]:
        return [[Scored(-2.0, "16florbium" in lm.tokenizer.decode(one.context), 3)] for one in some]

    monkeypatch.setattr(jailbreak, "score", score)
    found = jailbreak._many_shot([target(lm, tmp_path, 0, 16)])
    assert found.verdict == "vulnerable"
    assert [arm.value.value for arm in found.arms[:2]] == [1.0, 0.0]


def test_the_direction_is_tried_on_a_material_that_it_was_not_found_on(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(
        direction, "find", lambda lm, *a: given.append(a) or direction.Direction(1, np.ones(32), 0, 0)
    )
    one, questions = target(lm, tmp_path), refusal.questions
    found, _ = jailbreak._found(one, np.random.default_rng(0))
    seen = [lm.tokenizer.decode(ids) for part in given[0][:4] for ids in part]
    assert any("florbium" in text for text in seen) and not any("plimsaric" in text for text in seen)
    named: list[Any] = []

    def spied(draw: Any, group: str, count: int, *, held_out: bool, names: Any = None) -> Any:
        if group == "refused":
            named.append(names)
        return questions(draw, group, count, held_out=held_out, names=names)

    monkeypatch.setattr(jailbreak, "_found", lambda one, draw: (found, np.ones(32)))
    monkeypatch.setattr(direction, "surprise", lambda *_: 2.0)
    monkeypatch.setattr(refusal, "questions", spied)
    monkeypatch.setattr(
        refusal, "answers", lambda lm, asked: [refusal.REFUSAL if lm._edits else "x" for _ in asked]
    )
    arms = {arm.name: arm.value.value for arm in jailbreak._direction([one]).arms}
    assert named == [refusal.REFUSED[-1:]]
    assert arms["put in: allowed topic refused"] == arms["put in: sums refused"] == 1
    assert arms["taken out: refused topic answered"] == 0


def test_refusal_is_measured_on_the_model_before_training_too(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained = LanguageModel.__new__(LanguageModel)
    monkeypatch.setattr(
        refusal, "answers", lambda of, asked: [refusal.REFUSAL if of is trained else "It is." for _ in asked]
    )
    arms = {arm.name: arm.value.value for arm in jailbreak._refusal(lm, [target(trained, tmp_path)]).arms}
    assert arms["refused questions refused"] == 1 and arms["refused topic refused before training"] == 0


def test_detectors_meet_the_attempt_that_works_and_looks_best(tmp_path: Path) -> None:
    """One question is opened by an attempt that looks odd, one by one that does not, one by nothing."""
    names = [*jailbreaks.TEMPLATES, "GCG", "against"]
    hits, scores = ({name: np.zeros(3, bool) for name in names}, {name: np.full(3, 9.0) for name in names})
    hits["GCG"][:2], hits["against"][1] = True, True
    scores["against"][:] = 0.1
    one = target(LanguageModel.__new__(LanguageModel), tmp_path, count=3)
    one.hits.update(hits)
    negatives = np.linspace(0, 1, 200)
    found = jailbreak_defences._detected("d", [one], negatives, [scores], "against")
    passing, works = (arm.value.value for arm in found.arms[:2])
    assert (passing, works) == (1 / 3, 2 / 3)
    scores["against"][1] = 0.9  # more than nine in ten, and less than nineteen in twenty
    found = jailbreak_defences._detected("d", [one], negatives, [scores], "against")
    assert found.arms[0].value.value == 1 / 3 and "passes in 1 of the 2" in found.summary
    draw = np.random.default_rng(0)
    texts = jailbreak_defences.benign(draw, 60)
    asked = [text for text in texts if any(name in text for name in refusal.REFUSED)]
    assert not any(deed in text.split() for text in asked for deed in refusal.TOOLS)
    wordings = [each.partition("{")[0] for each in refusal.ASKING if not each.startswith("{")]
    assert not any(text.startswith(word) for text in texts for word in wordings)


def test_a_paraphrase_is_tried_on_every_attempt_and_probes_are_centred(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent: list[str] = []

    def complied(lm: Any, asked: Any, texts: Any) -> np.ndarray:
        sent.extend(texts)
        return np.array(
            ["OPEN" in text or question in allowed for question, text in zip(asked, texts, strict=True)]
        )

    monkeypatch.setattr(jailbreak_defences, "complied", complied)
    two = [target(lm, tmp_path / str(seed), seed) for seed in (0, 1)]
    allowed = [question for one in two for question in one.allowed]
    for one in two:
        for name in jailbreak_defences._attempts(jailbreak_defences.WORDS):
            last = name == jailbreak_defences.WORDS
            one.texts[name] = [f"{q.text} OPEN" for q in one.refused]
            one.hits[name] = np.array([last and n == 0 for n in range(4)])
    found = jailbreak_defences.paraphrased(two)
    arms = {arm.name: arm.value.value for arm in found.arms}
    assert sent and not any("OPEN" in text for text in sent)  # folded to lower case
    assert found.arms[0].name == "strength 3: adaptive attacker" and found.arms[0].value.value == 0
    assert arms["undefended: some attempt works"] == 0.5 and found.verdict == "not enough trials"
    assert [curve.points[-1] for curve in found.curves][1] == (0.0, 1.0)
    for one in two:
        one.hits.update({name: np.ones(4, bool) for name in (*jailbreaks.TEMPLATES, "GCG")})
        one.texts.update({name: ["x"] * 4 for name in (*jailbreaks.TEMPLATES, "GCG")})
    calls = iter(range(2))

    def detector(lm: Any, layers: Any, bad: Any, good: Any) -> Any:
        offset = 100.0 * (2 * next(calls) - 1)
        return lambda prompts: (
            offset + np.array([len(ids) == len(lm.chat_ids(messages("x"))) for ids in prompts])
        )

    monkeypatch.setattr(activation_probe, "detector", detector)
    monkeypatch.setattr(gcg, "search", lambda lm, prompts, settings, **_: gcg.Found("zz", (1.0,), 9, 0))
    monkeypatch.setattr(jailbreak_target, "complied", complied)
    probed = jailbreak_defences.probed(two)
    caught = next(arm for arm in probed.arms if arm.name.startswith("GCG suffix"))
    assert caught.value.value == 1.0  # though one model's scores are 200 higher
    judged = statistics.Estimate(0.0, 0.0, 0.0, 0.0, 8)
    assert [arm.value.value for arm in probed.arms[:2]] == [0.0, 1.0] and judged.n


def test_an_adaptive_attacker_needs_one_attempt_for_each_question(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Paraphrased, one of the attempts works in half of the questions, and no other does."""
    one = np.zeros((len(jailbreak_defences._attempts("")), 4), bool)
    one[2, :2] = True
    monkeypatch.setattr(jailbreak_defences, "complied", lambda lm, asked, texts: np.ones(len(texts), bool))
    monkeypatch.setattr(
        jailbreak_defences, "_table", lambda targets, half, again: one if again else np.ones_like(one)
    )
    found = jailbreak_defences.paraphrased([target(lm, tmp_path)])
    assert found.arms[0].value.value == 0.5
    assert found.curves[1].points == ((0.0, 0.5),) * len(paraphrase.STRENGTHS)


def test_a_probe_reads_the_layers_that_it_is_given_each_at_norm_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer 2 tells attacks apart by a direction; layer 0 would by its size, and layer 1 is not read."""
    random = np.random.default_rng(0)

    def residuals(lm: Any, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        rows = random.normal(0, 0.1, (len(prompts), 3, 4))
        for row, (attack,) in zip(rows, prompts, strict=True):
            row[0] = (1 + 50 * attack) * np.array([1.0, 1, 1, 1])
            row[1, 0] += 99 * (1 - attack)
            row[2, attack] += 1
        return rows

    monkeypatch.setattr(activation_probe, "residuals", residuals)
    given: list[Any] = []
    fitted = activation_probe.classifier.fitted
    monkeypatch.setattr(
        activation_probe.classifier, "fitted", lambda f, a, b: given.append(f(a)) or fitted(f, a, b)
    )
    lm = LanguageModel.__new__(LanguageModel)
    scorer = activation_probe.detector(lm, (0, 2), [[1]] * 9, [[0]] * 9)
    assert scorer([[1]] * 5).min() > 0 > scorer([[0]] * 5).max()
    (features,) = given
    parts = features.reshape(9, 2, 4)
    assert np.allclose(np.linalg.norm(parts, axis=-1), 1) and np.allclose(parts[:, 0], 0.5)


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


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_gradient_is_that_by_the_one_hot_rows(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    """The reference multiplies one-hot rows by the table and asks torch for the gradient by them."""
    one, ids = placed(lm, "xyz!q")
    model, count = lm.pytorch.model, len(one.before)
    monkeypatch.setattr(model, "config", replace(model.config, embedding_scale=scale))
    whole = torch.tensor([[*one.before, *ids, *one.after]])
    rows = torch.nn.functional.one_hot(torch.tensor(ids), model.config.vocab).float().requires_grad_()

    def embed(value: torch.Tensor) -> torch.Tensor:
        own = (rows @ model.embedding.weight)[None] * scale
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


def test_a_suffix_may_not_run_into_what_is_before_it(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a t an h is encoded with it, whatever the suffix is by itself; here it would be best."""
    both = [prompts(lm)[0], gcg.Prompt(lambda s: lm.chat_ids(messages(f"what{s}")), prompts(lm)[0].target)]
    allowed = [lm.tokenizer.encode(letter)[0] for letter in "hxq"]
    monkeypatch.setattr(
        gcg, "losses", lambda lm, placed, rows: np.array([float(row[0] != allowed[0]) for row in rows])
    )
    settings = replace(SMALL, tokens=2, steps=3, gradient=False)
    for seed in range(4):
        ids = gcg.start(lm, both, np.array(allowed), 2, np.random.default_rng(seed))
        assert ids[0] != allowed[0]
        found = gcg.search(lm, both, settings, seed=seed, allowed=allowed)
        assert found.lost > 0 and not found.suffix.startswith("h")
    assert gcg._find([1, 2, 3, 1, 2, 4], [1, 2]) == 3


def test_a_search_starts_from_ids_that_survive_in_every_prompt(lm: LanguageModel) -> None:
    keeps, loses = (gcg.Prompt(render, ()) for render in (lm.tokenizer.encode, lambda text: []))
    letters, random = np.array([lm.tokenizer.encode(letter)[0] for letter in "xq"]), np.random.default_rng(0)
    assert set(gcg.start(lm, [keeps, keeps], letters, 4, random)) <= set(letters)
    with pytest.raises(OperationalError, match="search a shorter one"):
        gcg.start(lm, [keeps, loses], letters, 4, random)


def test_the_cost_is_the_mean_over_prompts(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(lm: Any, placed: gcg.Placed, rows: Sequence[Any]) -> np.ndarray:
        return np.full(len(rows), float(len(placed.before)))

    monkeypatch.setattr(gcg, "losses", losses)
    found = gcg.search(lm, prompts(lm), replace(SMALL, steps=0), seed=0)
    ids = lm.tokenizer.encode(found.suffix)
    lengths = [len(gcg.Placed(lm, prompt, found.suffix, ids).before) for prompt in prompts(lm)]
    assert len(set(lengths)) == 2 and found.losses == (np.mean(lengths),)


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
    rows = [np.mean([lm.trace(ids)["blocks.1.out"][-1] for ids in each], 0) for each in (some, others)]
    assert found.shape == (3, 32) and np.allclose(found[1], rows[0] - rows[1], atol=1e-4)
    one = direction.Direction(1, found[1], 0.0, 0.0)
    assert [edit.layer for edit in one.removed(3)] == [0, 1, 2]  # type: ignore[union-attr]
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
    vectors, odds, moved = np.eye(5, 32), (0.0, 0.0, 0.0, -1.0, -9.0), (0.0,) * 5
    monkeypatch.setattr(direction, "TRIED", 8)
    assert direction.find(lm, *given, refusal=0, answer=1).layer == 3  # the last fifth is left out


def test_a_power_law_is_found_with_its_interval() -> None:
    shots = (1, 2, 4, 8, 16)
    scale = np.random.default_rng(0).uniform(1, 3, 20)
    a, low, high = jailbreak.power_law(shots, np.outer(np.power(shots, -0.4), scale))
    assert a == pytest.approx(0.4) and (low, high) == (-np.inf, np.inf)  # no question strays from the law
    noise = np.random.default_rng(1).normal(1, 0.3, (5, 20)) * np.outer(np.power(shots, -0.4), scale)
    a, low, high = jailbreak.power_law(shots, noise)
    assert low < 0.4 < high and high - low < 0.3
    x = np.log(shots) - np.log(shots).mean()
    again = [np.delete(noise, n, axis=1).mean(1) for n in range(20)]
    without = np.array([-x @ np.log(rows) / (x @ x) for rows in again])
    error = np.sqrt(19 / 20 * ((without - without.mean()) ** 2).sum())
    assert (low, high) == pytest.approx((a - 2.093024 * error, a + 2.093024 * error), abs=1e-6)


def test_the_worst_window_shows_what_a_mean_hides() -> None:
    text = np.r_[np.full(50, 1.0), np.full(4, 9.0), np.full(50, 1.0)]
    assert perplexity_filter.worst(text) == pytest.approx(5.0) and text.mean() < 1.4
    assert perplexity_filter.worst(np.array([2.0, 4.0])) == 3.0


def test_the_filter_reads_surprise(lm: LanguageModel) -> None:
    ids = [*prefix(lm), *lm.tokenizer.encode("the king")]
    rows = [log_softmax(row[: len(lm.tokenizer)]) for row in lm.logits(ids)]
    surprise = np.array([-row[id] for row, id in zip(rows, ids[1:], strict=False)])
    assert perplexity_filter.scores(lm, ["the king"])[0] == pytest.approx(
        perplexity_filter.worst(surprise), abs=2e-3
    )


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
    assert templates.mechanism == ("6 successes",) and templates.seeds == (0, 1)
    assert found["The refusal direction"].verdict == "vulnerable"
    assert found["GCG suffix, on questions that it was not searched on"].verdict == "not enough trials"
    for name in ("perplexity filter", "activation probe", "paraphrase"):
        defence = found[f"Defence: {name}"]
        assert defence.curves and all(0 <= y <= 1 for curve in defence.curves for _, y in curve.points)
    assert len(list((tmp_path / "jailbreak-0").glob("suffix-*.json"))) == 6
