"""A script of ``launcher.py``: starts a command in namespaces of its own, as ``bwrap`` does where it is not.

    python -I -S namespaces.py SETTINGS-AS-JSON

The command sees a new root: the listed places, read-only, ``/dev/null``, and ``/sandbox``, a file system in
memory with a bound on bytes and on files. It has its own users, network (without a device), processes, IPC
and host name. The first process waits outside. Its child is the first of the new process namespace and waits
for the command; with it ends everything that the command started. Standard library alone.
"""

import ctypes
import json
import os
import signal
import struct
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
USER, MOUNTS, NET, IPC, PIDS, NAMES, CGROUPS = (
    0x10000000,
    0x00020000,
    0x40000000,
    0x08000000,
    0x20000000,
    0x04000000,
    0x02000000,
)
PRIVATE, BIND = 0x40000 | 0x4000, 0x1000 | 0x4000  # MS_PRIVATE | MS_REC, MS_BIND | MS_REC
NO_SUID, NO_DEVICES, NO_PROGRAMS = 0x2, 0x4, 0x8  # MS_...
READ_ONLY, ATTRIBUTES = 0x1, 0x1 | 0x2 | 0x4  # MOUNT_ATTR_RDONLY; with NOSUID and NODEV
RECURSIVE, HERE, DETACH = 0x8000, -100, 2
MOUNT_SETATTR, PIVOT_ROOT = 442, {"x86_64": 155, "aarch64": 41}
PARENT_DIED = 1  # PR_SET_PDEATHSIG


def separate(settings: dict) -> None:
    """Leave the machine's namespaces; SETTINGS["folder"] becomes the root of the new one."""
    user, group = os.getuid(), os.getgid()
    _check(LIBC.unshare(USER | MOUNTS | NET | IPC | PIDS | NAMES | CGROUPS), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    _check(LIBC.sethostname(b"sandbox", 7), "sethostname")
    root = settings["folder"]
    _check(LIBC.mount(None, b"/", None, PRIVATE, None), "mount")
    _mount_memory(root, "size=1m,nr_inodes=2048,mode=755", 0)
    for path in settings["places"]:
        _show(path, root)
    for path, target in settings["links"]:
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        os.symlink(target, root + path)
    os.makedirs(f"{root}/dev", exist_ok=True)
    _bind("/dev/null", f"{root}/dev/null", False)
    os.mkdir(f"{root}/sandbox")
    _mount_memory(
        f"{root}/sandbox", f"size={settings['disk']},nr_inodes={settings['files']},mode=700", NO_PROGRAMS
    )
    os.chdir(root)
    _check(LIBC.syscall(PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    _check(LIBC.umount2(b".", DETACH), "umount2")
    os.chdir("/sandbox")
    _set_attributes("/", READ_ONLY | ATTRIBUTES, 0)


def _mount_memory(path: str, options: str, flags: int) -> None:
    flags |= NO_SUID | NO_DEVICES
    _check(LIBC.mount(b"tmpfs", path.encode(), b"tmpfs", flags, options.encode()), "mount")


def _show(path: str, root: str) -> None:
    """Make a place of the machine visible, read-only."""
    _bind(path, root + path, os.path.isdir(path))
    _set_attributes(root + path, ATTRIBUTES, RECURSIVE)


def _bind(path: str, target: str, folder: bool) -> None:
    os.makedirs(target if folder else os.path.dirname(target), exist_ok=True)
    if not folder and not os.path.exists(target):
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    _check(LIBC.mount(path.encode(), target.encode(), None, BIND, None), f"mount {path}")


def _set_attributes(path: str, attributes: int, flags: int) -> None:
    setting = struct.pack("QQQQ", attributes, 0, 0, 0)
    done = LIBC.syscall(MOUNT_SETATTR, HERE, path.encode(), flags, setting, len(setting))
    _check(done, f"mount_setattr {path}")


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _waited(child: int) -> int:
    """The exit status of a child, as a shell gives it; others that end meanwhile are buried."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _forked() -> int:
    """The number of a child that ends when this process does; 0 in the child."""
    child = os.fork()
    if child == 0:
        _check(LIBC.prctl(PARENT_DIED, signal.SIGKILL, 0, 0, 0), "prctl")
    return child


def main() -> None:
    """Separate, then start the command as the second process of its namespace."""
    settings = json.loads(sys.argv[1])
    try:
        _check(LIBC.prctl(PARENT_DIED, signal.SIGKILL, 0, 0, 0), "prctl")
        separate(settings)
        first = _forked()
    except (OSError, KeyError) as error:
        why = {"holding": [], "missing": {"namespaces": str(error)}}
        os.write(settings["report"], json.dumps(why).encode() + b"\n")
        os._exit(3)
    if first == 0:
        command = _forked()
        if command == 0:
            os.execv(settings["command"][0], settings["command"])
        os._exit(_waited(command))
    os._exit(_waited(first))


if __name__ == "__main__":
    main()
