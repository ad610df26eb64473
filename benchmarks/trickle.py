"""Clients that take a blob at a trickle, all in one process; what they have is what the server must bear.

A Trickle as JSON comes on standard input; "ready" goes out once each has had the head of its answer and the first of
its bytes; they go on until standard input ends, and then a line says how many still get what they asked for.
"""

import json
import resource
import select
import socket
import sys
import time
from dataclasses import dataclass

WINDOW = 64 * 1024  # bytes that a client's kernel takes in unasked for
HEAD = 4096  # bytes: more than a head has
TURN = 0.1  # seconds in which as many have their turn as are due


@dataclass(frozen=True)
class Trickle:
    """`piece`: bytes that each takes at a time; `pause`: seconds between two of them."""

    host: str
    path: str
    connections: int
    piece: int = 16 * 1024
    pause: float = 1.0


def asked(trickle: Trickle) -> socket.socket:
    """A connection on which the blob has been asked for."""
    host, _, port = trickle.host.rpartition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)
    sock.connect((host, int(port)))
    sock.sendall(f"GET {trickle.path} HTTP/1.1\r\nHost: {trickle.host}\r\nAccept: */*\r\n\r\n".encode())
    return sock


def take(sock: socket.socket, scratch: bytearray, piece: int) -> bool:
    """Take some; whether there is more to come. What has not come yet is no reason to think otherwise."""
    try:
        return sock.recv_into(scratch, piece, socket.MSG_DONTWAIT | socket.MSG_TRUNC) > 0
    except BlockingIOError:
        return True
    except OSError:
        return False


def main() -> None:
    """Connect, say so, trickle on, and tell what came of it."""
    trickle = Trickle(**json.loads(sys.stdin.readline()))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients = [asked(trickle) for _ in range(trickle.connections)]
    clients = [one for one in clients if one.recv(HEAD).startswith(b"HTTP/1.1 200 ")]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    scratch, number, began = bytearray(trickle.piece), 0, time.monotonic()
    alive = set(clients)
    while not select.select([sys.stdin], [], [], TURN)[0]:
        due = int((time.monotonic() - began) / trickle.pause * len(clients))
        for turn in range(number, due):
            one = clients[turn % len(clients)]
            if one in alive and not take(one, scratch, trickle.piece):
                alive.discard(one)
        number = max(number, due)
    sys.stdout.write(f"{len(alive)}\n")


if __name__ == "__main__":
    main()
