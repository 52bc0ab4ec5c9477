"""Other processes and programs: started, traced, signalled, outlived."""

from tests.escapes import Escape

DOCKER = "Docker's seccomp profile"
NSJAIL = "nsjail's documentation"
ISSUE = "found in this sandbox"
ESCAPES = [
    Escape("fork", NSJAIL, """
child = os.fork()
if child == 0: os._exit(0)
os.waitpid(child, 0)
return 'forked'
"""),
    Escape("vfork by number", NSJAIL, """
number = {'x86_64': 58}.get(platform.machine(), 220)
result = libc.syscall(ctypes.c_long(number), 17, 0, 0, 0, 0)
if result == 0: os._exit(0)
return result > 0 and 'forked'
""", alone=True),
    Escape("clone a process", NSJAIL, """
result, _ = call('clone', 17, 0, 0, 0, 0)
if result == 0: os._exit(0)
return result > 0 and 'forked'
"""),
    Escape("clone into a user namespace", "Debian's and Ubuntu's advisories", """
result, _ = call('clone', 0x10000000 | 17, 0, 0, 0, 0)
if result == 0: os._exit(0)
return result > 0 and 'forked'
"""),
    Escape("clone that is no thread but shares files", "found in review", """
result, _ = call('clone', 0x200 | 0x400 | 17, 0, 0, 0, 0)
if result == 0: os._exit(0)
return result > 0 and 'forked'
""", alone=True),
    Escape("clone3 with namespaces", DOCKER, """
arguments = ctypes.create_string_buffer(struct.pack('=11Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0))
result, _ = call('clone3', arguments, 88)
if result == 0: os._exit(0)
return result > 0 and 'forked'
"""),
    Escape("a subprocess", "CTF write-ups", """
import subprocess
return subprocess.check_output(['/bin/true']) == b'' and 'ran'
"""),
    Escape("posix_spawn", "CTF write-ups", "return os.posix_spawn('/bin/true', ['true'], {})"),
    Escape("os.system", "CTF write-ups", "return os.system('true') == 0 and 'ran'"),
    Escape("exec another program", NSJAIL, """
os.execv('/bin/echo', ['echo', '@["exec another program", "ran", ""]'])
""", alone=True),
    Escape("exec Python again", NSJAIL, """
os.execv(sys.executable, [sys.executable, '-c', 'print("@" + \\'["exec Python again", "ran", ""]\\')'])
""", alone=True),
    Escape("exec a set-uid program", "bubblewrap's documentation", """
os.execv('/bin/su', ['su', '--version'])
""", alone=True),
    Escape("exec from memory", "fileless malware", """
made = libc.memfd_create(b'x', 0)
if made < 0: return None
os.write(made, open('/bin/true', 'rb').read())
return reach('execveat', made, b'', 0, 0, 0x1000)
"""),
    Escape("the loader runs a program", "CTF write-ups", """
os.execv('/lib64/ld-linux-x86-64.so.2', ['ld', '/bin/true'])
return 1
""", alone=True),
    Escape("trace its parent", NSJAIL, "return done('ptrace', 16, c['victim'], 0, 0)", alone=True),
    Escape("be traced", DOCKER, "return done('ptrace', 0, 0, 0, 0)", alone=True),
    Escape("read another's memory", DOCKER, """
own = ctypes.create_string_buffer(8)
here = (ctypes.c_ulong * 2)(ctypes.addressof(own), 8)
there = (ctypes.c_ulong * 2)(c['address'], 8)
return done('process_vm_readv', c['victim'], here, 1, there, 1, 0)
"""),
    Escape("write another's memory", DOCKER, """
own = ctypes.create_string_buffer(8)
here = (ctypes.c_ulong * 2)(ctypes.addressof(own), 8)
there = (ctypes.c_ulong * 2)(c['address'], 8)
return done('process_vm_writev', c['victim'], here, 1, there, 1, 0)
"""),
    Escape("compare processes", DOCKER, "return done('kcmp', os.getpid(), c['victim'], 1, 0, 0)"),
    Escape("a handle of a process", "Linux 5.3", "return done('pidfd_open', c['victim'], 0)"),
    Escape("another's descriptor", "Linux 5.6", """
handle, _ = call('pidfd_open', c['victim'], 0)
return handle >= 0 and done('pidfd_getfd', handle, 1, 0)
"""),
    Escape("signal a process", "Landlock before version 6", "os.kill(c['victim'], signal.SIGUSR1)"),
    Escape("signal all processes", NSJAIL, "os.kill(-1, 0)\nreturn 'all'"),
    Escape("signal its group", NSJAIL, "os.kill(0, 0)\nreturn 'group'"),
    Escape("signal its parent", NSJAIL, "os.kill(os.getppid(), 0)\nreturn 'parent'"),
    Escape("tkill a process", "Landlock before version 6", "return done('tkill', c['victim'], 10)"),
    Escape("queue a signal", "Landlock before version 6", """
about = ctypes.create_string_buffer(struct.pack('=iii', 10, 0, -1) + bytes(116))
return done('rt_sigqueueinfo', c['victim'], 10, about)
"""),
    Escape("signal by a handle", "Linux 5.1", """
handle, _ = call('pidfd_open', c['victim'], 0)
return handle >= 0 and done('pidfd_send_signal', handle, 10, 0, 0)
"""),
    Escape("signal by a descriptor's owner", ISSUE, """
import fcntl
reading, writing = os.pipe()
fcntl.fcntl(reading, fcntl.F_SETOWN, c['victim'])
fcntl.fcntl(reading, fcntl.F_SETSIG, signal.SIGUSR1)
fcntl.fcntl(reading, fcntl.F_SETFL, fcntl.fcntl(reading, fcntl.F_GETFL) | os.O_ASYNC)
os.write(writing, b'x')
time.sleep(0.05)
"""),
    Escape("signal by a descriptor's owner, extended", ISSUE, """
import fcntl
reading, writing = os.pipe()
fcntl.fcntl(reading, 15, struct.pack('ii', 1, c['victim']))
fcntl.fcntl(reading, fcntl.F_SETSIG, signal.SIGUSR1)
fcntl.fcntl(reading, fcntl.F_SETFL, fcntl.fcntl(reading, fcntl.F_GETFL) | os.O_ASYNC)
os.write(writing, b'x')
time.sleep(0.05)
"""),
    Escape("signal by a notice of folders", "fcntl's F_NOTIFY", """
import fcntl
place = os.open('.', os.O_RDONLY)
fcntl.fcntl(place, fcntl.F_NOTIFY, 0x80000004)
return 'watching'
"""),
    Escape("a lease on a file", "fcntl's F_SETLEASE", """
import fcntl
open('leased', 'w')
fcntl.fcntl(os.open('leased', os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)
return 'leased'
"""),
    Escape("a timer of the kernel", "found in review", """
return reach('timer_create', 0, 0, ctypes.byref(ctypes.c_int()))
"""),
    Escape("another's priority", NSJAIL, "return done('setpriority', 0, c['victim'], 19)"),
    Escape("another's processors", DOCKER, """
return done('sched_setaffinity', c['victim'], 8, struct.pack('Q', 3))
"""),
    Escape("another's limits", NSJAIL, """
return done('prlimit64', c['victim'], 7, 0, ctypes.create_string_buffer(16))
"""),
    Escape("a session of its own", "daemons", "return done('setsid')", alone=True),
    Escape("a daemon that outlives", "daemons", """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for n in (0, 1, 2): os.close(n)
        import ctypes
        ctypes.CDLL(None).prctl(15, c['mark'].encode())
        time.sleep(60)
    os._exit(0)
time.sleep(0.2)
""", alone=True),
    Escape("its own limits", NSJAIL, """
import resource
resource.setrlimit(resource.RLIMIT_CPU, (1 << 30, 1 << 30))
return resource.getrlimit(resource.RLIMIT_CPU)[0] > 1000 and 'raised'
"""),
    Escape("another identity", DOCKER, "os.setgroups([0, 1])\nreturn 'set'"),
]  # fmt: skip
