"""A server as textbooks have it: setsockopt SO_REUSEPORT, bind, listen, an accept loop."""

import os
import signal
import socket
import sys


def answer_signal(*_):
    print("signalled", flush=True)


signal.signal(signal.SIGUSR1, answer_signal)
listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind(("0.0.0.0", int(sys.argv[1])))
listener.listen(128)
print("ready", *sys.argv[2:], os.environ["WORKER_INDEX"], os.environ["WORKER_CPU"], flush=True)
while True:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"%d\n" % os.getpid())
