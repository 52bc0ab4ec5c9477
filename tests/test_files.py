"""Writing: complete or absent, one process at a time, and nothing replaced unasked."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cutaway.errors import OperationalError, UserError
from cutaway.store import files

HOLDS = """
import sys, time
from cutaway.store import files
with files.{kind}(sys.argv[1]) as made:
    print("writing", flush=True)
    time.sleep(600)
"""


def _holder(kind: str, target: Path) -> subprocess.Popen:
    """A process in the middle of writing `target`."""
    code = HOLDS.format(kind=kind)
    process = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def _kill(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def _write(kind: str, target: Path, force: bool = True) -> None:
    if kind == "atomic_file":
        files.write_file(target, "new", force=force)
        return
    with files.atomic_folder(target, force=force) as made:
        (made / "a").write_text("new")


def _content(target: Path) -> str:
    return (target / "a" if target.is_dir() else target).read_text()


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(params=["atomic_file", "atomic_folder"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_what_is_written_replaces_what_was_there(kind: str, tmp_path: Path) -> None:
    for _ in range(2):
        _write(kind, tmp_path / "x")
        assert _content(tmp_path / "x") == "new"
        assert os.listdir(tmp_path) == ["x"]


def test_nothing_is_replaced_without_force(kind: str, tmp_path: Path) -> None:
    _write(kind, tmp_path / "x")
    with pytest.raises(UserError, match="already exists: choose another name, or give --force"):
        _write(kind, tmp_path / "x", force=False)
    assert os.listdir(tmp_path) == ["x"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(kind: str, tmp_path: Path, monkeypatch) -> None:
    _write(kind, tmp_path / "x")
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(OperationalError, match=r"x: cannot be written: the disk is full: free some space$"):
        _write(kind, tmp_path / "x")
    assert os.listdir(tmp_path) == ["x"]
    assert _content(tmp_path / "x") == "new"


def test_a_full_disk_inside_a_folder_names_the_target(tmp_path: Path, monkeypatch) -> None:
    def fill() -> None:
        with files.atomic_folder(tmp_path / "made") as made:
            monkeypatch.setattr(os, "fsync", _full)
            files.write_file(made / "inner", "x")

    with pytest.raises(OperationalError, match=r"/made/inner: cannot be written: the disk is full"):
        fill()
    assert os.listdir(tmp_path) == []


def test_a_device_that_is_full_is_one_sentence() -> None:
    with pytest.raises(OperationalError, match="/dev/full: cannot be written: the disk is full"):
        files.write_file("/dev/full", "x", force=False)


def test_a_missing_folder_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its folder does not exist"):
        files.write_file(tmp_path / "none" / "x", "x")
    with pytest.raises(UserError, match="is a folder: give a file's name"):
        files.write_file(tmp_path, "x")


def test_another_checksum_is_deleted(tmp_path: Path) -> None:
    with (
        pytest.raises(OperationalError, match="checksum"),
        files.atomic_file(tmp_path / "x", sha256="0" * 64) as out,
    ):
        out.write(b"x")
    assert os.listdir(tmp_path) == []


def test_the_second_of_two_writers_is_refused(kind: str, tmp_path: Path) -> None:
    holder = _holder(kind, tmp_path / "x")
    try:
        with pytest.raises(OperationalError, match="x: another process is writing it"):
            _write(kind, tmp_path / "x")
        _write(kind, tmp_path / "y")  # a write beside it sweeps nothing that is in use
        assert sorted(os.listdir(tmp_path)) == sorted([files.part_of(tmp_path / "x").name, "y"])
    finally:
        _kill(holder)


def test_what_a_killed_writer_left_is_swept(kind: str, tmp_path: Path) -> None:
    holder = _holder(kind, tmp_path / "x")
    _kill(holder)
    assert os.listdir(tmp_path) == [files.part_of(tmp_path / "x").name]
    _write(kind, tmp_path / "y")
    assert os.listdir(tmp_path) == ["y"]


def test_a_writer_killed_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    _write("atomic_folder", tmp_path / "x")
    (tmp_path / "x").rename(tmp_path / f".x{files.OLD}")
    with pytest.raises(UserError, match="already exists"):
        _write("atomic_folder", tmp_path / "x", force=False)
    assert _content(tmp_path / "x") == "new"
    (tmp_path / f".x{files.OLD}").mkdir()
    _write("atomic_folder", tmp_path / "x")
    assert os.listdir(tmp_path) == ["x"]


def test_a_link_keeps_pointing_at_its_file(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "x")
    files.write_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "x").read_text() == "new"
