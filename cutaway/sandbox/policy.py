"""The system calls that sandboxed Python may make; every other one is denied.

    program = instructions("x86_64")            # for seccomp: (code, if true, if false, constant), or "pid"

``ALLOWED`` is the whole policy: name, number on x86-64, number on ARM64, why Python or numpy needs it.
``CHECKS`` narrows calls by their arguments. A call that is not listed fails with EPERM. One of another
architecture's table (32-bit x86 through ``int 0x80``) ends the process, and x32's numbers fail.

Not listed, and so denied, on purpose: every call that changes mode, owner, times or attributes of a file;
links; System V and POSIX IPC, memfd; sockets; a new process or program; namespaces, mounts, tracing, keys,
BPF, io_uring, userfaultfd; timers and signals that reach others; watching files.
"""

from __future__ import annotations

from typing import NamedTuple


class Call(NamedTuple):
    """A system call: its numbers (None: the architecture has no such call) and what needs it."""

    x86_64: int | None
    aarch64: int | None
    reason: str


ALLOWED: dict[str, Call] = {
    # Files: which ones is decided by Landlock and by what the namespace shows.
    "open": Call(2, None, "open on x86-64, in older C libraries"),
    "openat": Call(257, 56, "open"),
    "close": Call(3, 57, "close"),
    "close_range": Call(436, 436, "os.closerange since Python 3.13, which ends without it"),
    "read": Call(0, 63, "file.read"),
    "readv": Call(19, 65, "os.readv"),
    "pread64": Call(17, 67, "os.pread; the loader reads shared libraries"),
    "preadv": Call(295, 69, "os.preadv"),
    "write": Call(1, 64, "file.write, print"),
    "writev": Call(20, 66, "os.writev; the C library's messages"),
    "pwrite64": Call(18, 68, "os.pwrite"),
    "pwritev": Call(296, 70, "os.pwritev"),
    "lseek": Call(8, 62, "file.seek"),
    "ftruncate": Call(77, 46, "file.truncate"),
    "fsync": Call(74, 82, "os.fsync"),
    "fdatasync": Call(75, 83, "os.fdatasync"),
    "stat": Call(4, None, "import, os.stat"),
    "lstat": Call(6, None, "os.lstat"),
    "fstat": Call(5, 80, "open, import"),
    "newfstatat": Call(262, 79, "import, os.stat"),
    "statx": Call(332, 291, "os.stat in newer C libraries"),
    "access": Call(21, None, "os.access; the loader"),
    "faccessat": Call(269, 48, "os.access"),
    "faccessat2": Call(439, 439, "os.access in newer C libraries"),
    "getdents64": Call(217, 61, "import lists folders, os.listdir"),
    "readlink": Call(89, None, "os.path.realpath"),
    "readlinkat": Call(267, 78, "os.path.realpath"),
    "getcwd": Call(79, 17, "os.getcwd"),
    "chdir": Call(80, 49, "os.chdir"),
    "mkdir": Call(83, None, "os.mkdir, tempfile"),
    "mkdirat": Call(258, 34, "os.mkdir"),
    "rmdir": Call(84, None, "os.rmdir, tempfile"),
    "unlink": Call(87, None, "os.remove"),
    "unlinkat": Call(263, 35, "os.remove, shutil.rmtree"),
    "rename": Call(82, None, "os.rename"),
    "renameat": Call(264, 38, "os.rename"),
    "renameat2": Call(316, 276, "os.rename on ARM64"),
    # Descriptors.
    "dup": Call(32, 23, "os.dup"),
    "dup2": Call(33, None, "contextlib.redirect by descriptor"),
    "dup3": Call(292, 24, "os.dup2"),
    "fcntl": Call(72, 25, "open: close-on-exec, non-blocking pipes; see CHECKS"),
    "ioctl": Call(16, 29, "open asks whether it is a terminal; see CHECKS"),
    "pipe": Call(22, None, "os.pipe in older C libraries"),
    "pipe2": Call(293, 59, "os.pipe; see CHECKS"),
    "poll": Call(7, None, "select.poll"),
    "ppoll": Call(271, 73, "select.poll"),
    "select": Call(23, None, "select.select"),
    "pselect6": Call(270, 72, "select.select, time.sleep"),
    "epoll_create1": Call(291, 20, "asyncio"),
    "epoll_ctl": Call(233, 21, "asyncio"),
    "epoll_wait": Call(232, None, "asyncio"),
    "epoll_pwait": Call(281, 22, "asyncio"),
    # asyncio wakes its loop through a pair of connected sockets, which reach no one else.
    "socketpair": Call(53, 199, "asyncio; see CHECKS"),
    "getsockname": Call(51, 204, "the socket object of a pair"),
    "sendto": Call(44, 206, "socket.send of a pair; see CHECKS"),
    "recvfrom": Call(45, 207, "socket.recv of a pair; see CHECKS"),
    "shutdown": Call(48, 210, "closing one side of a pair"),
    # Memory: how much is bounded by RLIMIT_AS, and where by a window of the address space (inside.py), which
    # keeps page tables few.
    "mmap": Call(9, 222, "memory, shared libraries; see CHECKS"),
    "munmap": Call(11, 215, "freeing memory; see CHECKS"),
    "mprotect": Call(10, 226, "shared libraries, stacks of threads; see CHECKS"),
    "mremap": Call(25, 216, "growing lists and arrays; see CHECKS"),
    "madvise": Call(28, 233, "freeing memory, numpy's huge pages; see CHECKS"),
    "brk": Call(12, 214, "small allocations"),
    # Threads of this process.
    "clone": Call(56, 220, "threads; see CHECKS"),
    "exit": Call(60, 93, "the end of a thread"),
    "exit_group": Call(231, 94, "the end of the program"),
    "futex": Call(202, 98, "locks"),
    "set_robust_list": Call(273, 99, "the start of a thread"),
    "rseq": Call(334, 293, "the start of a thread"),
    "prctl": Call(157, 167, "the name of a thread; see CHECKS"),
    "gettid": Call(186, 178, "threading"),
    "sched_yield": Call(24, 124, "locks, numpy's threads"),
    "sched_getaffinity": Call(204, 123, "os.cpu_count, numpy's threads"),
    "getcpu": Call(309, 168, "numpy's memory"),
    # Signals, to itself alone.
    "rt_sigaction": Call(13, 134, "signal.signal"),
    "rt_sigprocmask": Call(14, 135, "threads, signals"),
    "rt_sigreturn": Call(15, 139, "the end of a signal handler"),
    "sigaltstack": Call(131, 132, "faulthandler"),
    "kill": Call(62, 129, "os.kill of itself; see CHECKS"),
    "tgkill": Call(234, 131, "signal.raise_signal, abort; see CHECKS"),
    "restart_syscall": Call(219, 128, "a sleep goes on after a signal"),
    # Time.
    "alarm": Call(37, None, "signal.alarm"),
    "setitimer": Call(38, 103, "signal.setitimer"),
    "getitimer": Call(36, 102, "signal.getitimer"),
    "nanosleep": Call(35, 101, "time.sleep"),
    "clock_nanosleep": Call(230, 115, "time.sleep"),
    "clock_gettime": Call(228, 113, "time.time"),
    "clock_getres": Call(229, 114, "time.get_clock_info"),
    "gettimeofday": Call(96, 169, "time.time"),
    "time": Call(201, None, "time.time"),
    "times": Call(100, 153, "os.times"),
    "getrusage": Call(98, 165, "resource.getrusage, time.process_time"),
    # About the process itself and the machine.
    "getpid": Call(39, 172, "os.getpid"),
    "getuid": Call(102, 174, "os.getuid"),
    "geteuid": Call(107, 175, "os.geteuid"),
    "getgid": Call(104, 176, "os.getgid"),
    "getegid": Call(108, 177, "os.getegid"),
    "getrlimit": Call(97, 163, "resource.getrlimit"),
    "prlimit64": Call(302, 261, "resource.getrlimit; see CHECKS"),
    "getrandom": Call(318, 278, "random, hashes of strings"),
    "uname": Call(63, 160, "platform"),
    # Where it fails, glibc computes with what happens to be on its stack.
    "sysinfo": Call(
        99, 179, "os.sysconf(SC_PHYS_PAGES), and the C library's sort, ask how much memory there is"
    ),
}

