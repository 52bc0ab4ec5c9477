"""A new mechanism is one file: dropped into the folder, it is listed, configured, drawn and tested."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cutaway.attention
from cutaway.attention.common import registry
from cutaway.attention.common.cost import at
from cutaway.attention.common.mask_plot import draw
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.config_dict import from_dict, to_dict

FILE = '''"""Dilated attention: every second token, counted back from the query."""

from dataclasses import dataclass

from cutaway.attention import gqa
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.visibility import Causal, Stride, Visibility
from cutaway.bounds import Count

COST = Cost(prefill="n n / (2 step) h (k + v)", memory="n (h + g) (k + v)", decode="n / step h (k + v)",
            state="n g (k + v)")
USUAL = {"step": 2}


@dataclass(frozen=True, kw_only=True)
class Config(gqa.Config):
    """``step``: how far apart the tokens are that a query sees."""

    step: Count

    @property
    def visibility(self) -> Visibility:
        return Causal() & Stride(self.step)
'''
LAWS = """
import sys, pytest, cutaway.attention
cutaway.attention.__path__.append(sys.argv[1])
laws = ["tests/laws/test_attention.py", "tests/laws/test_bounds.py", "tests/laws/test_limits.py"]
sys.exit(pytest.main([*laws, "-q", "-k", "dilated", "-p", "no:cacheprovider", "-n", "0", "--no-header"]))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dilated.py").write_text(FILE)
    monkeypatch.setattr(cutaway.attention, "__path__", [*cutaway.attention.__path__, str(tmp_path)])
    yield tmp_path
    sys.modules.pop("cutaway.attention.dilated", None)


def test_one_file_is_listed_configured_and_drawn(folder: Path) -> None:
    assert "dilated" in registry.names() and "cutaway.attention.dilated" not in sys.modules
    found = registry.kind("dilated")
    config = found.like(registry.Sizes(32, 4, 2, 8, 8), {})
    assert config.step == 2 and at(found.cost.state, config, n=10) == 10 * 2 * 16
    block = {
        "attention": {"kind": "dilated", "heads": 4, "kv_heads": 2, "key_size": 8, "step": 3},
        "mlp": {"hidden": 9},
    }
    model = from_dict({"vocab": 9, "width": 32, "context": 16, "blocks": [block]})
    assert isinstance(model, Decoder) and isinstance(model.blocks[0], Block)
    assert from_dict(to_dict(model)) == model
    seen = draw(model.blocks[0].attention, 6).mask
    assert torch.equal(torch.tensor(seen)[5], torch.tensor([False, False, True, False, False, True]))


def test_it_inherits_the_laws(folder: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", LAWS, folder], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 20
