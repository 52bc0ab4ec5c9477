"""A script of ``cutaway.sandbox``: gives up what this process may do, then runs what standard input brings.

    python -I -S confine.py SETTINGS-AS-JSON        it reports on the descriptor ``report`` which layers hold

    limits        memory, processor time, file size, descriptors
    namespaces    an own user, network, mount and IPC space; the working folder is a file system in memory
    landlock      files: Python's own to read, the working folder to write
    seccomp       no new process, program, socket, tracing or mounting, no signal to others

Standard library alone: it is no part of the package while it runs.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
import sysconfig
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2
NEW_USER, NEW_NET, NEW_IPC, NEW_MOUNTS = 0x10000000, 0x40000000, 0x08000000, 0x00020000
PRIVATE = 0x40000 | 0x4000  # MS_PRIVATE | MS_REC
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CREATE_RULESET, ADD_RULE, RESTRICT = 444, 445, 446
THREAD = 0x00010000  # CLONE_THREAD

# Denied with EPERM, by number on x86-64 and on ARM64 (None: not there).
DENIED = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "setrlimit": (160, 164),
    "sched_setaffinity": (203, 122),
    "fsopen": (430, 430),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "mount_setattr": (442, 442),
}
CLONE, CLONE3, TGKILL, PRLIMIT = (56, 220), (435, 435), (234, 131), (302, 261)
EPERM, ENOSYS = 1, 38
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000


def limits(settings: dict) -> None:
    """Memory, processor time, file size, open files; no core dump."""
    for name, value in (
        ("RLIMIT_AS", settings["memory"]),
        ("RLIMIT_CPU", settings["seconds"]),
        ("RLIMIT_FSIZE", settings["file_size"]),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_CORE", 0),
    ):
        resource.setrlimit(getattr(resource, name), (value, value))


def namespaces(settings: dict) -> None:
    """An own user, network, IPC and mount space; the working folder is a file system in memory."""
    user, group = os.getuid(), os.getgid()
    _check(LIBC.unshare(NEW_USER | NEW_NET | NEW_IPC | NEW_MOUNTS), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    _check(LIBC.mount(None, b"/", None, PRIVATE, None), "mount")
    folder = settings["folder"].encode()
    options = f"size={settings['disk']},mode=0700".encode()
    _check(LIBC.mount(b"tmpfs", folder, b"tmpfs", 6, options), "mount")  # MS_NOSUID | MS_NODEV
    os.chdir(folder)


def landlock(settings: dict) -> None:
    """Files: what Python reads of itself, and the working folder; no TCP port; no signal to others."""
    version = LIBC.syscall(CREATE_RULESET, None, 0, 1)
    _check(min(version, 0), "landlock")
    read = 1 << 2 | 1 << 3  # READ_FILE | READ_DIR
    every = (1 << (13, 14, 15, 15, 16)[min(version, 5) - 1]) - 1
    net, scopes = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    attributes = struct.pack("QQQ", every, net, scopes)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = LIBC.syscall(CREATE_RULESET, attributes, len(attributes), 0)
    _check(min(ruleset, 0), "landlock")
    own = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    own |= {"/lib", "/lib64", "/usr/lib", "/usr/local/lib/libpython3.so", "/etc/ld.so.cache", "/dev/null"}
    for path, access in [*((path, read) for path in own), (settings["folder"], every & ~1)]:  # not EXECUTE
        if not os.path.exists(path):
            continue
        if not os.path.isdir(path):
            access &= 1 << 2 | 1 << 1  # READ_FILE | WRITE_FILE
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", access, place)
        _check(LIBC.syscall(ADD_RULE, ruleset, 1, rule, 0), "landlock")
        os.close(place)
    _check(LIBC.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
    _check(LIBC.syscall(RESTRICT, ruleset, 0), "landlock")
    os.close(ruleset)


def seccomp(settings: dict) -> None:
    """System calls: DENIED, clone of a process, signals to others, raising a limit."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(f"no table of system calls for {machine}")
    column = list(ARCHITECTURES).index(machine)
    load, equal, at_least, any_bit, back = 0x20, 0x15, 0x35, 0x45, 0x06

    def on(number: int, *then: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
        """Instructions for one system call; they end in a return."""
        return [(equal, 0, len(then), number), *then]

    def deny(code: int) -> tuple[int, int, int, int]:
        return (back, 0, 0, ERRNO | code)

    allow = (back, 0, 0, ALLOW)
    program = [
        (load, 0, 0, 4),
        (equal, 1, 0, ARCHITECTURES[machine]),
        (back, 0, 0, KILL),
        (load, 0, 0, 0),
        (at_least, 0, 1, 0x40000000),  # x86-64's other table of system calls
        deny(EPERM),
    ]
    program += on(CLONE[column], (load, 0, 0, 16), (any_bit, 0, 1, THREAD), allow, deny(EPERM))
    program += on(CLONE3[column], deny(ENOSYS))  # the C library falls back to clone, whose flags are seen
    program += on(TGKILL[column], (load, 0, 0, 16), (equal, 0, 1, os.getpid()), allow, deny(EPERM))
    program += on(
        PRLIMIT[column],
        (load, 0, 0, 32),
        (equal, 0, 3, 0),
        (load, 0, 0, 36),
        (equal, 0, 1, 0),
        allow,
        deny(EPERM),
    )
    for numbers in DENIED.values():
        number = numbers[column]
        if number is not None:
            program += on(number, deny(EPERM))
    program.append(allow)
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code)
    filter = struct.pack(
        "HxxxxxxQ" if struct.calcsize("P") == 8 else "HxxI", len(program), ctypes.addressof(buffer)
    )
    _check(LIBC.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
    _check(LIBC.prctl(SET_SECCOMP, FILTER, filter, 0, 0), "seccomp")


LAYERS: dict[str, Callable[[dict], None]] = {
    "namespaces": namespaces,
    "limits": limits,
    "landlock": landlock,
    "seccomp": seccomp,
}


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def main() -> None:
    """Confine this process, report, run."""
    settings = json.loads(sys.argv[1])
    code = sys.stdin.read()
    holding, missing = [], {}
    os.chdir(settings["folder"])
    for name, layer in LAYERS.items():
        if name not in settings["layers"]:
            continue
        try:
            layer(settings)
            holding.append(name)
        except (OSError, ValueError, AttributeError) as error:
            missing[name] = str(error)
    report = {"holding": holding, "missing": missing}
    os.write(settings["report"], json.dumps(report).encode())
    os.close(settings["report"])
    if not set(settings["required"]) <= set(holding):
        os._exit(3)
    sys.argv = ["<code>"]
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
