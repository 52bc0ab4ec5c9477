"""Every listed escape fails: by what it says itself, by canaries outside, and by what the sandbox used.

`python -m scripts.fuzz.sandbox_escapes` runs them with each layer missing in turn.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cutaway.sandbox import launcher, starters
from tests.escapes import ESCAPES
from tests.escapes.grounds import Grounds

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")
TOGETHER = [escape for escape in ESCAPES.values() if not escape.alone]


@pytest.fixture(scope="module")
def grounds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grounds]:
    made = Grounds(tmp_path_factory.mktemp("grounds"))
    yield made
    made.close()


def test_there_are_many():
    assert len(ESCAPES) >= 200 and len({escape.code for escape in ESCAPES.values()}) == len(ESCAPES)


def all_fail(grounds: Grounds) -> None:
    found, seen = grounds.run(TOGETHER)
    assert (found, seen.changes, seen.ended) == ({}, [], "finished"), seen.error
    assert seen.output.count("\n@") + 1 == len(TOGETHER)  # each was tried


def test_escapes_fail(grounds: Grounds):
    all_fail(grounds)


@pytest.mark.parametrize("version", [1, 3, 5])
def test_escapes_fail_where_landlock_is_older(
    grounds: Grounds, version: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(launcher, "LANDLOCK", version)
    all_fail(grounds)


@pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")
def test_escapes_fail_in_namespaces_of_our_own_making(grounds: Grounds, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(starters, "starter", lambda: ("own", ""))
    all_fail(grounds)


@pytest.mark.parametrize("name", [escape.name for escape in ESCAPES.values() if escape.alone])
def test_an_escape_fails(grounds: Grounds, name: str):
    found, seen = grounds.run([ESCAPES[name]])
    assert (found, seen.changes) == ({}, []), seen


def test_canaries_tell(grounds: Grounds, tmp_path: Path):
    """Where nothing protects, the same attacks succeed: what sees nothing above is no blind test."""
    for name in ("chmod a file", "write a file", "signal a process", "System V shared memory", "fork",
                 "datagrams by a pair to a daemon", "connect by TCP", "read a file"):  # fmt: skip
        found, seen = grounds.run([ESCAPES[name]], launcher.LAYERS)
        assert found or seen.changes, name