# Flags of clone that the C libraries (glibc; musl) use for a thread of the same process.
THREAD_FLAGS = (0x3D0F00, 0x7D0F00)


class OneOf(NamedTuple):
    """The argument's low 32 bits are one of these; "pid" is the process's own number."""

    argument: int
    values: tuple[int | str, ...]


class Zero(NamedTuple):
    """All 64 bits of the argument are 0: a null pointer."""

    argument: int


class Unlike(NamedTuple):
    """The argument's bits under the mask are not this value."""

    argument: int
    mask: int
    value: int


class Only(NamedTuple):
    """All 64 bits of the argument have no other bits than these."""

    argument: int
    mask: int


class Window(NamedTuple):
    """The range is in the window that inside.py leaves: from "first" to "end", in 64 KB. A null pointer is
    as good where the kernel is to choose a place, which is in the window, for all else is reserved.
    """

    address: int
    length: int
    chosen: bool = False


Check = OneOf | Zero | Unlike | Only | Window

# O_TRUNC without a right to write, and access mode 3, which asks for neither: Landlock before version 3 sees
# neither of them as writing.
OPENING = ((0x203, 0x200), (0x3, 0x3))

CHECKS: dict[str, tuple[Check, ...]] = {
    "open": tuple(Unlike(1, mask, value) for mask, value in OPENING),
    "openat": tuple(Unlike(2, mask, value) for mask, value in OPENING),
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC; none that sends signals, locks, or grows a
    # pipe; and F_SETFL without O_ASYNC, as an argument of any of them.
    "fcntl": (OneOf(1, (0, 1, 2, 3, 4, 1030)), Unlike(2, 0x2000, 0x2000)),
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX; not TIOCSTI.
    "ioctl": (OneOf(1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),),
    # AF_UNIX; SOCK_STREAM with close-on-exec and non-blocking: datagrams could go to others' sockets.
    "socketpair": (OneOf(0, (1,)), OneOf(1, (0x1, 0x80001, 0x801, 0x80801)), OneOf(2, (0,))),
    # MSG_DONTWAIT, MSG_NOSIGNAL; not MSG_OOB (CVE-2025-38236) and, in sendto, no address. MSG_PEEK and
    # MSG_WAITALL are flags of socket.recv.
    "sendto": (Only(3, 0x4040), Zero(4)),
    "recvfrom": (Only(3, 0x4142),),
    "pipe2": (Only(1, 0x80800),),  # O_CLOEXEC, O_NONBLOCK; not O_NOTIFICATION_PIPE (CVE-2022-0995), O_DIRECT
    # MAP_HUGETLB: pages that no limit of this process counts
    "mmap": (Unlike(3, 0x40000, 0x40000), Window(0, 1, chosen=True)),
    "munmap": (Window(0, 1),),
    "mprotect": (Window(0, 1),),
    "mremap": (OneOf(3, (0, 1)), Window(0, 1)),  # MREMAP_MAYMOVE; not to a place that the code chooses
    # NORMAL, RANDOM, SEQUENTIAL, WILLNEED, DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE: what allocators and numpy
    # use, and Python's mmap.madvise. Not merging with others' pages (12), nor what fills tables of reserved
    # addresses (22, 23, and 102, in whose place the C library uses mprotect).
    "madvise": (OneOf(2, (0, 1, 2, 3, 4, 8, 14, 15)),),
    "clone": (OneOf(0, THREAD_FLAGS),),
    "prctl": (OneOf(0, (15, 16)),),  # PR_SET_NAME, PR_GET_NAME
    "kill": (OneOf(0, ("pid",)),),
    "tgkill": (OneOf(0, ("pid",)),),
    "prlimit64": (OneOf(0, (0, "pid")), Zero(2)),  # of itself, and nothing set
}

