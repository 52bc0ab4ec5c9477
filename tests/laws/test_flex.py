"""The optional path through torch's FlexAttention: what it refuses, that it fails loudly, and its rule.

Compiling takes a minute a rule, so the rule is judged uncompiled here; ``bench/`` runs the kernel itself.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from cutaway.attention.backends import blocked, flex, naive
from cutaway.attention.backends.inputs import AttentionInputs
from cutaway.attention.common.visibility import All, Causal, Positions, Sink, Window
from cutaway.errors import OperationalError, UserError

N, LONG = 40, 300  # within a block of 128, and over three


def _problem(n: int = N, **changes: Any) -> AttentionInputs:
    generator = torch.Generator().manual_seed(0)
    pos = torch.arange(n).expand(2, -1).clone()
    pos[0, :5] = -1
    made: dict[str, Any] = {
        name: torch.randn(2, heads, n, 16, generator=generator)
        for name, heads in (("q", 4), ("k", 2), ("v", 2))
    }
    rule = Causal() & (Window(6) | Sink(2))
    return AttentionInputs(
        **(
            made
            | {"query": Positions(pos), "key": Positions(pos), "visibility": rule, "scale": 0.3}
            | changes
        )
    )


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")


def test_it_computes_what_the_naive_path_does() -> None:
    """In a process of its own: the shape checks that tests switch on are not made for torch's tracer."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.laws.test_flex"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["window", "documents"]


@pytest.mark.usefixtures("compiler")
def test_it_refuses_what_it_cannot_compute() -> None:
    odd: dict[str, dict[str, Any]] = {
        "a soft-cap": {"softcap": 3.0},
        "sinks": {"sinks": torch.zeros(4)},
        "chosen keys": {"chosen": torch.ones(2, N, N, dtype=torch.bool)},
        "no float64": {"q": torch.zeros(2, 4, N, 16, dtype=torch.float64)},
        "no backward pass": {"q": torch.zeros(2, 4, N, 16, requires_grad=True)},
    }
    for reason, changes in odd.items():
        with pytest.raises(UserError, match=reason):
            flex.attend(_problem(**changes))
    assert flex.unsupported_reason(_problem()) is None
    elsewhere = torch.zeros(2, 4, N, 16, device="meta", requires_grad=True)
    assert flex.unsupported_reason(_problem(q=elsewhere, k=elsewhere, v=elsewhere)) is None


@pytest.mark.usefixtures("compiler")
def test_it_is_given_the_blocks_in_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncompiled, torch looks at the rule alone: the blocks are judged here."""
    given: list[Any] = []

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        given.append(options["block_mask"])
        return q

    monkeypatch.setattr(flex, "_compiled", lambda: attend)
    few = torch.arange(500).expand(2, -1) // torch.tensor([[500], [140]])
    for documents in (None, few):
        for rule in (Causal() & Window(20), Causal() & (Window(20) | Sink(2)), All()):
            positions = replace(_problem(n=500).key, documents=documents)
            inputs = _problem(n=500, query=positions, key=positions, visibility=rule)
            flex.attend(inputs)
            reach = blocked.reachable(inputs, flex.BLOCK).expand(2, 1, -1, -1)
            assert torch.equal(given.pop().to_dense() > 0, reach)


def test_it_refuses_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="no C\\+\\+ compiler"):
        flex.attend(_problem())


@pytest.mark.usefixtures("compiler")
def test_it_fails_loudly_where_torch_would_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def gives_up(*_: Any, **__: Any) -> None:
        raise torch._dynamo.exc.FailOnRecompileLimitHit("limit hit")

    monkeypatch.setattr(flex, "_compiled", lambda: gives_up)
    with pytest.raises(OperationalError, match="would fall back"):
        flex.attend(_problem())


def _main() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    vars(flex)["_compiled"] = lambda: flex_attention
    documents = torch.arange(LONG).expand(2, -1) // 70
    for name, apart in (("window", None), ("documents", documents)):
        positions = replace(_problem(n=LONG).key, documents=apart)
        inputs = _problem(n=LONG, query=positions, key=positions)
        assert_close(flex.attend(inputs), naive.attend(inputs), rtol=1e-5, atol=1e-5)
        print(name)


if __name__ == "__main__":
    _main()
