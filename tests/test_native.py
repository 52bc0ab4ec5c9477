"""The native core: its checks, its instruction sets, its threads; and what the package does without it.

Without a built core the tests of kernels are left out, and those of the checks and of its absence still run.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from cutaway import native
from cutaway.errors import OperationalError, UserError
from cutaway.gguf import TYPES, Packed
from cutaway.native import library
from cutaway.quantization import codebooks, formats

built = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)

# Unpacks every type in a fresh process, where the environment chooses the path; compares with the reference.
COMPARE = """
import sys
import numpy as np
from cutaway import native
from cutaway.gguf import TYPES, Packed
from cutaway.quantization import formats

assert native.available(), native.unavailable_reason()
assert native.isa() == sys.argv[1], native.isa()
generator = np.random.default_rng(5)
for name in formats.READERS:
    layout = TYPES[name]
    for rows, blocks in ((1, 1), (3, 5), (40, 9)):
        data = generator.integers(0, 256, (rows, blocks * layout.bytes), dtype=np.uint8)
        packed = Packed(name, (rows, blocks * layout.block), data)
        ours, expected = formats.unpack(packed), formats.unpack_reference(packed)
        same = (ours.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(ours) & np.isnan(expected))
        assert same.all(), (name, rows, blocks)
print("same bits")
"""


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter on this tree."""
    tree = str(Path(native.__file__).parents[2])
    path = os.pathsep.join([tree, *filter(None, [os.environ.get("PYTHONPATH")])])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CUTAWAY_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=kept | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


FORKS = """
import json, os, sys, tempfile, traceback
import numpy, pytest, torch
from cutaway.native import library

sets, before, code, *arguments = sys.argv[1:]
sys.argv[:] = ["-c", library.isa(), *arguments]
shared = {"__name__": "__main__"}
exec(before, shared)
runs = {}
for isa in sets.split():
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os.environ["CUTAWAY_ISA"], sys.argv[1] = isa, isa
            library._load.cache_clear()  # the next call chooses the set
            try:
                exec(code, shared)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        os.waitpid(child, 0)
        runs[isa] = [file.seek(0) or file.read().decode() for file in (out, err)]
print(json.dumps(runs))
"""


class Run(NamedTuple):
    stdout: str
    stderr: str


def on_each_set(before: str, code: str, *arguments: str) -> dict[str, Run]:
    """Runs code for each instruction set in a process of its own, whose CUTAWAY_ISA chooses the set.

    One interpreter imports what all need and runs ``before``, which together take longer than most of the
    code; it forks with what that made.
    """
    done = python(FORKS, " ".join(library.SETS), before, code, *arguments)
    assert done.returncode == 0, done.stderr
    return {isa: Run(*printed) for isa, printed in json.loads(done.stdout).items()}


def sample(type: str = "Q4_1", rows: int = 64, blocks: int = 40, seed: int = 0) -> Packed:
    """Packed weights without infinities: the high byte of each 16 bits is kept small."""
    data = np.random.default_rng(seed).integers(0, 60, (rows, blocks * TYPES[type].bytes), dtype=np.uint8)
    return Packed(type, (rows, blocks * TYPES[type].block), data)


def test_the_layouts_are_the_files():
    for name, layout in native.LAYOUTS.items():
        assert tuple(layout) == tuple(TYPES[name])
    without_kernels = {*codebooks.PARTS, "NVFP4", "Q1_0"}
    assert set(native.LAYOUTS) == set(formats.READERS) - without_kernels


@built
@pytest.mark.parametrize("isa", library.SETS)
def test_each_instruction_set_gives_the_same_bits(isa: str):
    run = python(COMPARE, isa, CUTAWAY_ISA=isa)
    if "the best that this processor has" in run.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert run.stdout == "same bits\n", run.stderr


@built
def test_the_best_set_is_the_default():
    run = python("from cutaway import native; print(native.isa())")
    assert run.stdout.strip() in library.SETS, run.stderr
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "avx512vl" in flags and "avx512bw" in flags and "avx512dq" in flags:
        assert run.stdout.strip().startswith(("avx512", "amx"))


@built
@pytest.mark.parametrize("isa", ["sse9", "AVX2 "])
def test_an_unknown_instruction_set_is_refused(isa: str):
    run = python("from cutaway import native; native.available()", CUTAWAY_ISA=isa)
    assert f"UserError: CUTAWAY_ISA is {isa!r}; it may be portable, neon, avx2, avx_vnni" in run.stderr