# The C library tries these first and falls back where the kernel has not got them. clone3 has its flags in
# memory, where a filter cannot look.
ABSENT = {"clone3": (435, 435)}

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
LOAD, EQUAL, AT_LEAST, AND, RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
CONSTANT, LEFT, RIGHT, TO_X = 0x00, 0x64, 0x74, 0x07
OR_X, MINUS_X, AT_LEAST_X, KEEP, KEPT_TO_X = 0x4C, 0x1C, 0x3D, 0x02, 0x61
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
EPERM, ENOSYS = 1, 38
X32 = 0x40000000  # the bit of x86-64's second table

Instruction = tuple[int, int, int, int | str]


def instructions(machine: str) -> list[Instruction]:
    """The filter as BPF instructions; names stand for constants of the process it is for: "pid" its
    number, "first" and "end" its window.

    Raises ValueError for a machine without a table.
    """
    if machine not in ARCHITECTURES:
        raise ValueError(f"there is no list of system calls for {machine}, only for x86-64 and ARM64")
    column = list(ARCHITECTURES).index(machine)
    deny = (RETURN, 0, 0, ERRNO | EPERM)
    program: list[Instruction] = [
        (LOAD, 0, 0, 4),
        (EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, 0),
    ]
    if machine == "x86_64":
        program += [(AT_LEAST, 0, 1, X32), deny]
    for numbers in ABSENT.values():
        program += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, ERRNO | ENOSYS)]
    for name, call in ALLOWED.items():
        number = call[column]
        if number is None:
            continue
        then = [line for check in CHECKS.get(name, ()) for line in _checked(check)]
        then.append((RETURN, 0, 0, ALLOW))
        program += [(EQUAL, 0, len(then), number), *then]
    return [*program, deny]


