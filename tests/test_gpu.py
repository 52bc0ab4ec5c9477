"""The checks for a CUDA machine, on this CPU: what they compare, and that they name what is too far."""

from pathlib import Path

import pytest
import torch

from scripts.check import gpu


def test_the_page_has_each_part_and_says_what_is_beyond_its_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "BACKENDS", ("naive", "sdpa"))  # flex would compile for half a minute
    monkeypatch.setitem(gpu.BARS, "bfloat16", 1e-9)
    monkeypatch.setitem(gpu.PARTS, "fsdp", lambda on, small: 1 / 0)
    monkeypatch.setitem(gpu.PARTS, "speed", lambda on, small: [("nano", "1 tokens/s")])
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
