"""The plain installation: its verbs run where PyTorch is absent, and the others say what to install."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cutaway.extras import install
from tests import small

HERE = Path(__file__).parent
PYTHON = """
import cutaway
lm = cutaway.load({model!r})
for make in (lambda: lm.model, lambda: lm.pytorch):
    try:
        make()
        print("was made")
    except cutaway.UserError as problem:
        print(problem)
assert lm.generate("the", max_tokens=2).ids and lm.engine_choice[0] == "runtime"
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.model_file(tmp_path_factory.mktemp("model") / "tiny.gguf")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A Python that finds nothing but what the plain installation has."""
    paths = os.pathsep.join([str(HERE / "refuse"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        timeout=240,
    )


def test_the_verbs_run_and_the_others_say_what_to_install(model: Path, tmp_path: Path) -> None:
    done = run(str(HERE / "verbs.py"), str(model), str(tmp_path))
    assert done.returncode == 0 and "WRONG" not in done.stdout, done.stdout + done.stderr


def test_python_says_what_to_install_and_the_model_answers_on(model: Path) -> None:
    done = run("-c", PYTHON.format(model=str(model)))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert all(install("train") in line for line in done.stdout.splitlines()), done.stdout
