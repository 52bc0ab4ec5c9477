"""The sandbox against hostile code: what it lets through, what it bounds, and that it refuses to be weaker.

The list of escapes is tests/escapes; here are the bounds, the errors, and each layer's own tests.
"""

from __future__ import annotations

import ast
import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from cutaway import sandbox
from cutaway.errors import UserError
from cutaway.sandbox import Bounds, Outcome, folders, launcher, policy, starters

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")


def without(layers: str, code: str, monkeypatch: pytest.MonkeyPatch, bounds: Bounds | None = None) -> Outcome:
    """Run with layers left out, which only a test does."""
    with monkeypatch.context() as patch:
        patch.setattr(launcher, "LEFT_OUT", frozenset(layers.split()))
        return sandbox.run(code, bounds, unsafe=True)


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
        assert found.ended == "failed" and "No such file" in found.error, path
        found = without("namespaces", f"print(open({path!r}).read())", monkeypatch)
        assert found.ended == "failed" and "Permission denied" in found.error, path
    for folder in ("/", str(Path.home()), "/tmp"):
        assert "Error: [Errno" in sandbox.run(f"import os; os.listdir({folder!r})").error
    attack = f"print(open({str(secret)!r}).read())"
    assert without("namespaces landlock", attack, monkeypatch).output == "the canary\n"


def test_nothing_is_written_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    attack = f"open({str(tmp_path / 'written')!r}, 'w').write('x')"
    assert "No such file" in sandbox.run(attack).error
    assert "Permission denied" in without("namespaces", attack, monkeypatch).error
    assert not list(tmp_path.iterdir())
    assert sandbox.run("open('own', 'w').write('x'); print(open('own').read())").output == "x\n"
    assert without("namespaces landlock", attack, monkeypatch).ended == "finished"
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
    assert without("limits", attack + "\nimport time; time.sleep(9)", monkeypatch).ended == "too much memory"
    assert without("limits meter", attack, monkeypatch, Bounds(seconds=60)).output == "600000000\n"


TABLES = """
import ctypes, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_ulong
for n in range(1, 20000):
    place = ctypes.c_void_p((n * 2 << 30) - 4096)
    at = libc.mmap(place, ctypes.c_size_t(8192), 1, 0x100022, -1, ctypes.c_long(0))
    if at == place.value: ctypes.string_at(at, 8192)
print(at == place.value, flush=True)
time.sleep(5)
"""


def test_page_tables_are_bounded_and_measured(monkeypatch: pytest.MonkeyPatch):
    """Two pages far from all others have 16 KB of tables, which no limit of the process counts."""
    bounds = Bounds(seconds=2, memory=192 << 20)
    found = sandbox.run(TABLES, bounds)
    assert (found.output, found.ended) == ("False\n", "out of time")
    assert without("seccomp", TABLES, monkeypatch, bounds).ended == "too much memory"


def test_an_address_space_with_a_limit_is_refused():
    """None of it could be reserved."""
    code = """
import resource
from cutaway import sandbox
from cutaway.errors import UserError
resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36))
try: sandbox.run("print(1)")
except UserError as error: print(error)
print(sandbox.run("print(1)", unsafe=True).layers)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "limits: the address space has a limit already (ulimit -H -v)" in found
    assert found.endswith("('namespaces', 'privileges', 'landlock', 'seccomp', 'meter')\n")


def test_what_grows_has_room():
    """The heap, the stack, threads' memory and arrays, beside an address space that is reserved."""
    code = """
import ctypes, sys, threading, numpy as np
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_long
assert libc.sbrk(64 << 20) > 0
sys.setrecursionlimit(30000)
held = []
for _ in range(10000): held = [held]
assert len(repr(held)) == 20002  # megabytes of stack
for size in (100, 300): assert np.ones(size << 17).sum() == size << 17
grown = np.zeros(1)
for n in range(1, 30): grown = np.resize(grown, n << 18)
threads = [threading.Thread(target=lambda: [bytes(n) for n in range(1 << 12)]) for _ in range(8)]
for each in threads: each.start()
for each in threads: each.join()
print("all")
"""
    found = sandbox.run(code, Bounds(seconds=30))
    assert (found.output, found.error) == ("all\n", "")


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
    assert without("namespaces", attack, monkeypatch, Bounds(disk=4 << 20)).ended in (
        "too much disk",
        "finished",
    )
    slowly = f"import time\n{attack}\ntime.sleep(9)"
    assert without("namespaces", slowly, monkeypatch, Bounds(disk=4 << 20)).ended == "too much disk"


