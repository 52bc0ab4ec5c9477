"""Parts of the kernel that code has no need of: calls get no further than the filter.

Arguments are such that a call that is made does nothing: it fails in the kernel, by another error than EPERM.
"""

from tests.escapes import Escape

DOCKER = "Docker's seccomp profile"
# name of the call, arguments as Python, where it is listed
CALLS = [
    ("acct", "b''", DOCKER),
    ("add_key", "b'user', b'canary', b'x', 1, -3", DOCKER),
    ("request_key", "b'user', b'canary', 0, -3", DOCKER),
    ("keyctl", "0, -3, 0", DOCKER),
    ("adjtimex", "0", DOCKER),
    ("bpf", "0, 0, 0", DOCKER),
    ("capset", "0, 0", "capabilities(7)"),
    ("chroot", "b''", DOCKER),
    ("clock_settime", "0, 0", DOCKER),
    ("settimeofday", "1, 0", DOCKER),
    ("copy_file_range", "-1, 0, -1, 0, 1, 0", "found in review"),
    ("fallocate", "-1, 0, 0, 1", "found in review"),
    ("finit_module", "-1, b'', 0", DOCKER),
    ("init_module", "0, 0, b''", DOCKER),
    ("fsopen", "b'', 0", "CVE-2022-0185"),
    ("get_robust_list", "0, 0, 0", DOCKER),
    ("io_uring_register", "-1, 0, 0, 0", "Google's report on io_uring"),
    ("ioperm", "0, 1, 1", DOCKER),
    ("iopl", "9", DOCKER),
    ("modify_ldt", "9, 0, 0", "gVisor's documentation"),
    ("kexec_load", "0, 0, 0, -1", DOCKER),
    ("landlock_create_ruleset", "0, 0, 0", "found in review"),
    ("lookup_dcookie", "0, 0, 0", DOCKER),
    ("mbind", "0, 0, 99, 0, 0, 0", DOCKER),
    ("migrate_pages", "0, 0, 0, 0", "found in review"),
    ("move_pages", "0, 1, 0, 0, 0, 0", DOCKER),
    ("memfd_secret", "-1", "found in review"),
    ("mlockall", "0", "found in review"),
    ("mount", "0, 0, 0, 0, 0", DOCKER),
    ("mount_setattr", "-1, 0, 0, 0, 0", DOCKER),
    ("move_mount", "-1, b'', -1, b'', 0", DOCKER),
    ("open_tree", "-1, b'', 0", DOCKER),
    ("umount2", "b'', 0", DOCKER),
    ("pivot_root", "b'', b''", DOCKER),
    ("mq_open", "0, 0, 0, 0", "found in review"),
    ("perf_event_open", "0, 0, -1, -1, 0", DOCKER),
    ("personality", "-1", "CVE-2009-1895"),
    ("pkey_alloc", "9, 9", "found in review"),
    ("process_madvise", "-1, 0, 0, 0, 0", "found in review"),
    ("quotactl", "0, 0, 0, 0", DOCKER),
    ("quotactl_fd", "-1, 0, 0, 0", DOCKER),
    ("reboot", "0, 0, 0, 0", DOCKER),
    ("remap_file_pages", "0, 0, 0, 0, 0", "found in review"),
    ("rt_tgsigqueueinfo", "0, 0, 0, 0", "Landlock before version 6"),
    ("sched_setattr", "0, 0, 0", "found in review"),
    ("seccomp", "9, 0, 0", "a filter over the filter"),
    ("sethostname", "0, -1", DOCKER),
    ("setns", "-1, 0", DOCKER),
    ("splice", "-1, 0, -1, 0, 1, 0", "CVE-2022-0847 (Dirty Pipe)"),
    ("vmsplice", "-1, 0, 0, 0", "CVE-2008-0600"),
    ("swapon", "0, 0", DOCKER),
    ("syslog", "99, 0, 0", DOCKER),
    ("timerfd_create", "99, 0", "found in review"),
    ("unshare", "0x80000000", DOCKER),
    ("userfaultfd", "-1", DOCKER),
]
PRCTL = """
for option in (4, 22, 24, 35, 41, 52, 59):  # dumpable, seccomp, capabilities, mm, ..., system calls by signal
    ctypes.set_errno(0)
    if libc.prctl(option, -1, -1, -1, -1) != -1 or ctypes.get_errno() not in DENIED:
        return f'reached prctl {option}'
"""
NAMESPACES = """
for flag in (0x10000000, 0x00020000, 0x40000000, 0x08000000, 0x04000000, 0x02000000):
    if libc.unshare(flag) == 0: return f'unshared {flag:x}'
"""
CHROOT = """
os.mkdir('jail')
inside = os.open('.', os.O_RDONLY)
os.chroot('jail')
os.fchdir(inside)
for _ in range(30): os.chdir('..')
os.chroot('.')
return os.listdir('/etc')[:2]
"""
INT_80 = """
if platform.machine() != 'x86_64': return None
import mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex('b814000000cd80c3'))  # mov eax, 20; int 0x80; ret: the 32-bit getpid
number = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
return number > 0 and f'reached the 32-bit table: {number}'
"""
X32 = """
if platform.machine() != 'x86_64': return None
ctypes.set_errno(0)
result = libc.syscall(ctypes.c_long(0x40000000 + 41), 1, 1, 0)
return None if result == -1 and ctypes.get_errno() in DENIED else f'reached x32: {result}'
"""
SHELLCODE = """
if platform.machine() != 'x86_64': return None
import mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex('b839000000' + '0f05' + 'c3'))  # mov eax, 57; syscall; ret: fork
child = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
if child == 0: os._exit(0)
return child > 0 and 'forked'
"""
MOUNT = """
os.mkdir('mounted')
if libc.mount(b'proc', b'mounted', b'proc', 0, None) == 0:
    found = os.path.exists('mounted/1')
    libc.umount2(b'mounted', 2)
    return found and 'it has /proc'
"""
HIGH = """
ctypes.set_errno(0)  # fcntl(F_SETOWN) with rubbish in the upper half, which a filter of 64 bits would miss
reading, _ = os.pipe()
number = {'x86_64': 72}.get(platform.machine(), 25)
given = (number, reading, 1 << 32 | 8, os.getpid())
result = libc.syscall(*map(ctypes.c_long, given))
return None if result == -1 else 'reached F_SETOWN'
"""
OUT_OF_BAND = """
one, other = socket.socketpair()
try: return f'sent {one.send(b"x", socket.MSG_OOB)} out of band'
except OSError as error: assert error.errno in DENIED, error
try: other.recv(1, socket.MSG_OOB)
except OSError as error: return None if error.errno in DENIED else f'reached recv: {error}'
"""
NOTIFICATIONS = """
made = (ctypes.c_int * 2)()
for flags in (0o200, 0o40000):  # O_NOTIFICATION_PIPE, O_DIRECT: packets
    ctypes.set_errno(0)
    if libc.pipe2(made, flags) == 0 or ctypes.get_errno() not in DENIED: return f'reached pipe2: {flags:o}'
"""
ADVICE = """
import mmap
part = mmap.mmap(-1, 1 << 21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
place = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(part)))
for advice in (9, 10, 12, 16, 18, 20, 21, 22, 23, 25, 100, 101, 102):
    ctypes.set_errno(0)
    if libc.madvise(place, ctypes.c_size_t(1 << 21), advice) == 0 or ctypes.get_errno() not in DENIED:
        return f'reached madvise {advice}'
"""
ESCAPES = [
    *(Escape(f"call {name}", known, f"return reach({name!r}, {given})") for name, given, known in CALLS),
    Escape("options of the process", DOCKER, PRCTL),
    Escape("namespaces of its own", "CVE-2022-0185", NAMESPACES, alone=True),
    Escape("chroot twice", "CTF write-ups", CHROOT, alone=True),
    Escape("mount /proc", "CTF write-ups", MOUNT, alone=True),
    Escape("the 32-bit table of calls", "CTF write-ups", INT_80, alone=True),
    Escape("the x32 table of calls", "CTF write-ups", X32),
    Escape("machine code that forks", "CTF write-ups", SHELLCODE, alone=True),
    Escape("bytes out of band", "CVE-2025-38236", OUT_OF_BAND),
    Escape("a pipe for notifications", "CVE-2022-0995", NOTIFICATIONS),
    Escape("advice on memory", "Dedup Est Machina", ADVICE),
    Escape("an argument's upper half", "found in review", HIGH),
]  # fmt: skip
