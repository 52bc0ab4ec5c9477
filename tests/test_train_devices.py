"""Many devices train what one trains. Two gloo processes here; scripts/check/many_devices.py has four, and
all pairings.
"""

from pathlib import Path

import pytest

from tests.many_devices import STEPS, trained
from tests.training import losses, training

CLOSE = 1e-5  # float32 sums in another order, of losses of about 5.7


def test_two_processes_train_what_one_does_and_one_goes_on(tmp_path: Path) -> None:
    alone = training(micro_batch_size=1, ema=0.9)
    expected = losses(alone, STEPS)
    two = trained(tmp_path / "two.json", 2, "--save", str(tmp_path))
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
