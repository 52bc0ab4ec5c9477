"""The recipe of docs/adding-a-mechanism.md, followed: its file is listed, configured, drawn and judged."""

import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import cutaway.attention
from cutaway.attention.common import registry
from cutaway.attention.common.cost import at
from cutaway.attention.common.mask_plot import draw
from cutaway.cli import main
from cutaway.errors import UserError
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.config_dict import from_dict, to_dict
from scripts.tables import registries
from tests import recipes
from tests.definitions import complete, test_variants

PAGE = "adding-a-mechanism.md"
LAWS = "test_attention", "test_limits", "test_flops"


@pytest.fixture
def dilated(tmp_path: Path) -> Iterator[str]:
    with recipes.followed(PAGE, cutaway.attention, tmp_path) as [name]:
        yield name


def test_one_file_is_listed_configured_and_drawn(dilated: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dilated in registry.names() and f"cutaway.attention.{dilated}" not in sys.modules
    found = registry.kind(dilated)
    config = found.like(registry.Sizes(32, 4, 2, 8, 8), {})
    assert config.step == 2 and at(found.cost.state, config, n=10) == 10 * 2 * 16
    block = {
        "attention": {"kind": dilated, "heads": 4, "kv_heads": 2, "key_size": 8, "step": 3},
        "mlp": {"hidden": 9},
    }
    model = from_dict({"vocab": 9, "width": 32, "context": 16, "blocks": [block]})
    assert isinstance(model, Decoder) and isinstance(model.blocks[0], Block)
    assert from_dict(to_dict(model)) == model
    seen = draw(model.blocks[0].attention, 6).mask
    assert torch.equal(torch.tensor(seen)[5], torch.tensor([False, False, True, False, False, True]))
    assert main(["attention", "--json"]) == 0
    assert dilated in [row["kind"] for row in json.loads(capsys.readouterr().out)["mechanisms"]]
    assert f"| `{dilated}` | Dilated attention: a query sees" in registries.mechanisms()


def _fresh(name: str) -> ModuleType:
    """A module of laws as pytest would collect it now."""
    spec = importlib.util.find_spec(f"tests.laws.{name}")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_inherits_the_laws(dilated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that take a mechanism alone are run, and all of them are parametrized with it."""
    mechanisms = _fresh("mechanisms")
    assert dilated in mechanisms.KINDS and dilated in mechanisms.SOFTMAX
    monkeypatch.setitem(sys.modules, "tests.laws.mechanisms", mechanisms)
    ran = 0
    for module in map(_fresh, LAWS):
        for law in vars(module).values():
            marks = [*getattr(law, "pytestmark", []), getattr(module, "pytestmark", None)]
            kinds = [mark.args[1] for mark in marks if mark and mark.args and mark.args[0] == "kind"]
            if not inspect.isfunction(law) or not law.__name__.startswith("test_") or not kinds:
                continue
            found = any(dilated in listed for listed in kinds)
            assert found or len(kinds[0]) < 10  # of those that name what they are about
            if found and list(inspect.signature(law).parameters) == ["kind"]:
                law(dilated)
                ran += 1
    assert ran > 8


def test_its_equation_is_the_papers(dilated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the page's line; without it a sentence says what is missing."""
    with pytest.raises(AssertionError, match=r"dilated: say in SEES .* \(docs/adding-a-mechanism.md\)"):
        test_variants.sees(dilated)
    [missing] = complete.without(registry.names())
    assert missing.startswith("cutaway/attention/dilated.py: no loops in tests/definitions are its equation")
    page = (recipes.ROOT / "docs" / PAGE).read_text()
    [line] = re.findall(r'^    "dilated": (lambda .*),$', page, re.M)
    monkeypatch.setitem(test_variants.SEES, dilated, eval(line))
    test_variants.test_each_kind_sees_what_its_paper_says(dilated)
    test_variants.test_a_kind_is_its_equation(dilated, None, "head")
    monkeypatch.setitem(test_variants.SEES, dilated, lambda c, i, j: j <= i)
    with pytest.raises(AssertionError):
        test_variants.test_a_kind_is_its_equation(dilated, None, "head")


@pytest.mark.parametrize(("left", "what"), [("COST = ", "COST"), ("class Config", "Config")])
def test_what_a_file_lacks_is_one_sentence(tmp_path: Path, left: str, what: str) -> None:
    with recipes.followed(PAGE, cutaway.attention, tmp_path) as [name]:
        path = tmp_path / f"{name}.py"
        path.write_text(path.read_text().replace(left, left.replace(what, "Other")))
        with pytest.raises(UserError, match=f"{name}.py has no {what}: docs/adding-a-mechanism.md"):
            registry.kind(name)
