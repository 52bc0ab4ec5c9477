"""The sandbox against hostile code: an attack fails, and succeeds where the layer against it is left out."""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from pathlib import Path

import pytest

from cutaway import sandbox
from cutaway.errors import UserError
from cutaway.sandbox import Bounds, Outcome

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")


def without(layer: str, code: str, monkeypatch: pytest.MonkeyPatch, bounds: Bounds | None = None) -> Outcome:
    """Run with one layer left out, which only a test does."""
    monkeypatch.setattr(sandbox, "LAYERS", tuple(name for name in sandbox.LAYERS if name != layer))
    monkeypatch.setattr(sandbox, "REQUIRED", ())
    return sandbox.run(code, bounds)


def test_code_runs_and_every_layer_holds():
    found = sandbox.run("import math, json, re, random, decimal\nprint(json.dumps([math.comb(5, 2), 'é']))")
    assert (found.output, found.ended) == ('[10, "\\u00e9"]\n', "finished")
    assert found.layers == sandbox.LAYERS and not found.missing


def test_an_error_is_shown():
    found = sandbox.run("1 / 0")
    assert found.ended == "failed" and "ZeroDivisionError" in found.error


def test_files_of_the_machine_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    secret = tmp_path / "secret"
    secret.write_text("the canary")
    for path in (str(secret), "/etc/passwd", "/proc/self/environ", "/proc/1/cmdline"):
        found = sandbox.run(f"print(open({path!r}).read())")
        assert found.ended == "failed" and "Permission denied" in found.error, path
    for folder in ("/", str(Path.home()), "/tmp"):
        assert "Permission denied" in sandbox.run(f"import os; os.listdir({folder!r})").error
    attack = f"import os; os.symlink({str(tmp_path)!r}, 'link'); print(open('link/secret').read())"
    assert "Permission denied" in sandbox.run(attack).error
    assert without("landlock", attack, monkeypatch).output == "the canary\n"


def test_nothing_is_written_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    attack = f"open({str(tmp_path / 'written')!r}, 'w').write('x')"
    assert "Permission denied" in sandbox.run(attack).error
    assert not list(tmp_path.iterdir())
    assert sandbox.run("open('own', 'w').write('x'); print(open('own').read())").output == "x\n"
    assert without("landlock", attack, monkeypatch).ended == "finished"
    assert (tmp_path / "written").exists()


@pytest.mark.parametrize(
    "attack",
    [
        "import os; os.fork()",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', ''])",
        "import os, sys; os.execv(sys.executable, ['python'])",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
    ],
)
def test_no_process_is_started(attack: str, monkeypatch: pytest.MonkeyPatch):
    found = sandbox.run(attack)
    assert found.ended == "failed" and "Operation not permitted" in found.error
    if "fork()" in attack:
        assert without("seccomp", attack, monkeypatch).ended == "finished"


def test_a_fork_bomb_makes_one_process():
    before = len(os.listdir("/proc"))
    found = sandbox.run("import os\nwhile True:\n try: os.fork()\n except OSError: pass", Bounds(seconds=1))
    assert found.ended == "out of time"
    assert len(os.listdir("/proc")) < before + 200


def test_no_socket_is_made(monkeypatch: pytest.MonkeyPatch):
    for kind in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"):
        found = sandbox.run(f"import socket; socket.socket(socket.{kind})")
        assert "Operation not permitted" in found.error, kind
    attack = "import socket; socket.socket()"
    assert without("seccomp", attack, monkeypatch).ended == "finished"


def test_a_list_of_ten_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch):
    assert "MemoryError" in sandbox.run("x = bytearray(10 * 10**9)").error
    attack = "x = bytearray(6 * 10**8); print(len(x))"
    assert "MemoryError" in sandbox.run(attack).error
    assert without("limits", attack, monkeypatch, Bounds(seconds=60)).output == "600000000\n"


def test_endless_output_ends():
    found = sandbox.run("while True: print('x' * 1000)", Bounds(output=10_000))
    assert found.ended == "too much output" and len(found.output) == 10_000
    found = sandbox.run("import sys\nwhile True: sys.stderr.write('x' * 1000)", Bounds(output=10_000))
    assert found.ended == "too much output"


def test_time_ends_though_signals_are_ignored():
    attack = """
import signal
for number in range(1, 64):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
"""
    start = time.monotonic()
    assert sandbox.run(attack, Bounds(seconds=1)).ended == "out of time"
    assert time.monotonic() - start < 20


def test_sleeping_ends_too():
    assert sandbox.run("import time; time.sleep(100)", Bounds(seconds=0.5)).ended == "out of time"


def test_the_disk_is_bounded(monkeypatch: pytest.MonkeyPatch):
    attack = "for n in range(30): open(str(n), 'wb').write(b'x' * (1 << 20))"
    assert "No space left" in sandbox.run(attack, Bounds(disk=4 << 20)).error
    whole = "open('one', 'wb').write(b'x' * (8 << 20))"
    assert "File too large" in sandbox.run(whole, Bounds(disk=4 << 20)).error  # the limit of one file
    assert without("namespaces", attack, monkeypatch, Bounds(disk=4 << 20)).ended == "finished"


def test_others_are_not_traced_nor_killed(monkeypatch: pytest.MonkeyPatch):
    attack = "import os; os.kill({}, 0)"
    assert "Operation not permitted" in sandbox.run(attack.format(os.getpid())).error
    traced = "import ctypes; l = ctypes.CDLL(None, use_errno=True); print(l.ptrace(0, 0, 0, 0))"
    assert sandbox.run(traced).output == "-1\n"
    assert without("seccomp", traced, monkeypatch).output == "0\n"


ANOTHER_ABI = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret: the 32-bit getpid
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))(), flush=True)
"""
X32 = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall(0x40000000 + 39), ctypes.get_errno())  # x32's getpid
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64's other tables of system calls")
def test_other_tables_of_system_calls_are_closed():
    found = sandbox.run(ANOTHER_ABI)
    assert (found.ended, found.output) == ("killed", "")
    assert sandbox.run(X32).output == "-1 1\n"  # EPERM, not the kernel's ENOSYS


def test_a_limit_is_not_raised_again():
    raise_it = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))"
    assert sandbox.run(raise_it).ended == "failed"
    lower = "import resource; print(resource.getrlimit(resource.RLIMIT_CORE))"
    assert sandbox.run(lower).output == "(0, 0)\n"


def test_threads_run():
    code = "import threading; t = threading.Thread(target=print, args=(5,)); t.start(); t.join()"
    assert sandbox.run(code).output == "5\n"


def test_nothing_of_the_caller_is_inherited(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CANARY", "the canary")
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    try:
        found = sandbox.run("import os; print(dict(os.environ))\nfor n in range(3, 64):\n os.fstat(n)")
    finally:
        os.close(reading)
        os.close(writing)
    assert "canary" not in found.output and "Bad file descriptor" in found.error


def test_code_that_is_no_text_or_does_not_read_all_is_no_problem():
    assert "SyntaxError" in sandbox.run("\0").error + sandbox.run("(").error
    assert sandbox.run("#" + "x" * 1_000_000).ended == "finished"


def test_runs_side_by_side():
    found: dict[int, str] = {}

    def one(n: int) -> None:
        found[n] = sandbox.run(f"print({n})", Bounds(seconds=30)).output

    threads = [threading.Thread(target=one, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: f"{n}\n" for n in range(6)}


def test_without_a_boundary_code_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox, "LAYERS", ("limits", "seccomp"))
    with pytest.raises(UserError, match="no boundary"):
        sandbox.run("print(1)")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="Landlock"):
        sandbox.run("print(1)")
