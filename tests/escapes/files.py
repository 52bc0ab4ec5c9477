"""Files of the machine: read, changed, watched, or only known of."""

from tests.escapes import Escape

ISSUE = "found in this sandbox"
DOCKER = "Docker's seccomp profile"
ESCAPES = [
    Escape("read a file", "gVisor's documentation", "return open(c['file']).read()"),
    Escape("read /etc/passwd", "CTF write-ups", "return open('/etc/passwd').read(20)"),
    Escape("read another user's home", "CTF write-ups", """
found = os.listdir(c['home'])
return len(found) > 1 and found
"""),
    Escape("list a folder", "nsjail's documentation", "return os.listdir(c['folder'])"),
    Escape("list the root", "bubblewrap's documentation", """
return 'var' in os.listdir('/') and 'it has /var'
"""),
    Escape("stat a file", ISSUE, "return os.stat(c['file'])"),
    Escape("ask whether a file exists", ISSUE, "return os.path.exists(c['file'])"),
    Escape("open a file as a place only", "Landlock's documentation", "return os.open(c['file'], os.O_PATH)"),
    Escape("enter a folder", "Landlock's documentation", "os.chdir(c['folder'])\nreturn os.getcwd()"),
    Escape("write a file", "gVisor's documentation", "open(c['file'], 'w').write('x')"),
    Escape("append to a file", "gVisor's documentation", "open(c['file'], 'a').write('x')"),
    Escape("make a file", "nsjail's documentation", "open(c['folder'] + '/made', 'x')"),
    Escape("make a folder", "nsjail's documentation", "os.mkdir(c['folder'] + '/made-folder')"),
    Escape("remove a file", "nsjail's documentation", "os.remove(c['file'])"),
    Escape("rename a file", "Landlock's documentation", "os.rename(c['file'], c['file'] + '-renamed')"),
    Escape("move a file in", "Landlock's documentation", "os.rename(c['file'], 'own')"),
    Escape("truncate by path", "Landlock before version 3", "os.truncate(c['file'], 0)"),
    Escape(
        "truncate by opening to read",
        "Landlock before version 3",
        "os.open(c['file'], os.O_RDONLY | os.O_TRUNC)",
    ),
    Escape(
        "truncate by opening for neither reading nor writing",
        "Landlock before version 3",
        "os.open(c['file'], 3 | os.O_TRUNC)",
    ),
    Escape("chmod a file", ISSUE, "os.chmod(c['file'], 0o666)"),
    Escape("make a file set-uid", ISSUE, "os.chmod(c['file'], 0o4755)"),
    Escape("chmod by a descriptor", ISSUE, "os.fchmod(os.open(c['file'], os.O_RDONLY), 0o666)"),
    Escape("chmod by fchmodat2", "Linux 6.6", """
return reach('fchmodat2', HERE, c['file'].encode(), 0o640, 0)
"""),
    Escape("chown a file", ISSUE, "os.chown(c['file'], 12345, 12345)"),
    Escape("change a file's times", ISSUE, "os.utime(c['file'], (1, 1))"),
    Escape("set an attribute", ISSUE, "os.setxattr(c['file'], 'user.canary', b'x')"),
    Escape(
        "read by a symbolic link",
        "CTF write-ups",
        "os.symlink(c['file'], 'link')\nreturn open('link').read()",
    ),
    Escape(
        "read by a hard link",
        "snap and bubblewrap advisories",
        "os.link(c['file'], 'hard')\nreturn open('hard').read()",
    ),
    Escape(
        "a race of links",
        "CVE-2018-15664",
        """
def swap():
    for _ in range(300):
        for target in (c['file'], 'own'):
            try: os.symlink(target, 'new'); os.replace('new', 'raced')
            except OSError: return
thread = threading.Thread(target=swap); thread.start()
for _ in range(300):
    try:
        if 'canary' in open('raced').read(): return 'read it'
    except OSError: pass
thread.join()
""",
    ),
    Escape("leave by dots", "CTF write-ups", "return open('../' * 30 + c['file'].lstrip('/')).read()"),
    Escape("the parent's environment", "CTF write-ups", """
return open(f"/proc/{c['parent']}/environ").read(9)
"""),
    Escape("the parent's memory", "CTF write-ups", """
open(f"/proc/{c['parent']}/mem", 'rb')
return 'opened'
"""),
    Escape("the parent's root", "nsjail's documentation", """
return os.listdir(f"/proc/{c['parent']}/root/")
"""),
    Escape("the parent's descriptors", "CTF write-ups", "return os.listdir(f\"/proc/{c['parent']}/fd\")"),
    Escape("the first process's root", "Docker's documentation", "return os.listdir('/proc/1/root/')"),
    Escape("its own maps", "CTF write-ups", "return open('/proc/self/maps').read(9)"),
    Escape(
        "write its own memory through /proc",
        "gVisor's documentation",
        "open('/proc/self/mem', 'r+b')\nreturn 'opened'",
    ),
    Escape("open the running program", "CVE-2019-5736 (runc)", """
return os.open('/proc/self/exe', os.O_RDONLY)
"""),
    Escape(
        "write into Python's library",
        "CTF write-ups",
        "import abc\nopen(os.path.dirname(abc.__file__) + '/cutaway_canary.py', 'w')\nreturn 'written'",
    ),
    Escape("the machine's memory", DOCKER, "return os.open('/dev/mem', os.O_RDONLY)"),
    Escape("the kernel's log", DOCKER, "return os.read(os.open('/dev/kmsg', os.O_RDONLY), 9)"),
    Escape("a terminal", "CVE-2017-5226 (bubblewrap)", "return os.open('/dev/ptmx', os.O_RDWR)"),
    Escape(
        "put input into a terminal",
        "CVE-2017-5226 (bubblewrap)",
        """
import fcntl
for n in (0, 1, 2):
    try: fcntl.ioctl(n, 0x5412, b'x')
    except OSError as error:
        if error.errno not in DENIED: return f'reached TIOCSTI: {error}'
""",
    ),
    Escape(
        "make a device",
        DOCKER,
        "os.mknod('disk', 0o600 | stat.S_IFBLK, os.makedev(1, 0))\nreturn os.open('disk', os.O_RDONLY)",
    ),
    Escape("make a pipe for others", "Landlock's documentation", "os.mkfifo(c['folder'] + '/made-pipe')"),
    Escape(
        "open by handle",
        "the shocker exploit of Docker",
        "return reach('open_by_handle_at', HERE, bytes(16), 0)",
    ),
    Escape("the handle of a file", "the shocker exploit of Docker", """
handle = ctypes.create_string_buffer(struct.pack('=Ii', 128, 0) + bytes(128))
return done('name_to_handle_at', HERE, c['file'].encode(), handle, ctypes.byref(ctypes.c_int()), 0)
"""),
    Escape("watch a folder by inotify", ISSUE, """
watch = libc.inotify_init1(0)
return watch >= 0 and libc.inotify_add_watch(watch, c['folder'].encode(), 0xFFF) >= 0 and 'watching'
"""),
    Escape("watch by fanotify", DOCKER, "return reach('fanotify_init', 0, 0)"),
    Escape("lock a file of the machine", "found in review", """
import fcntl
fcntl.flock(os.open(c['file'], os.O_RDONLY), fcntl.LOCK_EX)
return 'locked'
"""),
    Escape(
        "lock a file of Python's library",
        "found in review",
        "import abc, fcntl\nfcntl.flock(open(abc.__file__), fcntl.LOCK_EX)\nreturn 'locked'",
    ),
    Escape("the cgroups' release agent", "CVE-2022-0492", """
import glob
return glob.glob('/sys/fs/cgroup/*') or os.access('/sys/kernel/uevent_helper', os.R_OK)
"""),
    Escape("the pattern of core dumps", "Docker's documentation", """
return open('/proc/sys/kernel/core_pattern').read()
"""),
    Escape("descriptors of the parent", "CVE-2024-21626 (runc)", """
found = []
for n in range(3, 1024):
    try: found.append((n, os.fstat(n).st_mode))
    except OSError: pass
return found
""", alone=True),
    Escape("data of a file by its cache", "Linux 6.5", "return reach('cachestat', 0, 0, 0, 0)"),
]  # fmt: skip
