"""Clients on this machine are sent to as fast as they take it, also where the system's congestion control is BBR.

BBR paces what it sends by what it takes the way to a client to carry. To a client on the same machine there is no way
to spare, and its timers and its guesses leave a sixth of the throughput (docs/performance.md). What a connection once
had of BBR stays with it: all begin without, and those from elsewhere get the system's own as soon as they are there.
"""

import asyncio
import contextlib
import socket
from typing import Any

PACING = b"bbr"  # what paces, of what systems use
SIMPLE = b"reno"  # which every Linux has, and lets everybody use


def paced() -> bytes | None:
    """The system's congestion control, if it paces; None if there is nothing to be done about it."""
    with contextlib.suppress(OSError, AttributeError), socket.socket() as sock:  # a system that has no such thing
        name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")
        return name if name.startswith(PACING) else None
    return None


def begin_unpaced(sock: socket.socket) -> bytes | None:
    """Have all connections of a listening socket begin without pacing. Returns what those from elsewhere are to get."""
    system = paced()
    if system is None:
        return None
    with contextlib.suppress(OSError), socket.socket() as trial:  # no TCP socket, or forbidden: all stays as it is
        for name in (SIMPLE, system):  # who may not go back to the system's own is not to leave it
            trial.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, SIMPLE)
        return system
    return None


class Arrival(asyncio.Protocol):
    """A client that has just connected: unless it is on this machine, it gets what the system uses."""

    def __init__(self, protocol: asyncio.Protocol, system: bytes) -> None:
        self._protocol = protocol
        self._system = system

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP's is one
        """Look where it is, and hand it on."""
        sock = transport.get_extra_info("socket")
        if not _is_here(transport):
            with contextlib.suppress(OSError):  # it is gone already, which its protocol is about to learn
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self._system)
        transport.set_protocol(self._protocol)
        self._protocol.connection_made(transport)


def _is_here(transport: asyncio.Transport) -> bool:
    """Whether both ends of a connection are this machine's: it speaks to itself from the address that it speaks to."""
    peer: Any = transport.get_extra_info("peername")
    own: Any = transport.get_extra_info("sockname")
    return bool(peer) and bool(own) and peer[0] == own[0]