def test_files_are_counted(monkeypatch: pytest.MonkeyPatch):
    attack = "import time\nfor n in range(6000): open(str(n), 'w').close()\ntime.sleep(9)"
    found = sandbox.run(attack, Bounds(seconds=20))
    assert "No space left" in found.error or found.ended == "too much disk"  # bubblewrap bounds no number
    assert without("namespaces", attack, monkeypatch, Bounds(seconds=20)).ended == "too much disk"


def test_threads_are_counted():
    many = (
        "import threading, time\nfor _ in range(200): threading.Thread(target=time.sleep, args=(9,)).start()"
    )
    found = sandbox.run(f"import threading; threading.stack_size(1 << 16)\n{many}", Bounds(seconds=20))
    assert found.ended == "too many threads" or "can't start new thread" in found.error


NESTED = """
import os
for n in range(3000):
    os.mkdir("d")
    os.chdir("d")
    open("file", "w").close()
print("deep")
"""


def test_nested_folders_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """3,000 folders in one another: no path names the innermost, and a recursion ends in RecursionError."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(tmp_path)  # a disk takes seconds for them
    folder = tempfile.mkdtemp(dir=memory)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    found = without("namespaces limits meter", NESTED, monkeypatch, Bounds(seconds=60))
    assert (found.output, found.ended) == ("deep\n", "finished")
    assert without("namespaces", NESTED, monkeypatch, Bounds(seconds=60)).ended in (
        "too much disk",
        "finished",
    )
    os.rmdir(folder)  # which is empty again


def test_a_folder_is_removed_whatever_is_in_it(tmp_path: Path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("x")
    folder = tmp_path / "folder"
    (folder / "a" / "b" / ".moved-1").mkdir(parents=True)
    (folder / "a" / "link").symlink_to(tmp_path / "outside")
    (folder / "link").symlink_to(tmp_path / "outside")
    os.mkfifo(folder / "a" / "pipe")
    (folder / "a" / "b").chmod(0)
    assert folders.size(str(folder))[1] >= 4
    folders.remove(str(folder))
    folders.remove(str(folder))  # which is gone
    assert (tmp_path / "outside" / "kept").exists() and not folder.exists()


def test_others_are_not_traced_nor_killed(monkeypatch: pytest.MonkeyPatch):
    attack = "import os; os.kill({}, 0)"
    assert "Operation not permitted" in sandbox.run(attack.format(os.getpid())).error
    assert "No such process" in without("seccomp", attack.format(os.getpid()), monkeypatch).error
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
    assert "not allowed" in sandbox.run("import resource; resource.setrlimit(7, (1, 1))").error  # nor lowered
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
    assert set(ast.literal_eval(found.output)) == {"PYTHONIOENCODING", "LC_ALL", "OPENBLAS_NUM_THREADS"}


def test_code_that_is_no_text_or_does_not_read_all_is_no_problem():
    assert "SyntaxError" in sandbox.run("\0").error + sandbox.run("(").error
    assert sandbox.run("#" + "x" * 1_000_000).ended == "finished"


@pytest.mark.parametrize("left_out", ["", "namespaces"])
def test_nothing_outlives_a_caller_that_is_killed(left_out: str, tmp_path: Path):
    """What would end the code when its time is over may be killed itself."""
    mark = f"c{os.getpid()}x{len(left_out)}"
    code = f"import ctypes, time; ctypes.CDLL(None).prctl(15, b{mark!r}); time.sleep(60)"
    caller = f"""
