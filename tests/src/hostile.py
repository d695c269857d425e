"""Other people's BPF and a hostile environment, for the tests. `hostile.rs` is its manual.

    hostile.py confine ERRNO NR[,NR...] COMMAND...   run a command under a seccomp filter
    hostile.py attach SYS_BPF PID FD none|array      attach an eBPF program, then wait for stdin's end
    hostile.py classic SYS_BPF PID FD                attach a classic one and exit
    hostile.py hold SYS_BPF PID FD                   put the listener into a map, then wait
    hostile.py share SYS_BPF PID FD PID FD SIZE      one map of SIZE byte values with two listeners; its
                                                     program is attached to the first; then wait
    hostile.py detach SYS_BPF PID FD                 detach whatever is attached and exit
    hostile.py flap SYS_BPF PID FD                   shut the listener down and listen again, for ever
    hostile.py reuse PORT                            close and reopen sockets on the same descriptor
    hostile.py forge SYS_BPF COOKIE                  look like a trace that saw much of a listener, then wait
"""

import ctypes
import os
import socket
import struct
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
SO_ATTACH_REUSEPORT_CBPF, SO_ATTACH_REUSEPORT_EBPF, SO_DETACH_REUSEPORT_BPF = 51, 52, 68
SOCKARRAY, SOCKET_FILTER, SK_REUSEPORT = 20, 1, 21


def check(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def bpf(command, attributes):
    attributes = ctypes.create_string_buffer(attributes, 128)
    return check(libc.syscall(int(sys.argv[2]), command, attributes, 128))


def instruction(code, dst=0, src=0, imm=0):
    return struct.pack("=BBhi", code, dst | src << 4, 0, imm)


def load(*maps, kind=SK_REUSEPORT, name=b"somebody_elses"):
    """A program that passes everything and refers to maps."""
    code = b""
    for file in maps:
        code += instruction(0x18, dst=1, src=1, imm=file) + instruction(0)
    code += instruction(0xB7, imm=1) + instruction(0x95)
    code = ctypes.create_string_buffer(code, len(code))
    text = ctypes.create_string_buffer(b"GPL")
    return bpf(
        5,
        struct.pack(
            "=IIQQIIQII16s",
            kind,
            len(code) // 8,
            ctypes.addressof(code),
            ctypes.addressof(text),
            0, 0, 0, 0, 0,
            name,
        ),
    )


def hold(*listeners, size=8):
    """A map with the listeners in it."""
    array = bpf(0, struct.pack("=IIII", SOCKARRAY, 4, size, len(listeners)))
    for slot, listener in enumerate(listeners):
        key, value = ctypes.c_uint32(slot), ctypes.c_uint64(listener.fileno())
        bpf(2, struct.pack("=IIQQQ", array, 0, ctypes.addressof(key), ctypes.addressof(value), 0))
    return array


def take(pid, fd):
    pidfd = os.pidfd_open(int(pid))
    taken = check(libc.syscall(int(os.environ["SYS_PIDFD_GETFD"]), pidfd, int(fd), 0))
    return socket.socket(fileno=taken)


def counts(name, size, key, value):
    """A hash with one entry; its name is seen by who asks the kernel."""
    made = bpf(0, struct.pack("=IIIIIII16s", 1, 8, size, 1, 0, 0, 0, name))
    key, value = ctypes.c_uint64(key), ctypes.c_uint64(value)
    bpf(2, struct.pack("=IIQQQ", made, 0, ctypes.addressof(key), ctypes.addressof(value), 0))
    return made


def forge(cookie):
    """All but the right to trace: a socket filter takes none where unprivileged BPF is allowed."""
    check(libc.prctl(15, b"reuseport-steer"))
    maps = counts(b"LISTENERS", 4, int(cookie), 0), counts(b"PAIRS", 8, 0, 1000)
    load(*maps, kind=SOCKET_FILTER, name=b"accepted")
    wait()


def wait():
    print("ready", flush=True)
    sys.stdin.read()


def confine(number, calls, *command):
    steps = [(0x20, 0, 0, 0)]
    for call in calls.split(","):
        steps += [(0x15, 0, 1, int(call)), (0x06, 0, 0, 0x00050000 | int(number))]
    steps += [(0x06, 0, 0, 0x7FFF0000)]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    code = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    # PR_SET_SECCOMP, SECCOMP_MODE_FILTER: as root, so without NO_NEW_PRIVS.
    check(libc.prctl(22, ctypes.c_ulong(2), program, ctypes.c_ulong(0), ctypes.c_ulong(0)))
    os.execvp(command[0], command)


def reuse(port):
    """One descriptor number, many sockets: a listener of the group, another one, a file."""
    place = None
    while True:
        for kind in range(3):
            if kind == 2:
                file = os.open("/dev/null", os.O_RDONLY)
            else:
                made = socket.socket()
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                made.bind(("0.0.0.0", int(port) + kind))
                made.listen(64)
                file = made.detach()
            if place is None:
                place = os.dup(file)
                print("ready", flush=True)
            else:
                os.dup2(file, place)
            os.close(file)


def main():
    verb, arguments = sys.argv[1], sys.argv[2:]
    if verb == "confine":
        confine(*arguments)
    if verb == "reuse":
        reuse(*arguments)
    if verb == "forge":
        return forge(arguments[1])
    listener = take(*arguments[1:3])
    if verb == "attach":
        maps = [hold(listener)] if arguments[3] == "array" else []
        program = load(*maps)
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, program)
        listener.close()
        wait()
    elif verb == "classic":
        code = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0), 8)
        program = struct.pack("@HP", 1, ctypes.addressof(code))
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program)
    elif verb == "hold":
        array = hold(listener)
        listener.close()
        wait()
    elif verb == "share":
        other = take(*arguments[3:5])
        program = load(hold(listener, other, size=int(arguments[5])))
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, program)
        listener.close()
        other.close()
        wait()
    elif verb == "flap":
        print("ready", flush=True)
        while True:
            for act in (lambda: listener.shutdown(socket.SHUT_RDWR), lambda: listener.listen(64)):
                act()
                time.sleep(0.0005)
    elif verb == "detach":
        listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)


main()