@built
@pytest.mark.parametrize("type", native.LAYOUTS)
@pytest.mark.parametrize("threads", [-1, 0, 1, 2, 3, 8, 33])
def test_any_number_of_threads(type: str, threads: int):
    packed = sample(type, rows=67, blocks=13 if TYPES[type].block > 1 else 1111)
    out = np.full(packed.shape, np.nan, np.float32)
    native.unpack(type, packed.data, out, threads)
    assert (out.view(np.uint32) == formats.unpack_reference(packed).view(np.uint32)).all()


@built
@pytest.mark.parametrize("values", [1, 31, 33, 16383, 16385, 50001])
@pytest.mark.parametrize("type", ["F32", "F16", "BF16"])
def test_nothing_is_written_past_the_end(type: str, values: int):
    layout = TYPES[type]
    data = np.random.default_rng(1).integers(0, 60, values * layout.bytes, dtype=np.uint8)
    room = np.full(values + 64, 7, np.float32)
    native.unpack(type, data, room[32:-32], 3)
    assert (room[32:-32] == formats.unpack_reference(Packed(type, (values,), data))).all()
    assert (room[:32] == 7).all()
    assert (room[-32:] == 7).all()


@built
def test_several_python_threads_at_once():
    packed = [sample(seed=seed) for seed in range(6)]
    expected_all = [formats.unpack_reference(one) for one in packed]
    wrong = []

    def work(index: int) -> None:
        for _ in range(40):
            out = np.empty(packed[index].shape, np.float32)
            native.unpack("Q4_1", packed[index].data, out, 4)
            if (out != expected_all[index]).any():
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@built
def test_the_pool_survives_fork():
    """A child forked while another thread of its parent uses the pool makes its own threads."""
    code = """
import os, signal, threading, warnings
import numpy as np
from cutaway import native
warnings.simplefilter("ignore")  # newer Pythons warn of fork in a process with threads: it is what is tested
data = np.random.default_rng(0).integers(0, 60, 20 * 20000, dtype=np.uint8)
def unpack():
    out = np.empty(32 * 20000, np.float32)
    native.unpack("Q4_1", data, out, 4)
    return out
expected, stop = unpack(), threading.Event()
def busy():
    while not stop.is_set():
        unpack()
other = threading.Thread(target=busy)
other.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        same = all((unpack() == expected).all() for _ in range(5))
        os._exit(0 if same and len(os.listdir("/proc/self/task")) == 4 else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
other.join()
print("survived")
"""
    if not Path("/proc/self/task").exists():
        pytest.skip("counts threads in /proc")
    run = python(code)
    assert run.stdout == "survived\n", run.stderr


@built
def test_no_worker_waits_for_its_callers_processor():
    """Workers may run where they could before, but for the processor that the caller is on when it calls."""
    code = """
import os
import numpy as np
from cutaway import native
data, out = np.zeros(20 * 20000, np.uint8), np.empty(32 * 20000, np.float32)
processors, before = os.sched_getaffinity(0), set(os.listdir("/proc/self/task"))
def workers():
    return [os.sched_getaffinity(int(task)) for task in set(os.listdir("/proc/self/task")) - before]
def call(threads, on):
    os.sched_setaffinity(0, on)  # so that it is there ...
    os.sched_setaffinity(0, processors)  # ... and stays a while, though it need not
    native.unpack("Q4_1", data, out, threads)
for here in sorted(processors)[:2] * 3:
    for _ in range(100):
        call(2, {here})
        if workers() == [processors - {here}]:
            break
    else:
        raise SystemExit(f"called on {here} of {processors}, worked on {workers()}")
call(4 * len(processors), processors)  # more than there are processors: they run anywhere
assert workers().count(processors) == 4 * len(processors) - 2
print("apart")
"""
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors, and to know them")
    run = python(code)
    assert run.stdout == "apart\n", run.stderr


