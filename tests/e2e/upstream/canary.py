"""A port nobody may connect to."""

import asyncio
import ssl

from .journal import Changes
from .listener import Listener
from .peer import Peer


class Canary(Changes, Listener):
    """Takes note of every connection and of what came over it; never answers."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, name: str = "127.0.0.1") -> None:
        Changes.__init__(self)
        Listener.__init__(self, tls=tls, name=name)
        self.received: dict[int, bytes] = {}
        """What came, by connection number."""
        self.came = asyncio.Event()
        """Set once any connection has come."""

    def changed(self) -> None:
        """A connection has come or gone."""
        self.came.set()
        super().changed()

    async def serve(self, peer: Peer) -> None:
        """Read, and say nothing."""
        self.received[peer.number] = b""
        while data := await peer.reader.read(65536):
            self.received[peer.number] += data
            self.changed()
