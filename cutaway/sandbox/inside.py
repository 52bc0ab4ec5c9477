"""The source of the process that runs sandboxed code: it gives up what it may do, then runs the code.

``launcher.py`` starts it by ``python -I -S -c SOURCE``, so that nothing of the package is in its memory or on
its stack. Standard input brings a line of JSON with the settings, then the code. A line on the descriptor
``report`` says which layers hold; each is tried before it is called holding. Standard library alone.

    limits        memory, processor time, file size, descriptors, threads; no core dump
    privileges    no capability, none to be had by a program, no tracer
    landlock      files: Python's own to read, the working folder to write
    seccomp       the system calls that policy.py lists
"""

import ctypes
import errno
import json
import os
import resource
import signal
import struct
import sys
import threading
import types

LIBC = ctypes.CDLL(None, use_errno=True)
NO_NEW_PRIVILEGES, GET_SECCOMP, SET_SECCOMP, FILTER, SET_DUMPABLE, PARENT_DIED = 38, 21, 22, 2, 4, 1
CREATE_RULESET, ADD_RULE, RESTRICT = 444, 445, 446
CAPABILITIES_3 = 0x20080522
# Landlock's rights, by bit: 1 write, 2 read, 3 list, 4 and 5 remove, 7 make a folder, 8 make a file, 13 move,
# 14 truncate. Not given to anyone: 0 execute, 6 and 9 to 12 devices, sockets, pipes and links, 15 ioctl.
READ, READ_FOLDER, WRITE_FILE = 1 << 2, 1 << 3, 1 << 1 | 1 << 2 | 1 << 14
READ_WRITE = sum(1 << bit for bit in (1, 2, 3, 4, 5, 7, 8, 13, 14))
AT_RANDOM, UNIT, MB = 25, 1 << 16, 1 << 20
RESERVED, EXACTLY = 0x2 | 0x20 | 0x4000, 0x100000  # MAP_PRIVATE, _ANONYMOUS, _NORESERVE; _FIXED_NOREPLACE
ANSWERS = 3  # the descriptor on which a conversation's answers leave


def namespaces(settings: dict) -> None:
    """Check what stage one made: nothing but the listed places in view."""
    if os.path.exists("/proc/self") or os.getcwd() != settings["folder"]:
        raise OSError("the machine's files are in view")


def limits(settings: dict) -> None:
    """Bound memory, processor time, file size, open files and threads; no core dump, no locked memory."""
    values = {
        "RLIMIT_AS": settings["memory"],  # narrowed() raises it by what it reserves
        "RLIMIT_CPU": settings["seconds"],
        "RLIMIT_FSIZE": settings["disk"],
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_SIGPENDING": 64,
    }
    if "namespaces" in settings["layers"]:  # elsewhere it would count all processes of the user
        values["RLIMIT_NPROC"] = settings["threads"]
    for name, value in values.items():
        most = resource.getrlimit(getattr(resource, name))[1] if hasattr(resource, name) else None
        if most is not None:
            value = value if most == resource.RLIM_INFINITY else min(value, most)
            raised = name == "RLIMIT_AS" and _filters(settings)
            resource.setrlimit(getattr(resource, name), (value, most if raised else value))
    if _filters(settings) and resource.getrlimit(resource.RLIMIT_AS)[1] != resource.RLIM_INFINITY:
        raise OSError("the address space has a limit already (ulimit -H -v), so that none can be reserved")


