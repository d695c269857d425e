"""A server that takes its time: a byte at once, the rest when there is a file `go` beside it."""

import os
import socket
import threading

GO = os.path.join(os.path.dirname(__file__), "go")


def serve(connection):
    with connection:
        connection.sendall(b".")
        connection.settimeout(0.05)
        while not os.path.exists(GO):
            try:
                if not connection.recv(1):
                    return
            except TimeoutError:
                pass
        connection.sendall(b"done\n")


listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind(("0.0.0.0", 8080))
listener.listen(128)
while True:
    threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