@built
def test_what_does_not_fit_is_refused_before_the_core():
    packed = sample("Q4_0", 2, 2)
    out = np.empty(packed.shape, np.float32)
    data = packed.data
    with pytest.raises(UserError, match="no weight type 'Q9'"):
        native.unpack("Q9", data, out)
    with pytest.raises(UserError, match="out holds float64, and float32 is needed"):
        native.unpack("Q4_0", data, out.astype(np.float64))
    with pytest.raises(UserError, match="out holds >f4"):
        native.unpack("Q4_0", data, out.astype(">f4"))
    with pytest.raises(UserError, match="blocks holds int8"):
        native.unpack("Q4_0", data.view(np.int8), out)
    with pytest.raises(UserError, match="72 bytes of Q4_0 do not hold 64 values"):
        native.unpack("Q4_0", data, out[:1])
    with pytest.raises(UserError, match="do not hold 127 values"):
        native.unpack("Q4_0", data, out.ravel()[:-1])
    with pytest.raises(UserError, match="blocks is not contiguous"):
        native.unpack("Q4_0", np.repeat(data, 2, axis=1)[:, ::2], out)
    with pytest.raises(UserError, match="out is not contiguous"):
        native.unpack("Q4_0", data, np.empty((64, 2), np.float32).T)
    unaligned = np.empty(out.nbytes + 1, np.uint8)[1:].view(np.float32)
    with pytest.raises(UserError, match="out is not"):
        native.unpack("Q4_0", data, unaligned)
    out.flags.writeable = False
    with pytest.raises(UserError, match="cannot be written"):
        native.unpack("Q4_0", data, out)


def test_threads_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUTAWAY_THREADS", "3")
    assert native.threads() == 3
    for bad in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("CUTAWAY_THREADS", bad)
        with pytest.raises(UserError, match="CUTAWAY_THREADS"):
            native.threads()
    monkeypatch.delenv("CUTAWAY_THREADS")
    assert 1 <= native.threads() <= (os.cpu_count() or 1)


def test_affinity_limits_the_threads():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity")
    core = min(os.sched_getaffinity(0))
    run = python(
        f"import os; os.sched_setaffinity(0, {{{core}}}); from cutaway import native; print(native.threads())"
    )
    assert run.stdout == "1\n", run.stderr


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_a_containers_quota(files: dict[str, str], cores: float, tmp_path: Path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert library._quota(tmp_path) == cores


ABSENT = """
import warnings
import numpy as np
from cutaway import native
from cutaway.errors import OperationalError
from cutaway.gguf import Packed
from cutaway.quantization import formats

print(native.unavailable_reason())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    packed = Packed("Q8_0", (1, 32), np.arange(34, dtype=np.uint8).reshape(1, 34))
    first, second = formats.unpack(packed), formats.unpack(packed)
assert (first == formats.unpack_reference(packed)).all() and native.isa() == "reference"
assert [warning.category for warning in caught] == [RuntimeWarning], caught
print(caught[0].message)
try:
    native.unpack("Q8_0", packed.data, first)
except OperationalError as error:
    print(error)
"""


def test_the_references_serve_without_a_core():
    run = python(ABSENT, CUTAWAY_PURE="1")
    why = "The native core is off, because CUTAWAY_PURE is set."
    cost = "Results are the same; reading packed weights and tokenizing take many times longer."
    assert run.stdout.splitlines() == [why, f"{why} {cost}", why], run.stderr


@pytest.mark.parametrize(
    ("wheel", "reason"),
    [
        (None, "a source tree that was not built"),
        ("Root-Is-Purelib: true\nBuild: 0pure\n", "CUTAWAY_PURE was set when Cutaway was installed"),
        ("Root-Is-Purelib: true\nBuild: 0failed\n", "its build failed when Cutaway was installed"),
        ("Root-Is-Purelib: false\n", "missing from the package"),
    ],
)
def test_the_reason_for_its_absence(wheel: str | None, reason: str, monkeypatch: pytest.MonkeyPatch):
    class Installed:
        def read_text(self, name: str) -> str | None:
            return wheel if name == "WHEEL" else None

    def distribution(name: str) -> Installed:
        if wheel is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return Installed()

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    assert reason in library._unbuilt_reason()


def test_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    broken = tmp_path / "_core.so"
    broken.write_bytes(b"not a library")
    spec = type("Spec", (), {"origin": str(broken)})
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.delenv("CUTAWAY_PURE", raising=False)
    assert "could not be loaded" in str(library._load.__wrapped__())
    monkeypatch.setattr(library, "_load", library._load.__wrapped__)
    with pytest.raises(OperationalError, match="could not be loaded"):
        native.unpack("F32", np.zeros(4, np.uint8), np.zeros(1, np.float32))


@built
def test_a_library_of_another_version(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "ABI", library.ABI + 1)
    assert "built for another version" in str(library._load.__wrapped__())