def privileges(settings: dict) -> None:
    """Give up every capability and all that a set-uid program would give; no core dump, no tracer; end with
    the parent.
    """
    _check(LIBC.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
    _check(LIBC.capset(struct.pack("=II", CAPABILITIES_3, 0), bytes(24)), "capset")
    _check(LIBC.prctl(SET_DUMPABLE, 0, 0, 0, 0), "prctl")
    _check(LIBC.prctl(PARENT_DIED, signal.SIGKILL, 0, 0, 0), "prctl")


def landlock(settings: dict) -> None:
    """Open to this process its own files: what Python reads, the working folder, and nothing else."""
    version = min(LIBC.syscall(CREATE_RULESET, None, 0, 1), settings["landlock"])
    _check(min(version, 0), "landlock")
    rights = (1 << (13, 14, 15, 15, 16)[min(version, 5) - 1]) - 1
    net, scopes = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = LIBC.syscall(CREATE_RULESET, struct.pack("QQQ", rights, net, scopes)[:size], size, 0)
    _check(min(ruleset, 0), "landlock")
    opened = [(path, READ | READ_FOLDER) for path in settings["readable"]]
    opened += [(path, READ_FOLDER) for path in settings["listable"]]
    for path, access in [*opened, ("/dev/null", WRITE_FILE), (settings["folder"], READ_WRITE)]:
        if not os.path.exists(path):
            continue
        if not os.path.isdir(path):
            access &= WRITE_FILE
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", access & rights, place)
        _check(LIBC.syscall(ADD_RULE, ruleset, 1, rule, 0), "landlock")
        os.close(place)
    _check(LIBC.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
    _check(LIBC.syscall(RESTRICT, ruleset, 0), "landlock")
    os.close(ruleset)
    try:
        os.listdir("/")
    except PermissionError:
        return
    raise OSError("it is set, and folders can still be read")


def seccomp(settings: dict) -> None:
    """Allow the listed system calls, those that change mappings within a window of the address space."""
    if not settings["program"]:
        raise OSError(settings["no_program"])
    first, end = narrowed(settings) if _filters(settings) else (0, 0)
    known = {"pid": os.getpid(), "first": first, "end": end}
    program = [
        struct.pack("=HBBI", code, yes, no, known.get(constant, constant))
        for code, yes, no, constant in settings["program"]
    ]
    buffer = ctypes.create_string_buffer(b"".join(program))
    filter = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer))
    _check(LIBC.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
    _check(LIBC.prctl(SET_SECCOMP, FILTER, filter, 0, 0), "seccomp")
    if LIBC.memfd_create(b"", 0) != -1 or ctypes.get_errno() != errno.EPERM:
        raise OSError("it is set, and calls that it denies are made")


def narrowed(settings: dict) -> tuple[int, int]:
    """Reserve the address space outside of a window of eight times the memory, and give the window in 64 KB.

    Page tables are memory that RLIMIT_AS does not count: up to 16 KB for two pages that lie far from all
    others. Inside the window they are at most a 512th of it. A reservation is address space that no code can
    use, which RLIMIT_AS counts. The heap and the stack keep room to grow.
    """
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    if most != resource.RLIM_INFINITY:  # the layer of limits does not hold
        return 0, 0xFFFFFFFF
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    LIBC.getauxval.restype = LIBC.sbrk.restype = ctypes.c_ulong
    LIBC.mmap.restype = ctypes.c_long
    page, memory = resource.getpagesize(), settings["memory"] // UNIT * UNIT
    size = min(8 * memory, 1 << 45) + 4 * UNIT
    window = _reserved(0, size)
    _check(0 if window else -1, "mmap")
    first, end = -(-window // UNIT), (window + size) // UNIT
    kept = [(first * UNIT, (end - first - 2) * UNIT)]  # the filter rounds a range up by as much as two units
    most_stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    deep = min(most_stack, memory) if most_stack > 0 else memory
    top = LIBC.getauxval(AT_RANDOM) - MB  # of a stack that has used less
    for start, length in ((LIBC.sbrk(0), memory), (top - deep, deep)):
        place = -(-start // page) * page
        if _reserved(place, length // UNIT * UNIT):
            kept.append((place, length // UNIT * UNIT))
    reserved, size = 0, 1 << 47
    while size >= page:
        if _reserved(0, size):
            reserved += size
        else:
            size >>= 1
    for place, length in kept:
        _check(LIBC.munmap(ctypes.c_void_p(place), ctypes.c_size_t(length)), "munmap")
    if "limits" in settings["layers"]:
        value = reserved + settings["memory"]
        resource.setrlimit(resource.RLIMIT_AS, (value, value))
    return first, end - 1


def _filters(settings: dict) -> bool:
    """Whether a filter is to be set, and the kernel has filters."""
    asked = "seccomp" in settings["layers"] and settings["program"]
    return bool(asked) and LIBC.prctl(GET_SECCOMP, 0, 0, 0, 0) >= 0


def _reserved(place: int, length: int) -> int:
    """Address space without access, at this place or (0) anywhere: where it is, 0 where there is none."""
    given = (ctypes.c_void_p(place), ctypes.c_size_t(length), 0, RESERVED | (EXACTLY if place else 0), -1)
    return max(LIBC.mmap(*given, ctypes.c_long(0)), 0)


LAYERS = (namespaces, limits, privileges, landlock, seccomp)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _received() -> tuple[dict, str]:
    """Settings and code from standard input, without a byte of what follows them."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(3)
        line += byte
    settings = json.loads(line)
    parts, left = [], settings["code_bytes"]
    while left:
        part = os.read(0, min(left, 1 << 16))
        if not part:
            os._exit(3)
        parts.append(part)
        left -= len(part)
    return settings, b"".join(parts).decode("utf-8", "surrogateescape")


def _show(error: BaseException | None, code: str) -> None:
    """Print an error with the lines of the user's code alone."""
    try:
        import linecache
        import traceback

        linecache.cache["<code>"] = (len(code), None, code.splitlines(keepends=True), "<code>")
        assert error is not None
        whole = traceback.TracebackException.from_exception(error, limit=-50, compact=True)
        waiting = [whole]
        while waiting:
            part = waiting.pop()
            kept = [frame for frame in part.stack if frame.filename == "<code>"]
            part.stack = traceback.StackSummary.from_list(kept)
            waiting += [each for each in (part.__cause__, part.__context__) if each is not None]
            waiting += getattr(part, "exceptions", None) or []
        text = "".join(whole.format())
    except Exception:  # no memory for it, or the user's own __str__ fails
        text = f"{type(error).__name__}\n"
    sys.stderr.write(text)


def main() -> tuple[str, list[str]]:
    """Confine this process and report; give the code, and where packages lie."""
    settings, code = _received()
    os.environ.pop("PWD", None)  # bubblewrap sets it
    holding, missing = [], {}
    for layer in LAYERS:
        if layer.__name__ not in settings["layers"]:
            continue
        try:
            layer(settings)
            holding.append(layer.__name__)
        except (OSError, ValueError, AttributeError) as error:
            missing[layer.__name__] = str(error)
    os.write(settings["report"], json.dumps({"holding": holding, "missing": missing}).encode() + b"\n")
    if not set(settings["required"]) <= set(holding):
        os._exit(3)
    os.close(settings["report"])
    first = ANSWERS
    if settings["answers"] not in (None, ANSWERS):
        os.dup2(settings["answers"], ANSWERS)
        os.close(settings["answers"])
    if settings["answers"] is not None:
        first += 1
    os.closerange(first, 1024)
    return code, settings["listable"]


code, packages = main()
sys.argv = [""]
sys.path += packages
sys.excepthook = lambda kind, error, trace: _show(error, code)
threading.excepthook = sys.unraisablehook = lambda args: _show(args.exc_value, code)
sys.modules["__main__"] = types.ModuleType("__main__")
exec(compile(code, "<code>", "exec"), sys.modules["__main__"].__dict__)
