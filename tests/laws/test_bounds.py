"""Every number in every config has bounds, and what is out of them is one sentence that names the field."""

import hashlib
import importlib
import json
import math
import pickle
import pkgutil
import re
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import pytest

from cutaway import layers, position
from cutaway.attention import gqa
from cutaway.attention.common.registry import kind, names
from cutaway.bounds import UNIONS, Bound, Bounded, bounds_of, check
from cutaway.embedding import tables
from cutaway.errors import UserError
from cutaway.inspect import collecting
from cutaway.layers.config import MLP
from cutaway.model import block_config, seq2seq
from cutaway.model import config as model
from cutaway.model.config_dict import from_dict, to_dict
from cutaway.weights.named_tensors import Tensors
from tests.laws.mechanisms import attention

PACKAGE = Path(__file__).parents[2] / "cutaway"


def _own(module: Any) -> list[type]:
    """The config classes that a module defines."""
    mine = (c for c in vars(module).values() if isinstance(c, type) and is_dataclass(c))
    return [c for c in mine if c.__module__ == module.__name__ and issubclass(c, Bounded)]


def _files(package: Any) -> list[Any]:
    found = (m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg)
    return [importlib.import_module(f"{package.__name__}.{name}") for name in found]


MODULES = [*_files(position), *_files(layers), *_files(tables), block_config, model, seq2seq]
CONFIGS = [kind(name).config for name in names()] + [c for module in MODULES for c in _own(module)]
BLOCK = block_config.Block(gqa.Config(heads=2, kv_heads=1, key_size=4), MLP(8))
READING = block_config.Block(attention("bidirectional"), MLP(8))
WRITING = block_config.Block(BLOCK.attention, MLP(8), cross=attention("cross"))
REQUIRED: dict[str, Any] = {
    "encoder": model.Encoder(9, 8, 8, (READING,)), "decoder": model.Decoder(9, 8, 8, (WRITING,)),
    "attention": BLOCK.attention, "mlp": MLP(8), "blocks": (BLOCK,), "sections": (1, 1, 2), "size": 8,
    "low": 1.0, "high": 4.0, "fraction": 0.5, "divisors": (1.0, 2.0), "short": (1.0,), "long": (1.0,),
    "source": 9, "target": 9, "mixer": attention("mamba2"),
    "width": 8, "hidden": 8, "heads": 2, "experts": 4, "top_k": 2, "factor": 2.0, "original": 8,
}  # fmt: skip


def _made(cls: type, **changes: Any) -> Any:
    name = cls.__module__.rpartition(".")[2]
    if cls.__name__ == "Config" and name in names():
        return attention(name, **changes)
    required = {f.name: REQUIRED.get(f.name, 4) for f in fields(cls) if f.default is MISSING}  # type: ignore[arg-type]
    if cls is model.Encoder:
        required["blocks"] = (READING,)
    return cls(**(required | changes))


def _whose(cls: type) -> str:
    """What an error begins with: the topic, and the module of a class that is called as many others."""
    _, topic, *rest = cls.__module__.split(".")
    return f"{topic}\\.{rest[-1]}" if cls.__name__ == "Config" else topic


def _options(hint: Any) -> list[Any]:
    """What a field's type allows, and what a tuple of it holds."""
    options = typing.get_args(hint) if typing.get_origin(hint) in UNIONS else (hint,)
    inner = [typing.get_args(o)[0] for o in options if typing.get_origin(o) is tuple]
    return [*(o for o in options if typing.get_origin(o) is not tuple), *inner]


def _outside(bound: Bound, number: type) -> list[Any]:
    low = [bound.low] if bound.above else [bound.low - 1]
    high = [bound.high + 1] if math.isfinite(bound.high) else []
    return [number(value) for value in low + high] + ([math.nan, math.inf] if number is float else [])


FIELDS = [(cls, name, hint) for cls in CONFIGS for name, hint in bounds_of(cls).items()]
IDS = [f"{cls.__module__.removeprefix('cutaway.')}.{cls.__name__}.{name}" for cls, name, _ in FIELDS]


def test_all_configs_are_found() -> None:
    assert set(typing.get_args(position.scaling.Scaling)) < set(CONFIGS)
    whole = {model.Decoder, model.Encoder, model.EncoderDecoder, seq2seq.Recurrent}
    assert whole | {block_config.Block} < set(CONFIGS)
    assert {MLP, layers.config.MoE, layers.config.Norm} < set(CONFIGS) and len(CONFIGS) > 45


@pytest.mark.parametrize(("cls", "name", "hint"), FIELDS, ids=IDS)
def test_every_field_has_bounds(cls: type, name: str, hint: Any) -> None:
    _made(cls)
    for option in _options(hint):
        assert option not in (int, float), (
            f"{name} is a number without bounds: give it a type of cutaway/bounds.py"
        )
        if typing.get_origin(option) is Literal:
            with pytest.raises(UserError, match=f"{name} is 'no such word'; it must be "):
                check(
                    "no such word", hint, name
                )  # making the config fails in these tests' type checks already
        if typing.get_origin(option) is Annotated:
            number, bound = typing.get_args(option)
            for value in _outside(bound, number):
                _refused(cls, name, (value,) if isinstance(getattr(_made(cls), name), tuple) else value)


def _refused(cls: type, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^{_whose(cls)}\.{name}(\[0\])? is .*; it must be ") as raised:
        _made(cls, **{name: value})
    assert "\n" not in str(raised.value)


def _all_configs() -> list[type]:
    """Every class of the package that is called Config."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if re.search(r"^class Config\b", path.read_text("utf-8"), re.M):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            found.append(importlib.import_module(".".join(parts)).Config)
    return found


def test_a_config_says_whose_it_is() -> None:
    configs = _all_configs()
    assert len(configs) > 80
    assert [cls for cls in configs if cls.__repr__ is not configs[0].__repr__] == []
    one = gqa.Config(heads=9, kv_heads=3, key_size=64)
    assert repr(one).startswith("gqa.Config(heads=9, key_size=64, value_size=None, position=None, ")
    assert repr(block_config.Block(one, MLP(8))).startswith("Block(attention=gqa.Config(heads=9, ")
    with pytest.raises(UserError, match=r"^attention\.gqa\.heads is 0; it must be 1 or more$"):
        gqa.Config(heads=0, kv_heads=3, key_size=64)


def test_what_a_config_shows_changes_neither_its_equality_nor_its_saved_form() -> None:
    one, same = (gqa.Config(heads=9, kv_heads=3, key_size=64) for _ in range(2))
    assert one == same and hash(one) == hash(same) and pickle.loads(pickle.dumps(one)) == one
    assert one != attention("mha") and len({one, same}) == 1
    decoder = model.Decoder(9, 8, 8, (block_config.Block(one, MLP(8)),))
    saved = to_dict(decoder)
    assert saved["blocks"][0]["attention"]["kind"] == "gqa" and "Config(" not in json.dumps(saved)
    assert from_dict(saved) == decoder


def test_the_fingerprint_of_a_dataset_on_disk_does_not_depend_on_it() -> None:
    class Loaded:
        config = model.Decoder(9, 8, 8, (BLOCK,))
        checkpoint = SimpleNamespace(tensors=Tensors({}))

    plain = repr((Loaded.config, [])).replace("gqa.Config(", "Config(")
    assert collecting._fingerprint(Loaded) == hashlib.sha256(plain.encode()).hexdigest()[:16]