def _checked(check: Check) -> list[Instruction]:
    """Instructions that go on where the check holds and deny otherwise."""
    deny = (RETURN, 0, 0, ERRNO | EPERM)
    low = 16 + 8 * check[0]
    match check:
        case OneOf(_, values):
            n = len(values)
            return [(LOAD, 0, 0, low), *((EQUAL, n - i, 0, value) for i, value in enumerate(values)), deny]
        case Zero():
            half = [(EQUAL, 1, 0, 0), deny]
            return [(LOAD, 0, 0, low), *half, (LOAD, 0, 0, low + 4), *half]
        case Unlike(_, mask, value):
            return [(LOAD, 0, 0, low), (AND, 0, 0, mask), (EQUAL, 0, 1, value), deny]
        case Only(_, mask):
            half = [(EQUAL, 1, 0, 0), deny]
            return [(LOAD, 0, 0, low), (AND, 0, 0, ~mask & 0xFFFFFFFF), *half, (LOAD, 0, 0, low + 4), *half]
        case Window(address, length, chosen):
            inside = [
                *_units(address),
                (AT_LEAST, 1, 0, "first"),
                deny,
                (AT_LEAST, 0, 1, "end"),
                deny,
                (TO_X, 0, 0, 0),
                (CONSTANT, 0, 0, "end"),
                (MINUS_X, 0, 0, 0),
                (KEEP, 0, 0, 0),
                *_units(length),
                (KEPT_TO_X, 0, 0, 0),
                (AT_LEAST_X, 0, 1, 0),
                deny,
            ]
            if not chosen:
                return inside
            null = [(LOAD, 0, 0, low), (EQUAL, 0, 2, 0), (LOAD, 0, 0, low + 4), (EQUAL, len(inside), 0, 0)]
            return [*null, *inside]


def _units(argument: int) -> list[Instruction]:
    """The argument in 64 KB, of which 48 bits of address space have 2**32; more is denied."""
    low = 16 + 8 * argument
    return [
        (LOAD, 0, 0, low),
        (RIGHT, 0, 0, 16),
        (TO_X, 0, 0, 0),
        (LOAD, 0, 0, low + 4),
        (AT_LEAST, 0, 1, 0x10000),
        (RETURN, 0, 0, ERRNO | EPERM),
        (LEFT, 0, 0, 16),
        (OR_X, 0, 0, 0),
    ]