from cutaway.sandbox import Bounds, Process, launcher
launcher.LEFT_OUT = frozenset({left_out.split()!r})
with Process({code!r}, Bounds(seconds=60), unsafe=True) as process:
    process.outcome()
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # whose folder stays
    with subprocess.Popen([sys.executable, "-c", caller], env=environment) as process:

        def there() -> bool:
            for name in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{name}/comm").read_text().strip() == mark:
                        return True
            return False

        end = time.monotonic() + 60
        while not there() and time.monotonic() < end:
            time.sleep(0.05)
        assert there()
        process.kill()
        while there() and time.monotonic() < end:
            time.sleep(0.05)
        assert not there()


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


@pytest.mark.parametrize("layer", sandbox.LAYERS)
def test_without_a_layer_code_is_refused(layer: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launcher, "LEFT_OUT", frozenset({layer}))
    with pytest.raises(
        UserError, match=f"{layer}: left out by a test: .*--unsafe: then {launcher.OPEN[layer]}"
    ):
        sandbox.run("print(1)")
    found = sandbox.run("print(1)", unsafe=True)
    assert (found.output, set(found.missing)) == ("1\n", {layer})


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match=r"landlock: it is Linux's: use Linux 5\.13"):
        sandbox.run("print(1)")
    found = sandbox.run("print(1)", unsafe=True)
    assert (found.output, found.layers) == ("1\n", ("limits",))


def test_a_layer_that_is_set_and_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch):
    """As on a kernel or an emulator that takes a filter and does not obey it."""
    monkeypatch.setattr(policy, "instructions", lambda machine: [(policy.RETURN, 0, 0, policy.ALLOW)])
    with pytest.raises(UserError, match="seccomp: it is set, and calls that it denies are made"):
        sandbox.run("print(1)")


def test_another_processor_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(UserError, match="seccomp: there is no list of system calls for riscv64"):
        sandbox.run("print(1)")


def test_a_kernel_without_namespaces_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(starters, "starter", lambda: (None, "unshare: Operation not permitted"))
    with pytest.raises(UserError, match="namespaces: unshare: Operation not permitted: install bubblewrap"):
        sandbox.run("print(1)")


@pytest.mark.parametrize(
    "code", ["1 / 0", "import json\njson.loads('{')", "def f():\n    f()\nf()", "(", "raise 5"]
)
def test_an_error_names_the_users_lines_alone(code: str):
    error = sandbox.run(code).error
    assert 'File "<code>", line ' in error and error.count("File ") == error.count('File "<code>"')
    assert "/" not in error.replace("1 / 0", "") and "sandbox" not in error


def test_errors_of_threads_and_of_clean_up_name_the_users_lines_alone():
    thread = "import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()"
    chained = (
        "try:\n    import json\n    json.loads('x')\nexcept ValueError as e:\n    raise KeyError(5) from e"
    )
    cleaning = "class C:\n    def __del__(self): 1 / 0\nC()"
    for code, kind in ((thread, "ZeroDivision"), (chained, "direct cause"), (cleaning, "ZeroDivision")):
        error = sandbox.run(code).error
        assert kind in error and "<code>" in error and error.count("File ") == error.count('File "<code>"')


