"""Comparisons: tasks against their rules, budgets, sweeps that widen, statistics against scipy."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway import cli
from cutaway.attention.common import registry
from cutaway.commands import compare as verb
from cutaway.commands import console
from cutaway.compare import arms, report, sweep
from cutaway.compare.arms import Arm, Experiment
from cutaway.compare.sweep import ArmResult, Measured
from cutaway.compare.tasks import (
    arithmetic,
    compress,
    copying,
    extrapolation,
    induction,
    language,
    memorise,
    mqar,
    needle,
    parity,
    reversal,
    selective_copying,
)
from cutaway.errors import UserError
from cutaway.evaluate import statistics
from cutaway.model.config import Decoder
from cutaway.model.decoder import Decoder as Model
from cutaway.model.kinds import kind_of
from cutaway.quantization import formats
from cutaway.train.flops import per_token
from cutaway.train.trainable import TrainingBatch
from cutaway.train.training import Training
from cutaway.weights import load, save
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors
from tests.pages import charts

TASKS = [copying.Config(6, 5), induction.Config(16, 8), mqar.Config(32, 4, 64), parity.Config(6)]
TASKS += [selective_copying.Config(10, 3, 4), extrapolation.Config(4, 9, 5), needle.Config(12, 3, 5)]
TASKS += [reversal.Config(6, 5), arithmetic.Config(2), arithmetic.Config(3, reverse=False)]
TASKS.append(memorise.Config(6, 9, 5))


def drawn(task: Any, seed: int = 0) -> tuple[list[int], list[int], list[bool]]:
    """A row's inputs, targets, and which are scored."""
    batch = arms.Rows(task, seed, 0).row(0)
    return batch.ids[0].tolist(), batch.targets[0].tolist(), (batch.loss_weights[0] > 0).tolist()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__module__.rpartition(".")[2])
def test_a_tasks_scored_targets_follow_from_what_is_before_them(task: Any):
    table: dict[int, int] = {}
    for seed in range(20):
        ids, targets, scored = drawn(task, seed)
        assert len(ids) == task.context and max(ids + targets) < task.vocab and any(scored)
        for n in (n for n, own in enumerate(scored) if own):
            before = ids[: n + 1]
            if isinstance(task, copying.Config):
                expected = before[n - task.length]
                if isinstance(task, reversal.Config):
                    expected = before[2 * task.length - 1 - n]
            elif isinstance(task, induction.Config):
                expected = before[before.index(0) + 1]
            elif isinstance(task, mqar.Config):
                expected = before[before[: 2 * task.pairs : 2].index(before[n]) * 2 + 1]
            elif isinstance(task, parity.Config):
                expected = 2 + sum(bit for bit in before if bit < 2) % 2
            elif isinstance(task, extrapolation.Config):
                expected = before[n - before.index(0)]
            elif isinstance(task, needle.Config):
                expected = before[before.index(0) + 1 + n - task.length]
            elif isinstance(task, arithmetic.Config):
                digits = task.digits
                a, b = before[:digits], before[digits + 1 : 2 * digits + 1]
                total = sum(int("".join(map(str, number))) for number in (a, b))
                expected = int(f"{total:0{digits + 1}}"[:: -1 if task.reverse else 1][n - 2 * digits - 1])
            elif isinstance(task, memorise.Config):
                assert before[n] not in before[:n]
                expected = table.setdefault(before[n], targets[n])
            else:
                letters = [id for id in before[: task.length] if id > 1]
                expected = letters[n - task.length]
            assert targets[n] == expected


