"""Listeners served in one of the ways that servers serve them: server.py STYLE [PORT].

Prints `port N`, then what the test wants to know, then `ready`, and stays until it is killed.
"""
import ctypes, hashlib, os, select, socket, sys, threading, time

style, port = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0


def listener(backlog=16, family=socket.AF_INET, address="127.0.0.1", reuse=True, proto=0):
    global port
    s = socket.socket(family, socket.SOCK_STREAM, proto)
    if reuse:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind((address, port))
    port = s.getsockname()[1]
    if backlog is not None:
        s.listen(backlog)
    return s


def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())  # whole, among threads and processes


def say_who(s):
    say("serves", os.getpid(), threading.get_native_id(), s.fileno())


def by_accept(s):
    say_who(s)
    while True:
        s.accept()


def by_poll(s):
    p = select.poll()
    p.register(os.pipe()[0], select.POLLIN)
    p.register(s, select.POLLIN)
    say_who(s)
    p.poll()
    time.sleep(1e6)


def by_select(s):
    say_who(s)
    select.select([s], [], [])
    time.sleep(1e6)


def by_epoll(s):
    e = select.epoll()
    e.register(s, select.EPOLLIN)
    say_who(s)
    e.poll()
    time.sleep(1e6)


def busy(s):
    say_who(s)
    while True:
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 300_000)  # releases the interpreter's lock


def fork(serve, s, count=2):
    for _ in range(count):
        if os.fork() == 0:
            serve(s)


def pinned(serve, s, cpu):
    os.sched_setaffinity(0, {cpu})
    serve(s)


def thread(*work):
    threading.Thread(target=work[0], args=work[1:], daemon=True).start()


def by_ring(s):  # a ring that is never used shows as much as one in use: nothing
    keep.append(ctypes.CDLL(None).syscall(425, 4, ctypes.create_string_buffer(120)))
    assert keep[-1] >= 0, "io_uring_setup"
    say_who(s)
    time.sleep(1e6)


how = {"ring": by_ring, "accept": by_accept, "poll": by_poll, "select": by_select, "epoll": by_epoll, "busy": busy}
kind, _, serving = style.partition("-")
cpus = sorted(os.sched_getaffinity(0))
keep = []
if kind == "one":
    keep.append(listener())
elif kind == "many":
    keep = [listener() for _ in range(int(serving))]
elif kind == "plain":
    keep.append(listener(reuse=False))
elif kind == "bound":
    keep.append(listener(backlog=None))
elif kind == "dual":
    keep = [listener(), listener(address="0.0.0.0"), listener(family=socket.AF_INET6, address="::1")]
elif kind == "udp":
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    u.bind(("127.0.0.1", port))
    port = u.getsockname()[1]
    keep.append(u)
elif kind == "mptcp":
    keep.append(listener(proto=262))
elif kind == "fork":
    keep.append(listener())
    fork(how[serving], keep[0])
elif kind == "sharded":
    keep = [listener(), listener()]
    for s, cpu in zip(keep, (cpus[0], cpus[-1])):
        thread(pinned, how[serving], s, cpu)
elif kind == "loop":
    keep = [listener(), listener()]
    e = select.epoll()
    for s in keep:
        e.register(s, select.EPOLLIN)
    for _ in range(2):
        thread(e.poll)
elif kind == "nested":
    keep = [listener()]
    inner, outer = select.epoll(), select.epoll()
    inner.register(keep[0], select.EPOLLIN)
    outer.register(inner, select.EPOLLIN)
    if os.fork() == 0:
        outer.poll()
    inner.close()
    outer.close()
elif kind == "foreign":  # sockets that are nobody's business
    keep = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(int(serving))]
say("port", port)
time.sleep(0.05)
say("ready")
if kind == "fork" or kind == "nested":
    os.wait()
time.sleep(1e6)