def test_what_python_needs_is_allowed():
    """Each reason of the policy's list that a program can show."""
    code = """
import asyncio, contextlib, datetime, decimal, fractions, hashlib, io, os, queue, random, select, shutil
import signal, sqlite3, statistics, tempfile, threading, time, uuid, zoneinfo
from concurrent.futures import ThreadPoolExecutor
import numpy as np
assert np.linalg.inv(np.eye(3) * 2)[0, 0] == 0.5 and np.random.default_rng(0).random() < 1
assert sorted(ThreadPoolExecutor(4).map(abs, range(-9, 9)))[-1] == 9
async def work():
    await asyncio.sleep(0)
    return await asyncio.to_thread(sum, [1, 2])
assert asyncio.run(work()) == 3
with tempfile.TemporaryDirectory(dir=".") as folder:
    path = os.path.join(folder, "a")
    with open(path, "w") as file:
        file.write("x" * 9); file.truncate(5); file.flush(); os.fsync(file.fileno())
    shutil.copyfile(path, path + "2"); os.rename(path + "2", path + "3")
    assert os.path.realpath(path) and sorted(os.listdir(folder)) == ["a", "a3"] and os.stat(path).st_size == 5
assert sqlite3.connect(":memory:").execute("select 1").fetchone() == (1,)
rung = []
signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.01); time.sleep(0.05); assert rung
signal.signal(signal.SIGUSR1, lambda *_: rung.append(2))
os.kill(os.getpid(), signal.SIGUSR1); assert 2 in rung
out = io.StringIO()
with contextlib.redirect_stdout(out): print("seen")
assert uuid.uuid4() and os.cpu_count() and time.process_time() and os.times() and os.uname()
assert hashlib.sha256(b"x").hexdigest()[:4] == "2d71" and datetime.datetime.now().year > 2000
print("all", out.getvalue(), end="")
"""
    found = sandbox.run(code, Bounds(seconds=30))
    assert (found.output, found.error) == ("all seen\n", "")
    pages = sandbox.run("import os; print(os.sysconf('SC_PHYS_PAGES'))").output
    assert int(pages) == os.sysconf("SC_PHYS_PAGES")  # where sysinfo is denied glibc gives rubbish


@pytest.mark.parametrize("machine", policy.ARCHITECTURES)
def test_a_filter_is_one_that_the_kernel_takes(machine: str):
    """Jumps stay inside, paths end in a return; what is listed is allowed, what is not is denied."""
    program = policy.instructions(machine)
    assert len(program) < 4096 and program[-1][0] == policy.RETURN
    for n, (code, yes, no, _) in enumerate(program):
        assert code == policy.RETURN or n + 1 + max(yes, no) < len(program)
    column = list(policy.ARCHITECTURES).index(machine)
    allowed = {call[column] for call in policy.ALLOWED.values()} - {None}
    for number in range(512):
        result = filtered(program, policy.ARCHITECTURES[machine], number)
        if number not in allowed:
            absent = number in [numbers[column] for numbers in policy.ABSENT.values()]
            assert result == policy.ERRNO | (policy.ENOSYS if absent else policy.EPERM), number
    assert filtered(program, 0x40000003, 0) == policy.KILL
    by_name = {name: (call.x86_64, call.aarch64)[column] for name, call in policy.ALLOWED.items()}
    for name, arguments, result in ARGUMENTS:
        number = by_name[name]
        assert number is not None
        assert filtered(program, policy.ARCHITECTURES[machine], number, arguments, pid=77) == (
            policy.ALLOW if result else policy.ERRNO | policy.EPERM
        ), (name, arguments)


