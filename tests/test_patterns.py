"""Strangers' patterns: they mean what PEFT, Python and JSON schema mean by them, and none takes long."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cutaway import patterns
from cutaway.errors import UserError
from cutaway.tokenizer.pretokenize import _OURS, compiled
from cutaway.weights import adapters, load, peft_config
from cutaway.weights.changes import LowRank
from tests.small import model_file

MODULES = [
    *(f"model.layers.{n}.self_attn.{one}_proj" for n in (0, 1, 11, 21) for one in "qkvo"),
    *("model.layers.1.mlp.gate_proj", "lm_head", "model.embed_tokens", "q_proj", "qXproj", "transformer.h.0"),
]
PATTERNS = [
    *("q_proj", "q.proj", "proj", ".*proj", r"layers\.1\.self_attn\.q_proj", r"layers\.\d+\..*\.[qk]_proj"),
    *(
        r"layers\.(0|11)\.self_attn\.(q|v)_proj",
        "1.*",
        "a)|(lm_head",
        r"(?i:Q_PROJ)",
        r"h\.[0-9]",
        "(q|k)_proj$",
    ),
    *(r"\w+", r"model\.layers\.1{1,2}\..*", "^q_proj", r"q_proj\b", "(?P<x>q)_proj", "", "[^.]*"),
]
HOSTILE = [
    *(
        r"(\w*\.?)*!",
        "(a|a)*" * 20 + "!",
        r"((.*)*)*!",
        "(?:" * 90 + ".*" + ")*" * 90 + "!",
        ".*" * 300 + "!",
    ),
    *("(?:(?:a{1000}){1000}){1000}", "(a{99}){99}", "a" * 2000, "(" * 20_000, "(?=a)b", r"(a)\1", r"\Qa\E"),
    *("[[:alpha:]]", "[", "\ud800", r"\p{L}", "(?x)a", "a{0,70000}", "x*" * 400 + "!"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_modules_are_those_that_python_finds(pattern: str) -> None:
    """tests/parity/test_adapters.py asks PEFT itself."""
    found = peft_config.ByModule({pattern: 3.0}, 8.0, "alpha_pattern")
    for module in MODULES:
        theirs = re.match(rf"(.*\.)?({pattern})$", module) is not None
        assert found(module) == (3.0 if theirs else 8.0), module


def test_the_first_pattern_that_matches_counts() -> None:
    found = peft_config.ByModule({"v_proj": 1.0, ".*_proj": 2.0, "q_proj": 3.0}, 8.0, "alpha_pattern")
    assert [found(f"x.{one}") for one in ("v_proj", "q_proj", "other")] == [1.0, 2.0, 8.0]


@pytest.mark.parametrize("key", ["alpha_pattern", "rank_pattern"])
@pytest.mark.parametrize("pattern", HOSTILE, ids=lambda pattern: ascii(pattern)[:20])
def test_an_adapters_pattern_is_matched_or_refused_and_never_hangs(
    tmp_path: Path, key: str, pattern: str
) -> None:
    """Before, each of the first five took longer than a day in Python's engine."""
    base = load.read_checkpoint(model_file(tmp_path / "small.gguf"))
    names = [name for name in base.tensors if name.endswith("query.weight")]
    rows = {name: base.tensors.later(name).shape for name in names}
    made = {
        n: LowRank(np.ones((2, i), np.float32), np.ones((o, 2), np.float32), 1.0)
        for n, (o, i) in rows.items()
    }
    adapters.write_adapter(tmp_path / "a", made, base, "small")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config | {key: {pattern: 2}}))
    problem = refusal(lambda: adapters.read_adapter(tmp_path / "a", base))
    assert problem is None or (key in problem and len(problem) < 500 and "\n" not in problem)


def refusal(call: Callable[[], object]) -> str | None:
    """What a UserError says, None where there was none."""
    try:
        call()
    except UserError as problem:
        return str(problem)
    return None


def test_too_many_patterns_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(peft_config.time, "monotonic", lambda: next(clock))
    with pytest.raises(UserError, match="its 9 patterns take over 5 seconds"):
        peft_config.ByModule({f"p{n}": 1.0 for n in range(9)}, 1.0, "alpha_pattern")


def test_json_schemas_patterns_are_found_as_ecmascript_finds_them() -> None:
    assert patterns.search(r"^\d{2}$", "12") and not patterns.search(r"^\d{2}$", "١٢")
    assert patterns.search(r"\p{L}+", "é") and patterns.search("^(?=.*[A-Z])(?!.*9)", "bA")
    assert not patterns.search("^(?=.*[A-Z])(?!.*9)", "bA9") and not patterns.search(r"(a)\1", "ab")
    for pattern in (r"^(a+)+$", r"^(?=(a+)+$)b", r"^(?:(a+)+)\1?!$"):
        problem = refusal(lambda: patterns.search(pattern, "a" * 5000 + "b"))  # noqa: B023
        assert problem is None or "takes too long on this text" in problem


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(?:(?:a{1000}){1000}){1000}", "characters written out"),
        ("(?i)" + "s" * 3000, "characters written out"),
        ("(?:a?){3000}", "characters written out"),
        ("(?x)(?:a{900}#(\n){900}#)\n)", "flags other than"),
        ("(?V1)(?:a{900}[[a](]){900}", "flags other than"),
        ("(?:(?#()a{90}){90}", "characters written out"),
        ("(?:hello){e<=9}", "fuzzily"),
        ("(?R)?a", "calls itself"),
        ("(" * 1500 + ")" * 1500, "cannot be used|written out"),
    ],
)
def test_a_backtracking_pattern_is_bounded_before_it_is_compiled(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        patterns.backtracking(pattern, "the pattern")


def test_the_patterns_of_real_models_are_within_the_bounds() -> None:
    assert max(patterns._size(pattern, "") for pattern in _OURS) < patterns.LARGEST / 4
    for pattern in (r"[^\s{}]{2,}", "{}", "a{,3}", "{2", r"\{x", "(?i:'s|'t)", "(?<!\\s)\\s+$"):
        if pattern != "{2":
            compiled(pattern)