def test_compression_reads_a_text_back_from_the_last_token_alone():
    task = compress.Config(5, 4)
    ids, targets, scored = drawn(task)
    assert ids == [0, *targets[:5], 0] and scored == [True] * 5 + [False] * 2 and 0 not in targets[:5]
    assert (task.vocab, task.context, task.chance) == (5, 7, 0.25)

    made = preset_of(task)
    run = arms.run_of(made, made.arms[0], 0.01, 4, 0)
    training = Training(run, arms.ready(run, Path(), print))
    batch = TrainingBatch.of(arms.Rows(task, 0, 0).batch(0, 3), training.device)
    loss, sums = training.trainable(batch)
    model = training.model
    places, inner, outer = (model.get_parameter(f"compression_{name}") for name in ("places", "in", "out"))
    hidden = training.trainable.hidden(batch)[0].detach().double()
    expected = right = 0.0
    for row in range(3):
        for n in range(5):
            read = hidden[row, 6] + places[n].double()
            read = read + outer.double() @ (inner.double() @ read).clamp(min=0)
            logits = training.trainable.head_weight.double() @ read
            expected -= logits.log_softmax(0)[batch.targets[row, n]].item()
            right += int(logits.argmax()) == int(batch.targets[row, n])
    assert loss.item() == pytest.approx(expected, rel=1e-6) and float(sums["right"]) == right
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"compression_places", "compression_in", "compression_out"} <= names
    assert names == set(training.names.values())  # the optimizer has them too


def test_compression_refuses_rows_of_another_length():
    made = preset_of(compress.Config(5, 4))
    run = arms.run_of(made, made.arms[0], 0.01, 4, 0)
    training = Training(run, arms.ready(run, Path(), print))
    with pytest.raises(UserError, match="5 scored targets"):
        training.trainable(
            TrainingBatch.of(arms.Rows(compress.Config(4, 4), 0, 0).batch(0, 2), training.device)
        )


def preset_of(task: Any) -> Experiment:
    return arms.preset(task, {"attention": ["mha", "linear"]}, width=16)


def test_rows_differ_by_seed_and_number_and_are_the_same_for_every_arm():
    rows = arms.Rows(TASKS[0], 3, 0)
    assert not np.array_equal(rows.row(0).ids, rows.row(1).ids)
    assert not np.array_equal(rows.row(0).ids, arms.Rows(TASKS[0], 4, 0).row(0).ids)
    assert np.array_equal(rows.batch(2, 3).ids[1:2], arms.Rows(TASKS[0], 3, 9).row(3).ids)


def test_held_out_rows_may_be_longer_than_those_trained_on():
    task = extrapolation.Config(4, 9, 5)
    assert {sum(drawn(task, seed)[2]) for seed in range(40)} == {2, 3, 4}
    assert {sum(drawn(task.held_out, seed)[2]) for seed in range(9)} == {9}


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:280"])
def test_bits_per_byte_are_those_of_the_held_out_text(tmp_path: Path, tokenizer: str):
    words = ["No", "more", "was", "heard", "of", "it;", "they", "walked", "home.\n\n"]
    text = [" ".join(np.random.default_rng(n).permutation(words)) for n in range(40)]
    (tmp_path / "text.txt").write_text("\n\n".join(text))
    task = language.Config(str(tmp_path / "text.txt"), tokenizer, length=8, test_length=12)
    made = arms.preset(task, {"tokenizer": [tokenizer, "bpe:290"]}, width=16, batch_size=2, test=3)
    run = arms.run_of(made, made.arms[0], 0.01, 1, 0)
    data = arms.ready(run, tmp_path, print)
    evaluated = Training(run, data, note=lambda _: None).evaluate(3)
    torch.manual_seed(run.seed)
    assert isinstance(run.model, Decoder)
    model = Model(run.model).eval()
    bits, size = 0.0, 0
    for n in range(3):
        ids = data.validation.rows.row(n).ids  # type: ignore[union-attr]
        targets = data.validation.rows.row(n).targets[0, 8:]  # type: ignore[union-attr]
        logits = model(torch.from_numpy(ids), torch.arange(12)[None])[0, 8:].log_softmax(-1).detach()
        bits -= float(logits[range(4), targets].sum()) / math.log(2)
        size += len(data.tokenizer.decode_bytes([id for id in targets.tolist() if id != data.tokenizer.bos]))
    assert run.flops_per_token == per_token(replace(run.model, context=8))  # type: ignore[arg-type]
    assert evaluated["validation_bits_per_byte"] == pytest.approx(bits / size, rel=1e-5)
    train, middle, test = (
        language._read(task.text, tokenizer)[part].tolist() for part in ("train", "validation", "test")
    )
    ids = train + middle + test
    found = "".join(" " if id == data.tokenizer.bos else data.tokenizer.decode([id]) for id in ids)
    assert found.split() == " ".join(text).split() and 5 * len(test) < len(train)