FIRST, END = 0x7F0000010000, 0x7F0100000000  # the window, which "first" and "end" name in 64 KB
ARGUMENTS = [
    ("fcntl", (3, 8, 1), False),  # F_SETOWN
    ("fcntl", (3, 15, 1), False),  # F_SETOWN_EX
    ("fcntl", (3, 4, 0x2000), False),  # O_ASYNC
    ("fcntl", (3, 4, 0x800), True),
    ("ioctl", (0, 0x5412, 0), False),  # TIOCSTI
    ("ioctl", (0, 0xFFFFFFFF00005412, 0), False),
    ("socketpair", (1, 1, 0), True),
    ("socketpair", (1, 2, 0), False),  # SOCK_DGRAM
    ("socketpair", (16, 1, 0), False),  # AF_NETLINK
    ("sendto", (3, 0, 5, 0, 0, 0), True),
    ("sendto", (3, 0, 5, 0, 0x100000000, 0), False),
    ("openat", (3, 0, 0x200), False),  # O_TRUNC | O_RDONLY
    ("openat", (3, 0, 0x3), False),
    ("openat", (3, 0, 0x241), True),
    ("mmap", (0, 4096, 3, 0x22), True),
    ("mmap", (0, 4096, 3, 0x40022), False),  # MAP_HUGETLB
    ("mmap", (FIRST, 4096, 3, 0x32), True),
    ("mmap", (FIRST - 4096, 4096, 3, 0x32), False),
    ("mmap", (1 << 32, 8192, 3, 0x22), False),  # a null pointer has 64 bits
    ("mmap", (1 << 63, 8192, 3, 0x22), False),
    ("munmap", (0, 4096), False),
    ("munmap", (FIRST, END - FIRST - (1 << 16)), True),
    ("munmap", (END - 4096, 4096), True),
    ("munmap", (END - 4096, 1 << 17), False),
    ("munmap", (END, 4096), False),
    ("munmap", (FIRST, END - FIRST), False),
    ("munmap", (FIRST, (1 << 64) - 4096), False),
    ("munmap", (FIRST, 1 << 48), False),
    ("mprotect", (FIRST + 4096, 4096, 3), True),
    ("mprotect", (4096, 4096, 3), False),
    ("mremap", (FIRST, 4096, 8192, 1, 0), True),
    ("mremap", (FIRST, 4096, 4096, 3, FIRST), False),  # MREMAP_FIXED
    ("mremap", (FIRST, 4096, 4096, 5, 0), False),  # MREMAP_DONTUNMAP
    ("madvise", (FIRST, 4096, 4), True),
    ("madvise", (FIRST, 4096, 12), False),  # MADV_MERGEABLE
    ("pipe2", (0, 0x80800), True),
    ("pipe2", (0, 0x80), False),  # O_NOTIFICATION_PIPE
    ("sendto", (3, 0, 5, 0x4040, 0, 0), True),
    ("sendto", (3, 0, 5, 0x1, 0, 0), False),  # MSG_OOB
    ("recvfrom", (3, 0, 5, 0x42, 0, 0), True),
    ("recvfrom", (3, 0, 5, 0x1, 0, 0), False),
    ("clone", (0x3D0F00,), True),
    ("clone", (0x11,), False),
    ("clone", (0x10000000 | 0x3D0F00,), False),  # CLONE_NEWUSER
    ("prctl", (15,), True),
    ("prctl", (4,), False),
    ("kill", (77,), True),
    ("kill", (-1 & 0xFFFFFFFF,), False),
    ("tgkill", (1,), False),
    ("prlimit64", (0, 9, 0), True),
    ("prlimit64", (0, 9, 0x7F0000000000), False),
    ("prlimit64", (5, 9, 0), False),
]


def filtered(
    program: list[policy.Instruction], arch: int, number: int, arguments: tuple[int, ...] = (), pid: int = 1
) -> int:
    """What a filter says to a call, by BPF's definition."""
    given = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    words = {0: number, 4: arch}
    for n, value in enumerate(given):
        words |= {16 + 8 * n: value & 0xFFFFFFFF, 20 + 8 * n: value >> 32}
    known = {"pid": pid, "first": FIRST >> 16, "end": END >> 16}
    place = register = other = kept = 0
    while True:
        code, yes, no, constant = program[place]
        value = known[constant] if isinstance(constant, str) else constant
        place += 1
        if code == policy.LOAD:
            register = words[value]
        elif code == policy.CONSTANT:
            register = value
        elif code == policy.LEFT:
            register = register << value & 0xFFFFFFFF
        elif code == policy.RIGHT:
            register >>= value
        elif code == policy.OR_X:
            register |= other
        elif code == policy.MINUS_X:
            register = register - other & 0xFFFFFFFF
        elif code == policy.TO_X:
            other = register
        elif code == policy.KEEP:
            kept = register
        elif code == policy.KEPT_TO_X:
            other = kept
        elif code == policy.AT_LEAST_X:
            place += yes if register >= other else no
        elif code == policy.AND:
            register &= value
        elif code == policy.EQUAL:
            place += yes if register == value else no
        elif code == policy.AT_LEAST:
            place += yes if register >= value else no
        else:
            assert code == policy.RETURN
            return value


@pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")
def test_bubblewrap_is_used_where_it_is_installed():
    how, _ = starters.starter()
    assert how is not None and how.endswith("bwrap")


def test_a_bubblewrap_that_fails_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    starters.starter.cache_clear()
    try:
        assert starters.starter() == ("own", "")
    finally:
        starters.starter.cache_clear()
