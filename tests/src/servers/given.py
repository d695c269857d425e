"""A server that takes its listener as systemd gives it: descriptor 3, for this very process."""

import os
import socket
import sys

assert os.environ["LISTEN_FDS"] == "1", os.environ["LISTEN_FDS"]
assert os.environ["LISTEN_PID"] == str(os.getpid()), os.environ["LISTEN_PID"]
assert os.environ["LISTEN_FDNAMES"] == "reuseport", os.environ["LISTEN_FDNAMES"]
listener = socket.socket(fileno=3)
print("took", listener.getsockname(), file=sys.stderr, flush=True)
while True:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"%d\n" % os.getpid())
