"""Many devices train what one trains, in every stage. Two gloo processes here; scripts/check/many_devices.py
has four, and all pairings.
"""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cutaway import cli
from cutaway.quantization import formats
from cutaway.train import config, distributed
from cutaway.train import run as training_run
from cutaway.train.adapters import dora, lora
from cutaway.train.recipes import finetune, rewards
from cutaway.train.signals import SignalHandler
from cutaway.weights import safetensors
from tests.many_devices import STEPS, trained
from tests.training import Quiet, chatting_model, conversations, losses, pairs, training

CLOSE = 1e-5  # float32 sums in another order, of losses of about 5.7
RUN = "--steps 4 --batch-size 4 --micro-batch-size 1 --threads 1 --optimizer.learning-rate 0.01"
RUN += " --data.context 64 --intervals.save 4 --intervals.evaluate 4 --intervals.sample 0"
TASK = " --data.options {} --data.test 9 --data.group-size 3 --data.max-tokens 6 --steps 2"
SCORER = "def ascii(text, row):\n    return sum(c.isascii() for c in text) / 8\n"


def stages(home: Path) -> dict[str, Any]:
    """A run of each stage after pretraining, on a small base."""
    base, talk, compared = (
        chatting_model(home / "base"),
        conversations(home / "talk.jsonl"),
        pairs(home / "pairs.jsonl"),
    )
    (home / "score.py").write_text(SCORER)
    questions = [json.dumps({"prompt": chr(97 + n % 26) * (1 + n // 26)}) for n in range(60)]
    (home / "questions.jsonl").write_text("\n".join(questions))

    def examples(method: str, data: Path, adapter: Any = None, more: str = "", **changes: Any) -> Any:
        words = f"--base {base} --data.path {data} {RUN} --data.validation-fraction 0.2 {more}"
        run = finetune.read_finetuning_config(method, words.split())
        return replace(run, adapter=adapter, **changes)

    def task(method: str, more: str = "") -> Any:
        words = (
            f"--base {base} --data.task {home}/score.py:ascii --data.path {home}/questions.jsonl {RUN}{TASK}"
        )
        return rewards.read_rewards_config(method, f"{words} --adapter.rank 4 {more}".split())

    made = {
        "sft": examples("sft", talk, lora.Config(4, dropout=0.3)),
        "sft of all weights": examples("sft", talk, ema=0.9),
        "sft beside a packed base": examples("sft", talk, dora.Config(4), base_type="packed"),
        "dpo": examples("dpo", compared, lora.Config(4)),
        "dpo of all weights": examples("dpo", compared),
        "orpo": examples("orpo", compared, lora.Config(4)),
        "kto": examples("kto", compared, lora.Config(4, dropout=0.3)),
        "reward": examples("reward", compared, lora.Config(4)),
        "distill": examples("distill", talk, lora.Config(4), f"--objective.teacher {base}"),
        "grpo": task("grpo", "--objective.kl-coefficient 0.1 --data.resample 2"),
        "reinforce": task(
            "reinforce", "--objective.kl-coefficient 0.01 --objective.updates 2 --adapter.dropout 0.3"
        ),
        "imitation": task("imitation", "--data.path null --data.task programs:spelling --data.context 128"),
    }
    for name, run in made.items():
        (home / f"{name}.yaml").write_text(config.run_config_text(run))
    return made


def test_two_processes_train_what_one_does_in_every_stage(tmp_path: Path) -> None:
    alone = training(micro_batch_size=1, ema=0.9)
    expected = losses(alone, STEPS)
    runs = stages(tmp_path)
    words = ("--save", str(tmp_path), "--stages", *(str(tmp_path / f"{name}.yaml") for name in runs))
    two = trained(tmp_path / "two.json", 2, *words)
    assert two["losses"] == pytest.approx(expected, abs=CLOSE)
    assert two["validation"] == pytest.approx(alone.evaluate(4), abs=CLOSE)
    assert two["odd"] == pytest.approx(alone.evaluate(3), abs=CLOSE), (
        "a row for one process, none for the other"
    )
    sizes = {name: float(p.detach().double().square().sum()) for p, name in alone.names.items()}
    assert two["weights"] == pytest.approx(sizes, rel=1e-5)
    # Two micro-batches a step, four steps: three groups of weights reduce their gradients once a step.
    assert two["spoken"]["_reduce_scatter_base_"] == 3 * STEPS
    on = training(micro_batch_size=1, ema=0.9)
    on.restore(tmp_path / "step-00000004")
    assert losses(on, STEPS) == pytest.approx(losses(alone, STEPS), abs=CLOSE)
    for name, run in runs.items():
        recipe = rewards if run.replicated else finetune
        training_run.train(run, tmp_path / "one" / name, Quiet(), recipe=recipe)
        _equal(tmp_path / "one" / name, tmp_path / name)
    assert max(line.get("kl", 0) for line in _lines(tmp_path / "kto")) > 0.01, "z moves with the texts"
    assert any("clip_fraction" in line for line in _lines(tmp_path / "reinforce"))
    more = replace(runs["grpo"], steps=3)
    training_run.train(more, tmp_path / "grpo", Quiet(), recipe=rewards, resume=True)
    assert _lines(tmp_path / "grpo")[-1]["step"] == 3, "one goes on from what two sampled and saved"


def test_processes_wait_for_the_first_to_prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tokenises a corpus before the first step, for longer than torch would wait."""
    asked: dict[str, Any] = {}

    def init(backend: str, **options: Any) -> None:
        asked.update(options)
        raise InterruptedError

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(torch.distributed, "init_process_group", init)
    with pytest.raises(InterruptedError), distributed.joined(training().run):
        pass
    assert asked["timeout"].total_seconds() >= 12 * 3600


def test_a_second_signal_under_torchrun_waits_for_the_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm signals every process, and so does torchrun; without torchrun the second ends at once."""
    with SignalHandler() as signals:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
    monkeypatch.setenv("RANK", "0")
    with SignalHandler() as signals:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM


def test_the_first_signal_is_shown_at_once() -> None:
    """A step may take a minute."""
    seen = list[str]()
    with SignalHandler(lambda: seen.append("stopping")) as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT and seen == ["stopping"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert seen == ["stopping"]


def test_a_draft_is_trained_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    words = ["finetune", "distill", str(conversations(tmp_path / "talk.jsonl")), "--draft"]
    assert cli.main([*words, "--output", str(tmp_path / "draft")]) == 2
    assert "start it without torchrun" in capsys.readouterr().err and not (tmp_path / "draft").exists()


def _equal(one: Path, two: Path) -> None:
    """The same lines of the log, and the same weights; two sum in another order than one."""
    lines = [_lines(folder) for folder in (one, two)]
    assert len(lines[0]) == len(lines[1]) > 2, one.name
    for expected, found in zip(*lines, strict=True):
        same = [key for key in expected if not key.endswith(("seconds", "_per_second", "mfu"))]
        assert {key: found[key] for key in same} == pytest.approx(
            {key: expected[key] for key in same}, rel=1e-4, abs=1e-6
        ), one.name
    files = sorted(one.glob("*.safetensors")) or [one / "model" / "model.safetensors"]
    for path in files:
        weights = [safetensors.read_safetensors(place) for place in (path, two / path.relative_to(one))]
        for name, expected in weights[0].items():
            found, expected = (formats.unpack(each) for each in (weights[1][name], expected))
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4, err_msg=f"{one.name}: {name}")


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