def small(**settings: Any) -> Experiment:
    """Two mechanisms on a few letters, for seconds."""
    chosen: dict[str, Any] = {"steps": 8, "trial_steps": 4, "batch_size": 8, "seeds": 2, "test": 16}
    chosen |= {"learning_rates": (0.01,)} | settings
    return arms.preset(copying.Config(4, 4), {"attention": ["mha", "linear"]}, width=16, heads=2, **chosen)


def test_arms_have_the_same_budget_and_differ_in_one_part():
    kinds = ["mha", "gqa", "mqa", "mla", "local", "linear", "gated_delta", "mamba2"]
    made = arms.preset(copying.Config(), {"attention": kinds})
    models = [arms.model_of(made, arm) for arm in made.arms]
    sizes = [arms.parameters(model) for model in models]
    step = 2 * 3 * 64  # a column of every MLP
    assert max(abs(size - sizes[0]) for size in sizes) <= step
    assert models[-1] == models[0] and made.arms[-1].first_seed
    for model in models[1:-1]:
        block = replace(model.blocks[0], attention=models[0].blocks[0].attention, mlp=models[0].blocks[0].mlp)
        assert block == models[0].blocks[0]


@pytest.mark.parametrize(
    ("part", "kinds", "differs"),
    [
        ("position", arms.POSITIONS, "attention"),
        ("norm", arms.KINDS["norm"], "norm post_norm pre_norm"),
        ("mlp", arms.KINDS["mlp"], "mlp"),
        ("optimizer", arms.KINDS["optimizer"], ""),
    ],
)
def test_arms_of_every_part_have_the_same_budget(part: str, kinds: Any, differs: str):
    made = arms.preset(extrapolation.Config(4, 9), {part: list(kinds), "attention": ["gqa"]})
    models = [arms.model_of(made, arm) for arm in made.arms]
    runs = [arms.run_of(made, arm, 0.02, 8, 0) for arm in made.arms]
    sizes = [arms.parameters(model) for model in models]
    assert max(abs(size - sizes[0]) for size in sizes) <= 3 * 2 * 64
    assert len({(model, run.optimizer) for model, run in zip(models, runs, strict=True)}) == len(kinds)
    assert {kind_of(model.blocks[0].attention) for model in models} == {"gqa"}
    for model in models:
        own, first = vars(model.blocks[0]), vars(models[0].blocks[0])
        assert all(own[name] == first[name] for name in own if name not in (*differs.split(), "mlp"))
        assert model.context == 18, "held-out rows fit"
    assert all(run.optimizer.learning_rate == 0.02 for run in runs)
    if part == "optimizer":
        assert runs[1].optimizer.adamw.learning_rate == 0.02  # type: ignore[union-attr]


def test_embeddings_start_as_large_as_the_sinusoids_that_are_added_to_them():
    made = arms.preset(extrapolation.Config(4, 9), {"position": ["rope", "sinusoidal"]})
    run = arms.run_of(made, made.arms[1], 0.02, 8, 0)
    module = Training(run, arms.ready(run, Path(), print)).model
    assert isinstance(module, Model)
    embeddings = module.config.embedding_scale * module.embedding.weight
    assert 0.8 < embeddings.std().item() < 1.2 and module.config.position is not None


OF_TWO_TEXTS = {"bahdanau", "bidirectional", "cross", "disentangled", "luong"}  # or of an encoder


