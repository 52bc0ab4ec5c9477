"""The checks for a CUDA machine, on this CPU: what they compare, and that they name what is too far."""

import contextlib
import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import training
from scripts.check import gpu

NANO = """
from dataclasses import dataclass
import torch


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = torch.nn.Embedding(config.vocab_size, config.n_embd)
        self.head = torch.nn.Linear(config.n_embd, config.vocab_size)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), learning_rate, betas, weight_decay=weight_decay)

    def forward(self, ids, targets):
        logits = self.head(self.table(ids))
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
"""


def test_the_page_has_each_part_and_says_what_is_beyond_its_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "BACKENDS", ("naive", "sdpa"))  # flex would compile for half a minute
    monkeypatch.setitem(gpu.BARS, "bfloat16", 1e-9)
    monkeypatch.setitem(gpu.PARTS, "fsdp", lambda *_: 1 / 0)
    monkeypatch.setitem(gpu.PARTS, "speed", lambda *_: [("nano", "1 tokens/s")])
    words = ["--device", "cpu", "--small", "--output", str(tmp_path / "gpu.md"), "--parts"]
    assert gpu.main([*words, "parity,fsdp"]) == 1
    page = (tmp_path / "gpu.md").read_text()
    assert page in capsys.readouterr().out and "failed: ZeroDivisionError" in page
    whole, half = ([line for line in page.splitlines() if line.startswith(f"| {kind}")] for kind in gpu.BARS)
    assert len(whole) == 2 and not any("beyond" in line for line in whole)
    assert len(half) == 2 and all(", beyond 1e-09" in line for line in half)
    assert gpu.main([*words, "speed"]) == 0 and "| nano | 1 tokens/s |" in (tmp_path / "gpu.md").read_text()
    if not torch.cuda.is_available():
        assert gpu.main(["--output", str(tmp_path / "none.md")]) == 2 and not (tmp_path / "none.md").exists()


def test_one_process_of_torchrun_trains_what_no_torchrun_does() -> None:
    """Its weights are cut over one device: it ended in an assertion."""
    [(_, apart)] = gpu.fsdp("cpu", True)
    assert "beyond" not in apart


def test_training_is_beside_nanogpts_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By bench/training.py, here with a model of nanoGPT's names in place of a checkout's."""
    (tmp_path / "model.py").write_text(NANO)
    asked: list[list[str]] = []

    def ran(command: list[str], **_: Any) -> Any:
        asked.append(command)
        out = io.StringIO()
        monkeypatch.setattr(sys, "argv", command[1:])
        with contextlib.redirect_stdout(out):
            code = training.main()
        return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr="")

    monkeypatch.setattr(gpu.subprocess, "run", ran)
    monkeypatch.setattr(training, "_apart", lambda name: training._measured(name, training._arguments()))
    monkeypatch.setattr(training, "_peak", lambda asked, precision: 1e9)
    monkeypatch.setattr(sys, "path", [*sys.path])
    threads = torch.get_num_threads()
    rows = dict(gpu.peers("cpu", True, tmp_path))
    torch.set_num_threads(threads)
    sys.modules.pop("model", None)
    assert rows.pop("matrix products in bf16") == "0.001 TFLOP/s"
    assert set(rows) == {"Cutaway eager bf16", "nanoGPT bf16"}
    assert all("tokens/s" in row and "of what matrix products reach" in row for row in rows.values())
    assert "--device=cpu" in asked[0] and str(tmp_path) in asked[0]
    monkeypatch.setattr(training, "_apart", lambda name: {"error": "CUDA out of memory"})
    with pytest.raises(RuntimeError, match="Cutaway eager bf16: CUDA out of memory"):
        gpu.peers("cpu", True)
