"""How far ahead the memory is asked changes no bit, and is measured once for a processor and a core."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cutaway.runtime
from cutaway import native
from cutaway.commands import doctor
from cutaway.errors import UserError
from cutaway.native import library, packed_product
from cutaway.runtime import prefetching
from cutaway.runtime.engine import RuntimeEngine
from tests import test_runtime as tiny
from tests.test_doctor import checks

pytestmark = pytest.mark.skipif(not native.available(), reason="the native core is not built")

ROWS, COLUMNS = 48, 512
SECONDS = dict.fromkeys(prefetching.WAYS, 2e-3) | {"8-bit types": 1.9e-3, "3 KB": 1.2e-3, "4 KB": 1.4e-3}


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A home of its own, and the way that was in use in the end."""
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path))
    before = prefetching.used()
    yield
    prefetching.use(before)


@pytest.fixture
def engine() -> RuntimeEngine:
    of = tiny.config("llama")
    return RuntimeEngine(of, tiny.tensors(of))


@pytest.mark.parametrize("type", packed_product.TYPES)
def test_products_are_the_same_bits_however_far_ahead(type: str) -> None:
    random = np.random.default_rng(0)
    panels = tiny.laid(tiny.weights(type, ROWS, COLUMNS))
    for count in (1, 2, 5, 8, 16, 33):
        x = random.standard_normal((count, COLUMNS), np.float32)
        found = []
        for way in prefetching.WAYS:
            prefetching.use(way)
            found.append(packed_product.multiply(type, ROWS, COLUMNS, panels, x, 2))
        assert all(np.array_equal(one, found[0]) for one in found), count


def test_the_first_large_model_is_measured_and_the_next_is_not(
    engine: RuntimeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds, step = 0.0, RuntimeEngine.step

    def timed(self: RuntimeEngine, id: int, state: Any) -> Any:
        nonlocal seconds
        seconds += 1.0 if prefetching.used() == "2 KB" else 2.0
        return step(self, id, state)

    monkeypatch.setattr(RuntimeEngine, "step", timed)
    for clock in ("thread_time", "perf_counter"):
        monkeypatch.setattr(prefetching.time, clock, lambda: seconds)
    prefetching.choose(engine)  # its weights stay in a cache
    assert not prefetching.path().exists()
    monkeypatch.setattr(prefetching, "LEAST", 1)
    prefetching.choose(engine)
    assert prefetching.used() == "2 KB" and engine.threads is None
    assert prefetching.measured() == {way: 2.0 - (way == "2 KB") for way in prefetching.WAYS}
    prefetching.use("not at all")
    monkeypatch.setattr(prefetching, "measure", lambda engine: pytest.fail("measured again"))
    prefetching.choose(engine)
    assert prefetching.used() == "2 KB"


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"%s": {"2 KB": 1.0}}', '{"%s": 3}', "\0"])
def test_a_damaged_measurement_is_none(content: str) -> None:
    prefetching.path().write_text(content.replace("%s", prefetching._key()))
    assert prefetching.measured() is None


def test_another_processor_is_measured_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    prefetching._keep(SECONDS)
    assert prefetching.measured() == SECONDS
    with monkeypatch.context() as other:
        other.setattr(library, "processor", lambda: "another")
        assert prefetching.measured() is None
        prefetching._keep({**SECONDS, "2 KB": 1.0})
    assert prefetching.measured() == SECONDS


def test_the_usual_way_stays_where_no_other_is_clearly_faster() -> None:
    usual = prefetching.usual()
    level = dict.fromkeys(prefetching.WAYS, 1.0)
    assert prefetching.fastest(level | {"3 KB": 0.97}) == usual
    assert prefetching.fastest(level | {"3 KB": 0.95}) == "3 KB"


def test_a_home_that_cannot_be_written_stops_no_model(
    engine: RuntimeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(prefetching, "measure", lambda engine: SECONDS)
    monkeypatch.setattr(prefetching, "LEAST", 1)
    prefetching.choose(engine)
    assert prefetching.used() == "3 KB"


def test_doctor_shows_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = doctor.memory_ahead()
    assert found.state == "ok" and "not measured yet" in found.found
    prefetching._keep(SECONDS)
    (found,) = doctor.memory_ahead()
    faster = SECONDS[prefetching.usual()] / 1.2e-3
    assert (
        "3 KB" in found.found and f"{faster:.2f} times" in found.found and "prefetching.json" in found.found
    )
    _, shown, _ = checks(capsys)
    assert "3 KB" in shown["prefetching"]["found"]


def test_doctor_goes_on_where_the_core_or_a_library_is_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise UserError("CUTAWAY_ISA is 'none'")

    with monkeypatch.context() as changed:
        changed.setattr(library, "unavailable_reason", refused)
        assert list(doctor.memory_ahead()) == []
    monkeypatch.delitem(sys.modules, "cutaway.runtime.prefetching")
    monkeypatch.delattr(cutaway.runtime, "prefetching")
    monkeypatch.setitem(sys.modules, "cutaway.runtime.engine", None)
    assert list(doctor.memory_ahead()) == []
