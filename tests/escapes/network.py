"""Networks and sockets of the machine."""

from tests.escapes import Escape

GVISOR = "gVisor's documentation"
ISSUE = "found in this sandbox"
ESCAPES = [
    Escape("connect by TCP", GVISOR, """
socket.create_connection(('127.0.0.1', c['tcp']), 1)
return 'connected'
"""),
    Escape("connect by IPv6", GVISOR, "return socket.socket(socket.AF_INET6, socket.SOCK_STREAM)"),
    Escape("send by UDP", GVISOR, """
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', c['udp']))
"""),
    Escape("ask DNS", "data leaks by DNS", "return socket.getaddrinfo('localhost', 80)"),
    Escape("listen", GVISOR, """
s = socket.socket()
s.bind(('127.0.0.1', 0))
s.listen()
return s.getsockname()
"""),
    Escape("a raw socket", "Docker's documentation", """
return socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
"""),
    Escape("a packet socket", "CVE-2020-14386", "return socket.socket(17, socket.SOCK_RAW, 0)"),
    Escape("netlink", "CVE-2022-34918", "return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)"),
    Escape("vsock", "Docker's seccomp profile", "return socket.socket(40, socket.SOCK_STREAM)"),
    Escape("the kernel's cryptography", "Copy-on-write faults of AF_ALG", """
return socket.socket(38, socket.SOCK_SEQPACKET, 0)
"""),
    Escape("connect to a daemon's socket", "docker.sock", """
s = socket.socket(socket.AF_UNIX)
s.connect(c['stream'])
return 'connected'
"""),
    Escape("connect to an abstract socket", "CVE-2020-15257 (containerd)", """
s = socket.socket(socket.AF_UNIX)
s.connect('\\0' + c['abstract'])
return 'connected'
"""),
    Escape("datagrams by a pair to a daemon", ISSUE, """
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
one.sendto(c['mark'].encode(), c['datagram'])
"""),
    Escape("datagrams by a pair to an abstract name", ISSUE, """
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
one.sendto(c['mark'].encode(), '\\0' + c['abstract'] + '-datagram')
"""),
    Escape("a message with an address by a pair", ISSUE, """
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
one.sendmsg([c['mark'].encode()], [], 0, c['datagram'])
"""),
    Escape("connect one of a pair elsewhere", "found in review", """
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
one.connect(c['datagram'])
one.send(c['mark'].encode())
"""),
    Escape("a stream pair that sends elsewhere", "found in review", """
one, other = socket.socketpair()
one.sendto(c['mark'].encode(), c['datagram'])
one.connect(c['stream'])
return 'connected'
"""),
    Escape("a pair of another family", "found in review", "return socket.socketpair(16, socket.SOCK_RAW)"),
    Escape("sockets by io_uring", "Google's report on io_uring", """
return reach('io_uring_setup', 8, ctypes.create_string_buffer(256))
"""),
    Escape("options of a pair", "found in review", """
one, other = socket.socketpair()
one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUFFORCE, 1 << 30)
return 'set'
"""),
]  # fmt: skip
