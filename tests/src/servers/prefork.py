"""A pre-fork server of the plainest kind: children that block in accept()."""

import os
import signal
import socket
import sys

port, sharing, cpus = int(sys.argv[1]), sys.argv[2], [int(cpu) for cpu in sys.argv[3].split(",")]


def listener():
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("0.0.0.0", port))
    sock.listen(511)
    return sock


def serve(sock):
    while True:
        connection, _ = sock.accept()
        with connection:
            try:
                connection.sendall(b"%d\n" % os.getpid())
            except OSError:
                pass


shared = listener() if sharing == "shared" else None
for cpu in cpus:
    if os.fork() == 0:
        os.sched_setaffinity(0, {cpu})
        serve(shared or listener())
# The test starts us as leader of a process group: the family goes as one.
signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
for _ in cpus:
    os.wait()
