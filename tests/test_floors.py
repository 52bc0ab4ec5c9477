"""The floors hold: imports point down, and what promises to load no torch loads none."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TORCH_FREE = [
    "cutaway",
    "cutaway.cli",
    "cutaway.commands.chat",
    "cutaway.commands.convert",
    "cutaway.commands.embed",
    "cutaway.commands.embed.project",
    "cutaway.commands.embed.train",
    "cutaway.commands.explain",
    "cutaway.commands.generate",
    "cutaway.commands.models",
    "cutaway.commands.pull",
    "cutaway.generate.decode",
    "cutaway.gguf",
    "cutaway.lm",
    "cutaway.model.config",
    "cutaway.native",
    "cutaway.store",
    "cutaway.tokenizer",
    "cutaway.tokenizer.chat",
    "cutaway.weights.load",
    "cutaway.weights.save",
]


def test_imports_point_down() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", TORCH_FREE)
def test_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"{module} imports torch"


def test_the_model_loads_no_compiler() -> None:
    code = "import sys, cutaway.model.decoder; sys.exit('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (
        done.stderr or "cutaway.model.decoder imports torch's compiler: two seconds, 70 MB"
    )


def test_shapes_of_weights_load_no_compiler() -> None:
    """Nothing is drawn on the meta device, by no mechanism."""
    code = """
import sys
from tests.laws import mechanisms
for kind in mechanisms.ALL:
    config = mechanisms.attention(kind)
    config.weights(32, 32) if kind in ("bahdanau", "luong") else config.weights(32)
    assert "torch._dynamo" not in sys.modules, kind
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_generating_loads_no_library_of_ciphers() -> None:
    code = (
        "import sys, cutaway.commands.generate, cutaway.lm, cutaway.runtime.engine\n"
        "import cutaway.tokenizer.compiled\n"
        "sys.exit(str([name for name in ('_hashlib', 'ssl', 'subprocess') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == "[]\n", "hashlib and ssl load OpenSSL: 4 MB of every process"
