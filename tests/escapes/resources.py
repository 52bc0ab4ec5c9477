"""More memory, disk, time, output or processes than the bounds: judged from outside alone.

Each attack tries to get well past the bounds that ``grounds.BOUNDS`` gives it. What it used is measured by
the test; text that an attack gives is evidence only where it says what it got.
"""

from tests.escapes import Escape

ISSUE = "found in this sandbox"
DOCS = "nsjail's documentation"
SHM = """
import ctypes
for n in range(6):  # 600 MB, of which each part is let go, so that no address space is used
    made = libc.shmget(c['key'] + n, 100 << 20, 0o1600)
    if made < 0: return None
    libc.shmat.restype = ctypes.c_void_p
    place = libc.shmat(made, None, 0)
    ctypes.memset(place, 1, 100 << 20)
    libc.shmdt(ctypes.c_void_p(place))
time.sleep(0.5)
"""
MEMFD = """
made = [os.memfd_create('x') for _ in range(6)]
for each in made:
    for _ in range(100): os.write(each, bytes(1 << 20))
time.sleep(0.5)
"""
POSIX = """
with open('/dev/shm/' + c['mark'], 'wb') as file:
    for _ in range(600): file.write(bytes(1 << 20))
time.sleep(0.5)
"""
SHARED = """
import mmap
held = []
for _ in range(600):
    part = mmap.mmap(-1, 1 << 20); part.write(b'x' * (1 << 20)); held.append(part)
time.sleep(0.5)
"""
HUGE = """
import mmap
part = mmap.mmap(-1, 256 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
for n in range(0, 256 << 20, 1 << 20): part[n] = 1
return 'reached huge pages'
"""
TABLES = """
libc.mmap.restype = ctypes.c_ulong  # two pages that lie far from all others have four pages of tables
for n in range(1, 30000):
    place = ctypes.c_void_p((n * 2 << 30) - 4096)
    at = libc.mmap(place, ctypes.c_size_t(8192), 1, 0x100022, -1, ctypes.c_long(0))
    if at == place.value: ctypes.string_at(at, 8192)  # read: of the page of zeros, which is not counted
time.sleep(0.5)
"""
TABLES_CHOSEN = """
libc.mmap.restype = ctypes.c_ulong  # the kernel chooses; all but two pages of what it gives is let go again
size = 8 << 20
for _ in range(30000):
    at = libc.mmap(None, ctypes.c_size_t(size), 3, 0x22, -1, ctypes.c_long(0))
    if at == 2 ** 64 - 1: break
    kept = (at + (4 << 20) >> 21 << 21) - 4096
    libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(kept - at))
    libc.munmap(ctypes.c_void_p(kept + 8192), ctypes.c_size_t(at + size - kept - 8192))
    ctypes.memset(kept, 1, 8192)
time.sleep(0.5)
"""
RESERVED = """
far, long = ctypes.c_void_p(1 << 40), ctypes.c_size_t
def took(result, how):
    if result == 0: taken.append(how)
taken = []
libc.mmap.restype = libc.mremap.restype = ctypes.c_ulong
near = libc.mmap(None, long(1 << 16), 3, 0x22, -1, ctypes.c_long(0))
here = ctypes.c_void_p(near)
took(libc.mprotect(far, long(4096), 3), 'mprotect')
took(libc.munmap(far, long(4096)), 'munmap')
took(libc.mmap(far, long(4096), 3, 0x32, -1, ctypes.c_long(0)) != far.value, 'mmap')
took(libc.mremap(here, long(4096), long(4096), 3, far) != far.value, 'mremap')
took(libc.mremap(far, long(1 << 20), long(4096), 1) != far.value, 'a shorter mremap')
libc.mprotect(here, long((1 << 47) - near - (1 << 20)), 7)
took(ctypes.get_errno() in DENIED, 'a long mprotect')
return ', '.join(taken)
"""
PIPES = """
import fcntl
grown = 0
for _ in range(500):
    _, writing = os.pipe()
    grown += fcntl.fcntl(writing, 1031, 1 << 20)
    os.set_blocking(writing, False)
    os.write(writing, bytes(1 << 20))
    if grown > 300 << 20: return f'{grown} bytes in pipes'
"""
BUFFERS = """
held = 0
kept = []
try:
    while True:
        one, other = socket.socketpair(); kept += [one, other]
        one.setblocking(False)
        try:
            while True: held += one.send(bytes(65536))
        except BlockingIOError: pass
except OSError: pass
return held > 100 << 20 and f'{held} bytes in sockets'
"""
FORKS = """
while True:
    try: os.fork()
    except OSError: pass
"""
FORKED_MEMORY = """
for _ in range(8):
    if os.fork() == 0: break
held = bytearray(60 << 20)
for n in range(0, len(held), 4096): held[n] = 1
time.sleep(5)
"""
DODGE = """
for number in range(1, 64):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True:
    try: os.kill(os.getpid(), signal.SIGSTOP)
    except OSError: pass
"""
KEYS = """
kept = 0
for n in range(2000):
    result, _ = call('add_key', b'user', f'canary{n}'.encode(), bytes(1024), 1024, -5)
    kept += result > 0
return kept and f'{kept} keys'
"""
NESTED = """
for n in range(3000):
    os.mkdir('d'); os.chdir('d'); open('file', 'w').close()
"""
ESCAPES = [
    Escape("a list of ten gigabytes", DOCS, "held = [0] * (10 ** 10 // 8)\ntime.sleep(1)", True, 2),
    Escape("memory by small steps", DOCS, "held = []\nwhile True: held.append(bytearray(1 << 20))", True, 3),
    Escape("System V shared memory", ISSUE, SHM, True, 5),
    Escape("memory as files", ISSUE, MEMFD, True, 5),
    Escape("POSIX shared memory", "Docker's documentation", POSIX, True, 5),
    Escape("shared anonymous memory", "found in review", SHARED, True, 3),
    Escape("huge pages", "found in review", HUGE, True, 2),
    Escape("page tables", ISSUE, TABLES, True, 5),
    Escape("page tables where the kernel chooses", ISSUE, TABLES_CHOSEN, True, 5),
    Escape("address space that is reserved", ISSUE, RESERVED, True, 2),
    Escape("buffers of pipes", "found in review", PIPES, True, 2),
    Escape("buffers of sockets", "found in review", BUFFERS, True, 2),
    Escape("semaphores left behind", ISSUE, "return done('semget', c['key'], 1000, 0o1600)", True, 2),
    Escape("a message queue left behind", ISSUE, "return done('msgget', c['key'], 0o1600)", True, 2),
    Escape("keys left behind", "Docker's seccomp profile", KEYS, True, 3),
    Escape("a fork bomb", DOCS, FORKS, True, 1),
    Escape("memory in many processes", DOCS, FORKED_MEMORY, True, 3),
    Escape("threads without end", DOCS, """
threading.stack_size(32768)
while True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
""", True, 2),
    Escape("processor time", DOCS, "while True: pass", True, 1),
    Escape("processor time in threads", DOCS, """
for _ in range(8): threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()
""", True, 1),
    Escape("one endless call of C", "CTF write-ups", "return len(str(9 ** 9 ** 9))", True, 1),
    Escape("an endless regular expression", "CTF write-ups", """
import re
re.match('(a+)+$', 'a' * 60 + 'b')
""", True, 1),
    Escape("sleep", DOCS, "time.sleep(3600)", True, 1),
    Escape("ignored signals and a stop", ISSUE, DODGE, True, 1),
    Escape("closed output, endless work", "daemons", """
for n in range(3): os.close(n)
while True: pass
""", True, 1),
    Escape("output without end", DOCS, "while True: os.write(1, b'x' * 65536)", True, 2),
    Escape("errors without end", DOCS, "while True: os.write(2, b'x' * 65536)", True, 2),
    Escape("a huge file", DOCS, """
with open('f', 'wb') as f:
    while True: f.write(bytes(1 << 20))
""", True, 3),
    Escape("a sparse file", DOCS, """
f = open('f', 'wb'); f.truncate(1 << 40)
return os.stat('f').st_size > 1 << 39 and 'a terabyte'
""", True, 2),
    Escape("many files of some size", DOCS, """
for n in range(200): open(str(n), 'wb').write(bytes(1 << 20))
time.sleep(1)
""", True, 3),
    Escape("files without end", DOCS, """
n = 0
while True:
    open(str(n), 'w').close()
    n += 1
""", True, 2),
    Escape("nested folders", ISSUE, NESTED, True, 8),
    Escape("a stack without end", "CTF write-ups", """
sys.setrecursionlimit(1 << 30)
def f(): f()
f()
""", True, 3),
    Escape("a core dump", "CVE-2022-30594", "os.abort()", True, 3),
    Escape("a crash in C", "CTF write-ups", "ctypes.string_at(0)", True, 3),
    Escape("locked memory", "found in review", """
held = bytearray(64 << 20)
place = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(held)))
return libc.mlock(place, len(held)) == 0 and "locked"
""", True, 2),
]  # fmt: skip