@pytest.mark.parametrize("kind", sorted(set(registry.names()) - OF_TWO_TEXTS))
def test_a_model_of_one_mixer_alone_is_written_and_opens(kind: str, tmp_path: Path):
    """Also where no layer has heads, which families of hybrids describe."""
    kinds = ["gqa" if kind == "mha" else "mha", kind]
    made = arms.preset(copying.Config(4, 4), {"attention": kinds}, width=16, heads=4)
    model = arms.model_of(made, made.arms[1])
    assert isinstance(model, Decoder)
    model = replace(model, vocab=16)
    weights = Model(model).state_dict()
    tensors = Tensors({name: formats.pack(weights[name].numpy(), "F32") for name in model.weights()})
    checkpoint = Checkpoint(model, tensors, None, tmp_path)
    save.write_checkpoint(tmp_path / "model", checkpoint, "safetensors", force=False)
    assert load.read_checkpoint(tmp_path / "model").config == model
    with suppress(UserError):  # and nothing else, where GGUF has no name for it
        save.write_checkpoint(tmp_path / "model.gguf", checkpoint, "gguf", force=False)


@pytest.mark.parametrize("name", arms.presets())
def test_presets_say_what_is_expected_and_give_arms_one_budget(name: str):
    made = arms.read_experiment(name)
    assert made.hypothesis and made.seeds >= 3 and made.arms[-1].first_seed
    if name != "tokenizer":  # which is trained on the novels
        sizes = [arms.parameters(arms.model_of(made, arm)) for arm in made.arms]
        assert max(sizes) < 1.01 * min(sizes)


