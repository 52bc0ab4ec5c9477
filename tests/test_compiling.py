"""Whether torch.compile pays, by what it saves and how long it takes here."""

import time
from pathlib import Path

import pytest

from cutaway.train import compiling


def test_how_long_compiling_takes_is_measured_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "home"))
    assert compiling.seconds(30) == pytest.approx(282)
    compiling.measured(10, 50.0)
    assert compiling.seconds(30) == pytest.approx(150)
    compiling.measured(24, 240.0)
    assert compiling.seconds(30) == pytest.approx(300), "of the model that is most alike"
    compiling.measured(2, 90.0)
    assert compiling.seconds(12) == pytest.approx(60) and compiling.seconds(100) == pytest.approx(940)
    (tmp_path / "home" / compiling.MEASURED).write_text("[]")
    assert compiling.seconds(30) == pytest.approx(282), "a damaged file is as none"


def test_what_compiling_saves() -> None:
    assert compiling.saves(3600, "cpu", frozen=True) == 0
    assert compiling.saves(3600, "cpu", frozen=False) == pytest.approx(432)
    assert compiling.saves(3600, "cuda", frozen=True) > 432


def test_a_compilation_that_outlasts_its_estimate_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time that twice as long has passed; nothing once it has ended."""
    waits: list[float] = []

    class Ended:
        def __init__(self) -> None:
            self.set_ = False

        def wait(self, seconds: float) -> bool:
            waits.append(seconds)
            while len(waits) > 3 and not self.set_:
                time.sleep(0.001)
            return self.set_

        def set(self) -> None:
            self.set_ = True

    monkeypatch.setattr(compiling, "Event", Ended)
    sentence: list[str] = []
    with compiling.watched(40.0, sentence.append):
        while len(sentence) < 3:
            time.sleep(0.001)
    assert waits == [40.0, 80.0, 160.0, 320.0]
    assert len(sentence) == 3 and "longer than the 40 s that were estimated" in sentence[0]
