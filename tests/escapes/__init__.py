"""Escapes from the sandbox, as data: what an attack tries, where it is listed, and how its success is seen.

    from tests.escapes import ESCAPES
    ESCAPES["chmod outside"].code

The body of an escape runs in the sandbox with the names of ``PRELUDE``; what it returns is its own evidence
of success, text that begins with "reached" where a system call got to the kernel's code and did no harm. More
evidence is taken outside, by ``grounds.py``, which an attacker cannot talk into anything. An escape that may
end or bound its process is marked ``alone``; the others run one after the other in one process.

Everything here is harmless: canaries, this machine, processes and files of the test's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

TOPICS = ("files", "processes", "network", "kernel", "resources", "python")


@dataclass(frozen=True)
class Escape:
    """An attack. ``known`` names where it is listed, ``seconds`` what it may take."""

    name: str
    known: str
    code: str
    alone: bool = False
    seconds: float = 10.0


# Numbers of system calls on x86-64 and on ARM64 (-1: there is none), which the attacks make by ctypes.
NUMBERS = {
    "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280),
    "cachestat": (451, 451),
    "capset": (126, 91), "chroot": (161, 51), "clock_settime": (227, 112), "clone": (56, 220),
    "clone3": (435, 435), "copy_file_range": (326, 285), "execve": (59, 221), "execveat": (322, 281),
    "fanotify_init": (300, 262), "fallocate": (285, 47), "fchmod": (91, 52), "fchmodat": (268, 53),
    "fchmodat2": (452, 452), "fchownat": (260, 54), "finit_module": (313, 273), "flock": (73, 32),
    "fsetxattr": (190, 7), "fsopen": (430, 430), "get_robust_list": (274, 100), "init_module": (175, 105),
    "inotify_add_watch": (254, 27), "inotify_init1": (294, 26), "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425), "ioperm": (173, -1), "iopl": (172, -1), "kcmp": (312, 272),
    "kexec_load": (246, 104), "keyctl": (250, 219), "landlock_create_ruleset": (444, 444),
    "linkat": (265, 37),
    "lookup_dcookie": (212, 18), "mbind": (237, 235), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "migrate_pages": (256, 238), "mknodat": (259, 33), "mlockall": (151, 230), "modify_ldt": (154, -1),
    "mount": (165, 40), "mount_setattr": (442, 442), "move_mount": (429, 429), "move_pages": (279, 239),
    "mq_open": (240, 180), "msgget": (68, 186), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "open_tree": (428, 428), "perf_event_open": (298, 241),
    "personality": (135, 92), "pidfd_getfd": (438, 438), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "pivot_root": (155, 41), "pkey_alloc": (330, 289),
    "prlimit64": (302, 261), "process_madvise": (440, 440), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "ptrace": (101, 117), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "reboot": (169, 142), "remap_file_pages": (216, 234), "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274), "seccomp": (317, 277), "semget": (64, 190), "setgroups": (116, 159),
    "sethostname": (170, 161), "setns": (308, 268), "setpriority": (141, 140), "setsid": (112, 157),
    "settimeofday": (164, 170), "setxattr": (188, 5), "shmat": (30, 196), "shmget": (29, 194),
    "splice": (275, 76), "swapon": (167, 224), "symlinkat": (266, 36), "syslog": (103, 116),
    "timer_create": (222, 107), "timerfd_create": (283, 85), "tkill": (200, 130), "truncate": (76, 45),
    "umount2": (166, 39), "unshare": (272, 97), "userfaultfd": (323, 282), "utimensat": (280, 88),
    "vmsplice": (278, 75),
}  # fmt: skip

# What every escape may use. CANARY is filled in: paths, numbers and names of what is outside.
PRELUDE = f"""
import ctypes, errno, json, os, platform, signal, socket, stat, struct, sys, threading, time
NUMBERS = {NUMBERS!r}
libc = ctypes.CDLL(None, use_errno=True)
DENIED = {{errno.EPERM, errno.EACCES, errno.ENOSYS}}
HERE = -100

def call(name, *arguments):
    number = NUMBERS[name][platform.machine() == "aarch64"]
    if number < 0:
        return -1, errno.ENOSYS
    ctypes.set_errno(0)
    given = [ctypes.c_long(x) if isinstance(x, int) else x for x in arguments]
    return libc.syscall(ctypes.c_long(number), *given), ctypes.get_errno()

def done(name, *arguments):
    result, code = call(name, *arguments)
    return None if result == -1 else f"{{name}} gave {{result}}"

def reach(name, *arguments):
    result, code = call(name, *arguments)
    if result == -1 and code in DENIED:
        return None
    return f"reached {{name}}: {{errno.errorcode.get(code, result)}}"
"""

RUN = """
def attempt(attack, canary):
    try:
        evidence = attack(canary)
    except BaseException as error:
        return None, f"{type(error).__name__}: {error}"
    return (str(evidence) if evidence else None), "it had nothing"
"""


def program(escapes: list[Escape], canary: dict[str, dict[str, object]]) -> str:
    """One program that runs these escapes in turn, and prints a line of JSON after each."""
    parts = [PRELUDE, RUN]
    for n, escape in enumerate(escapes):
        body = "\n".join(f"    {line}" for line in escape.code.strip("\n").splitlines())
        facts = canary[escape.name]
        parts.append(f"def attack_{n}(c):\n{body}\n")
        parts.append(
            f"print('@' + json.dumps([{escape.name!r}, *attempt(attack_{n}, {facts!r})]), flush=True)"
        )
    return "\n".join(parts)


ESCAPES: dict[str, Escape] = {
    escape.name: escape for topic in TOPICS for escape in import_module(f"tests.escapes.{topic}").ESCAPES
}
