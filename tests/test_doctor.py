"""`cutaway doctor`: a sound installation has no fault; each planted defect is found, with what mends it."""

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cutaway import cli, extras, store
from cutaway.commands import doctor
from cutaway.native import library
from cutaway.quantization import formats


def checks(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    """Exit code, each check's worst line, standard error."""
    code = cli.main(["doctor", "--json"])
    printed = capsys.readouterr()
    lines = json.loads(printed.out)["checks"]
    order = list(doctor.STATES)
    return (
        code,
        {one["what"]: one for one in sorted(lines, key=lambda one: order.index(one["state"]))},
        printed.err,
    )


def test_a_sound_installation_has_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    code, found, error = checks(capsys)
    assert code == 0 and error == "" and {"core", "threads", "memory", "cache", "model"} <= found.keys()
    assert all(one["state"] != "fault" for one in found.values())
    assert all(one["remedy"] for one in found.values() if one["state"] != "ok")


def test_a_core_that_was_not_built(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "The native core could not be loaded (no such file); install Cutaway again."
    monkeypatch.setattr(library, "unavailable_reason", lambda: reason)
    code, found, error = checks(capsys)
    assert code == 1 and "1 fault:" in error
    assert found["core"]["state"] == "fault" and found["core"]["found"].startswith(reason)
    assert "--force-reinstall" in found["core"]["remedy"]


def test_a_core_that_computes_other_numbers(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if library.unavailable_reason() is not None:
        pytest.skip("there is no core to be wrong")
    monkeypatch.setattr(formats, "unpack", lambda packed: formats.unpack_reference(packed) * 1.0001)
    code, found, _ = checks(capsys)
    assert code == 1 and "other numbers than its reference" in found["core"]["found"]


def test_a_core_that_was_cut_short_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that was full leaves one: the loader takes it, and the process would end by SIGBUS."""
    spec = importlib.util.find_spec("cutaway._core")
    if spec is None or spec.origin is None or not sys.platform.startswith("linux"):
        pytest.skip("there is no ELF file")
    whole = Path(spec.origin).read_bytes()
    assert not library._cut_short(spec.origin)
    for size in (len(whole) - 1, 100_000, 50):
        (cut := tmp_path / f"{size}.so").write_bytes(whole[:size])
        assert library._cut_short(str(cut)), size
    spec.origin = str(tmp_path / "100000.so")
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.delenv("CUTAWAY_PURE", raising=False)
    assert "is cut short" in str(library._load.__wrapped__())


@pytest.mark.parametrize(
    ("variable", "value", "what", "state", "says"),
    [
        ("CUTAWAY_ISA", "portable", "core", "note", "portable, because CUTAWAY_ISA asks for it"),
        ("CUTAWAY_THREADS", "none", "threads", "fault", "CUTAWAY_THREADS is 'none'"),
        ("CUTAWAY_THREADS", "1024", "threads", "note", "1024 of"),
        ("HF_HUB_OFFLINE", "1", "model", "note", "HF_HUB_OFFLINE is set: nothing is fetched from Hugging"),
        ("PIP_NO_INDEX", "1", "model", "note", "PIP_NO_INDEX is set: nothing is fetched from a package"),
    ],
)
def test_a_setting_that_slows_or_breaks(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, what: str, state: str, says: str
) -> None:
    if what == "core" and library.best_isa() in ("portable", "reference"):
        pytest.skip("this processor has no better set")
    monkeypatch.setenv(variable, value)
    code, found, _ = checks(capsys)
    assert code == (state == "fault") and found[what]["state"] == state and says in found[what]["found"]
    assert variable in found[what]["remedy"]


@pytest.mark.parametrize(
    ("best", "refused", "says"),
    [
        ("avx512_bf16", 0, "take no longer than those of floats here, so avx512_bf16 is the best set"),
        ("avx512", 0, "take longer than those of floats here, so avx512 is the best set"),
        ("avx512", -1, None),  # this processor has none
        ("amx", 0, None),  # has tiles, for which nothing is measured
    ],
)
def test_what_was_measured_of_bfloat16(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, best: str, refused: int, says: str | None
) -> None:
    used = list[int]()
    monkeypatch.setattr(library, "best_isa", lambda: best)
    monkeypatch.setattr(library, "isa", lambda: "avx2")
    monkeypatch.setattr(library, "function", lambda *_, **__: lambda level: used.append(level) or refused)
    found = list(doctor.bfloat16_products())
    assert [one.found.removeprefix("its products ").partition(";")[0] for one in found] == (
        [] if says is None else [says]
    )
    assert used == ([] if best == "amx" else [library.SETS["avx512_bf16"], library.SETS["avx2"]])
    monkeypatch.undo()
    assert checks(capsys)[1].get("bfloat16", {"state": "ok"})["state"] == "ok"


def test_a_cache_that_cannot_be_written(capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "file"))
    code, found, _ = checks(capsys)
    assert code == 1 and found["cache"]["state"] == "fault" and "CUTAWAY_HOME" in found["cache"]["remedy"]


def test_pages_of_prompts_that_others_can_write(capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path))
    assert "prefixes" not in checks(capsys)[1]
    (tmp_path / "prefixes" / "model").mkdir(parents=True)
    (tmp_path / "prefixes" / "model" / "page").write_bytes(bytes(2000))
    (tmp_path / "prefixes").chmod(0o755)
    found = checks(capsys)[1]["prefixes"]
    assert found["state"] == "ok" and found["found"].endswith("1 pages of prompts, 2.0 kB")
    (tmp_path / "prefixes").chmod(0o775)
    found = checks(capsys)[1]["prefixes"]
    assert found["state"] == "note" and "chmod go-w" in found["remedy"]


def test_a_damaged_model(capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path))
    model = store.NAMES[store.DEFAULT]
    assert checks(capsys)[1]["model"]["state"] == "note", "not there yet is no fault"
    file = tmp_path / "models" / store.DEFAULT / model.file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF and nothing more")
    code, found, _ = checks(capsys)
    assert (
        code == 1 and "is damaged" in found["model"]["found"] and "cutaway pull" in found["model"]["remedy"]
    )


def test_a_full_disk_and_little_memory(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ROOM", 1 << 60)
    monkeypatch.setattr(doctor, "WORK", 1 << 60)
    code, found, _ = checks(capsys)
    assert code == 0 and found["cache"]["state"] == found["memory"]["state"] == "note"
    assert "models --remove" in found["cache"]["remedy"]


def test_a_library_that_is_too_old(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["torch>=2.9; extra == 'train'", 'cutaway[train]; extra == "all"', "numpy>=2.0"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needs)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0+cpu")
    assert extras.complete() == ({"train", "all"}, {})
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.8.1+cpu")
    code, found, _ = checks(capsys)
    assert code == 1 and found["extras"]["found"] == "torch is 2.8.1+cpu; train needs 2.9 or later"
    assert found["extras"]["remedy"] == f"{extras.install('train')} --upgrade"


def test_a_library_of_the_plain_installation_that_is_absent_or_too_old(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "1.26.4" if name == "numpy" else version(name)
    )
    code, found, _ = checks(capsys)
    assert code == 1 and found["library"]["found"] == "numpy is 1.26.4; Cutaway needs 2.0 or later"

    def absent(name: str) -> str:
        if name == "jinja2":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    code, found, _ = checks(capsys)
    assert code == 1 and found["library"]["found"].startswith("jinja2 is not installed; Cutaway needs 3.1")
    assert found["library"]["remedy"] == f"{extras.install()} --upgrade" and "[" not in extras.install()
    monkeypatch.setitem(sys.modules, "cyclopts", None)  # what is imported before a verb can begin
    assert cli.main(["doctor"]) == 1
    assert "libraries are absent or too old here (jinja2): " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("marker", "pip", "clone", "command"),
    [
        ("", True, None, "pip install 'cutaway[train,agent]'"),
        ("", True, "/src/cutaway", "pip install -e '/src/cutaway[train,agent]'"),
        ("", False, None, "uv pip install 'cutaway[train,agent]'"),
        ("uv-receipt.toml", False, None, "uv tool install 'cutaway[train,agent]'"),
        ("pipx_metadata.json", False, None, "pipx install --force 'cutaway[train,agent]'"),
        ("archive-v0/x", False, None, "uvx --from 'cutaway[train,agent]' cutaway ..."),
    ],
)
def test_an_extra_is_added_by_what_made_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, marker: str, pip: bool, clone: str | None, command: str
) -> None:
    prefix = tmp_path / marker if "/" in marker else tmp_path
    prefix.mkdir(parents=True, exist_ok=True)
    if marker and prefix == tmp_path:
        (tmp_path / marker).touch()
    found = extras.importlib.util.find_spec
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setattr(extras, "_clone", lambda: clone)
    monkeypatch.setattr(
        extras.importlib.util, "find_spec", lambda name: (pip or None) if name == "pip" else found(name)
    )
    assert extras.install("train", "agent") == command


def test_the_version_names_core_instruction_set_and_extras(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "complete", lambda: ({"train", "agent"}, {}))
    assert cli.main(["--version"]) == 0
    core = f"native core {library.ABI}, {library.isa()}"
    core = core if library.unavailable_reason() is None else "no native core"
    assert f"({core}; extras: agent, train)" in capsys.readouterr().out