def test_a_file_may_name_parts(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(
        "task: {kind: parity}\nparts: {mlp: [relu2, gelu]}\nwidth: 16\nsteps: 3"
    )
    made = arms.read_experiment(str(tmp_path / "mine.yaml"))
    assert made == arms.preset(parity.Config(), {"mlp": ["relu2", "gelu"]}, width=16, steps=3)
    (tmp_path / "mine.yaml").write_text("task: {kind: parity}\nparts: {wings: [a, b]}")
    with pytest.raises(UserError, match="no part 'wings'"):
        arms.read_experiment(str(tmp_path / "mine.yaml"))


def test_arms_may_have_another_number_of_layers():
    made = small()
    arm = Arm("one", ("layers=1",))
    assert len(arms.model_of(replace(made, arms=(*made.arms, arm)), arm).blocks) == 1


def test_a_change_that_fits_nothing_is_refused():
    made = small()
    for change, message in (("attention.kind=none", "no 'none'"), ("attention", "NAME=VALUE")):
        with pytest.raises(UserError, match=message):
            arms.model_of(made, Arm("x", (change,)))
    with pytest.raises(UserError, match="two arms"):
        replace(made, arms=made.arms[:1])
    with pytest.raises(UserError, match="no task"):
        arms.task("chess")
    for parts, message in (
        ({"mlp": ["swiglu", "maxout"]}, "--mlp: there is no 'maxout'"),
        ({"position": ["rope", "spiral"]}, "no 'spiral'"),
        ({"position": ["rope", "alibi"], "attention": ["linear"]}, "linear takes no alibi"),
        ({"tokenizer": ["bytes", "bpe:300"]}, "copying is no text"),
        ({"mlp": ["swiglu", "relu2"], "norm": ["rms", "layer"]}, "of one part"),
    ):
        with pytest.raises(UserError, match=message):
            arms.preset(copying.Config(), parts)


# ---- the sweep ---------------------------------------------------------------------------------------------


def sweeping(losses: dict[float, float], **settings: Any) -> tuple[ArmResult, list[tuple[float, int]]]:
    """A sweep over made-up losses, and the runs it asked for."""
    asked: list[tuple[float, int]] = []

    def measured(arm: Arm, rate: float, steps: int, seed: int, part: arms.Part) -> Measured:
        assert part == "validation" and seed >= arms.TRIAL
        asked.append((round(rate, 6), steps))
        near = min(losses, key=lambda known: abs(math.log(known / rate)))
        return Measured(0.0, losses[near], {}, 1.0, Path("x"))

    result = ArmResult(Arm("x"))
    sweep._sweep(small(trial_seeds=1, **settings), result, measured)
    return result, asked


def test_a_sweep_halves_and_keeps_an_interior_optimum():
    losses = {0.001: 3.0, 0.003: 1.0, 0.009: 2.0}
    result, asked = sweeping(losses, learning_rates=(0.001, 0.003, 0.009))
    assert result.rate == 0.003 and not result.bound
    assert asked == [(0.001, 4), (0.003, 4), (0.009, 4), (0.003, 8), (0.009, 8), (0.001, 8)]


def test_a_sweep_runs_the_rates_beside_the_best_to_the_end():
    def measured(arm: Arm, rate: float, steps: int, seed: int, part: arms.Part) -> Measured:
        late = {0.001: 5.0, 0.002: 4.0, 0.004: 3.0, 0.008: 2.0, 0.016: 2.5}  # short runs have the contrary
        return Measured(0.0, late[rate] if steps == 8 else rate, {}, 1.0, Path("x"))

    result = ArmResult(Arm("x"))
    sweep._sweep(small(learning_rates=(0.001, 0.002, 0.004, 0.008, 0.016), trial_seeds=1), result, measured)
    assert result.rate == 0.008 and not result.bound
    assert all(8 in result.tried[rate] for rate in (0.004, 0.008, 0.016))


def test_a_rate_that_one_seed_favours_gives_way_to_one_that_all_do():
    losses = {0.001: [5.0], 0.003: [2.0, 2.1, 2.2], 0.009: [1.0, 6.0, 6.0], 0.027: [7.0]}

    def measured(arm: Arm, rate: float, steps: int, seed: int, part: arms.Part) -> Measured:
        return Measured(0.0, losses[round(rate, 6)][seed - arms.TRIAL], {}, 1.0, Path("x"))

    result = ArmResult(Arm("x"))
    sweep._sweep(small(learning_rates=(0.001, 0.003, 0.009), trial_seeds=3), result, measured)
    assert result.rate == 0.003 and not result.bound


def test_no_run_that_chooses_a_rate_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither its seed nor its rows: the best of several is better than it will be again."""
    luck = np.random.default_rng(0)
    seen: dict[str, set[Any]] = {"validation": set(), "test": set()}
    runs: dict[tuple[str, int], arms.ArmRun] = {}

    @cache
    def rows_seed(part: str, seed: int) -> int:
        return arms.ready(runs[part, seed], tmp_path, print).validation.rows.seed  # type: ignore[union-attr]

    def one(run: arms.ArmRun, folder: Path, *_: Any) -> Measured:
        runs[run.part, run.seed] = run
        seen[run.part].add((run.seed, rows_seed(run.part, run.seed)))
        return Measured(x := float(luck.normal()), x, {}, 1.0, folder)

    monkeypatch.setattr(sweep, "one", one)
    rates = {"learning_rates": (0.001, 0.002, 0.004, 0.008), "steps": 8, "trial_seeds": 2, "seeds": 3}
    scores = []
    for _ in range(20):
        (result,) = sweep.run_sweep(replace(made := small(**rates), arms=made.arms[:2]), tmp_path, print)[:1]
        scores += [run.score for run in result.runs]
        assert len(result.runs) == 3 and {500, 501} & {seed for seed, _ in seen["validation"]}
    assert abs(np.mean(scores)) < 3 / len(scores) ** 0.5, "a score that was chosen by its luck is below 0"
    chosen, scored = ({part for _, part in seen[name]} for name in ("validation", "test"))
    assert not chosen & scored and not {n for n, _ in seen["validation"]} & {n for n, _ in seen["test"]}
    task = language.Config(str(tmp_path / "text.txt"), length=4)
    (tmp_path / "text.txt").write_text("\n\n".join(f"paragraph {n} of them" for n in range(200)))
    parts = language._documents(task.text)
    assert task.validation.part == "validation" and sum(map(len, parts)) == 200
    assert len(set().union(*parts)) == 200 and 9 <= len(parts[1]) <= 11 and 19 <= len(parts[2]) <= 21


def test_seeds_far_from_the_others_are_named():
    table = [row_of("a", (2.6, 2.61, 2.59, 3.24, 2.6, 2.58)), row_of("b", (2.6, 2.61, 3.24))]
    assert [row.outliers for row in table] == [[3.24], []]
    assert row_of("c", (1.0, 1.0, 1.0, 1.0, 0.53)).outliers == [0.53]
    assert not row_of("d", (1.0, 1.0, 0.999, 1.0, 1.0)).outliers
    made = small(seeds=6)
    assert "does not speak: a 3.240." in report.paragraph(made, table)
    assert "2.600, 2.610, 2.590, 3.240, 2.600, 2.580" in report.markdown(made, table, Path("runs/c"))


def row_of(name: str, scores: tuple[float, ...]) -> report.Row:
    return report.Row(name, 2.7, 2.6, 2.8, 1.0, 0.0, None, 0.01, False, scores, 0, 100, 1e6, {8: 16.0}, 1e4)


def test_a_sweep_halves_again_and_again_and_keeps_two():
    losses = {0.001 * 2**n: 1.0 + abs(n - 4) for n in range(8)}
    result, asked = sweeping(losses, learning_rates=tuple(losses), steps=16)
    assert [sum(steps == own for _, own in asked) for steps in (4, 8, 16)] == [8, 4, 3]
    assert result.rate == 0.016 and not result.bound


def test_a_sweep_widens_at_its_edge_and_says_where_it_did_not_help():
    losses = {0.001: 3.0, 0.003: 2.0, 0.009: 1.0, 0.027: 2.0}
    result, asked = sweeping(losses, learning_rates=(0.001, 0.003, 0.009))
    assert result.rate == 0.009 and not result.bound and (0.027, 8) in asked
    falling = {0.001: 3.0, 0.01: 2.5, 0.1: 2.0, 1.0: 1.0}
    result, _ = sweeping(falling, learning_rates=(0.001, 0.01), widen=1)
    assert result.bound


def test_an_experiment_that_was_stopped_ends_with_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = small()
    made = replace(made, arms=made.arms[:2])
    count = 0
    one = sweep.one

    def stopped(run: Any, folder: Path, *given: Any) -> Measured:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return one(run, folder, *given)

    monkeypatch.setattr(sweep, "one", stopped)
    with pytest.raises(KeyboardInterrupt):
        sweep.run_sweep(made, tmp_path / "a", lambda _: None)
    monkeypatch.setattr(sweep, "one", one)
    resumed = report.save(made, sweep.run_sweep(made, tmp_path / "a", lambda _: None), tmp_path / "a")
    whole = report.save(made, sweep.run_sweep(made, tmp_path / "b", lambda _: None), tmp_path / "b")

    def table(document: dict[str, Any]) -> Any:
        return {
            name: {key: value for key, value in arm.items() if key != "tokens_per_second"}
            for name, arm in document["arms"].items()
        }

    assert table(resumed) == table(whole)
    lm = cutaway.load(tmp_path / "a" / resumed["arms"]["linear"]["runs"][1])
    assert lm.tokenizer.encode("3 0 3") == [3, 0, 3] and lm.logits([3, 0]).shape == (2, 5)
    curves = resumed["arms"]["mha"]["curves"][0]
    assert [step for step, _ in curves["induction"]] == list(range(9)) and "linear" not in resumed[
        "attention"
    ]
    looks = resumed["attention"]["mha"]["1.0"]
    assert len(looks) == 8 and sum(looks) == pytest.approx(1, abs=1e-3)
    text = (tmp_path / "a" / "report.md").read_text()
    assert "| linear |" in text and "Chance is 0.250" in text
    page = (tmp_path / "a" / "report.html").read_text()
    assert len(list((tmp_path / "a" / "plots").glob("*.svg"))) >= 3
    assert (
        "<td>linear</td>" in page
        and [one["title"] for one in charts(page)][:2]
        == [
            "Held-out accuracy of each arm",
            "Held-out accuracy by step",
        ]
        and "<script src=" not in page
    )


def test_a_run_that_fails_is_reported(tmp_path: Path):
    made = small()
    bad = replace(arms.run_of(made, made.arms[0], 1e30, 8, 0), gradient_clip=None)
    found = sweep.one(bad, tmp_path / "run")
    assert found.failed is not None and " is nan" in found.failed and found.score == 0


# ---- statistics --------------------------------------------------------------------------------------------


def test_the_statistics_are_scipys():
    from scipy import stats

    a, b = [0.5, 0.7, 0.6, 0.9], [0.4, 0.65, 0.7, 0.6]
    assert statistics.paired_t(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=1e-6)
    assert statistics.paired_t([0.3, 0.5, 0.4], [0.2, 0.4, 0.3]) == 0.25, "as much each time: a sign test"
    for freedom in (1, 2, 5, 30):
        assert statistics.student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-5)
    low, high = statistics.student(a)
    expected = stats.t.interval(0.95, 3, np.mean(a), stats.sem(a))
    assert (low, high) == pytest.approx(expected)
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_false_positives_are_five_percent():
    random = np.random.default_rng(3)
    wrong = sum(statistics.paired_t(*random.normal(size=(2, 4)).tolist()) < report.LEVEL for _ in range(1000))
    assert 30 <= wrong <= 70
    families = 0
    for _ in range(400):
        raw = [statistics.paired_t(*random.normal(size=(2, 4)).tolist()) for _ in range(5)]
        families += min(statistics.holm(raw)) < report.LEVEL
    assert families / 400 <= 0.08


def test_the_paragraph_says_what_separated_and_what_did_not():
    made = small(seeds=3)

    def result(arm: Arm, scores: list[float], bound: bool = False) -> ArmResult:
        runs = [Measured(score, 1.0, {}, 1.0, Path("x")) for score in scores]
        return ArmResult(arm, {0.01: {8: runs[0]}}, 0.01, bound, runs)

    results = [
        result(made.arms[0], [0.90, 0.91, 0.92]),
        result(made.arms[1], [0.30, 0.31, 0.325], bound=True),
        result(made.arms[2], [0.91, 0.90, 0.92]),
    ]
    table = report.rows(made, results)
    text = report.paragraph(made, table)
    alone = report.paragraph(made, [table[0], table[2]])
    assert alone.startswith("No arm separates from mha. Chance")
    assert "linear is below mha by 0.598" in text and "Not separated from mha: mha again" in text
    assert "no optimum: linear" in text
    above = report.rows(made, [result(made.arms[0], [0.9, 1.0, 1.0])])
    assert table[0].low < 0.9 and above[0].high == 1, "no accuracy is above 1"
    assert table[0].state_numbers == 2 * 2 * 8 * 2 * 8  # layers, heads, tokens, keys and values


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["compare", "--attention", "mha,linear", "--task", "parity", "--steps", "4", "--seeds", "1"]
    words += ["--width", "16", "--learning-rates", "0.01", "--output", str(tmp_path / "c")]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["arms"]) == {"mha", "linear", "mha again"}
    assert found["arms"]["linear"]["params"] == pytest.approx(found["arms"]["mha"]["params"], rel=0.05)
    assert found["arms"]["linear"]["interval"] is None
    assert cli.main(words) == 0  # read from its folder
    printed = capsys.readouterr().out
    assert "| linear |" in printed and "of one seed there is no interval" in printed
    assert cli.main(["compare", "--attention", "mha"]) == 2
    assert "two kinds" in capsys.readouterr().err
    assert cli.main(["compare"]) == 2


def test_one_seed_has_no_p_and_a_terminal_gets_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = small(seeds=1)
    results = [ArmResult(arm, {}, 0.01, False, [Measured(0.5, 1.0, {}, 1.0, tmp_path)]) for arm in made.arms]
    table = report.rows(made, results)
    assert [row.p for row in table] == [None] * len(made.arms)
    folder = tmp_path / "a b"
    again = f"cutaway compare '{folder / 'experiment.yaml'}' --output '{folder}'"
    assert again in report.markdown(made, table, folder)
    verb._show(console.screen(), made, table)
    shown = capsys.readouterr().out
    assert "|---" not in shown and "no difference can be judged" in " ".join(shown.split())
    two = [replace(one, runs=one.runs * 2) for one in results]
    assert [row.p for row in report.rows(small(seeds=2), two)] == [None, *[1.0] * (len(made.arms) - 1)]
