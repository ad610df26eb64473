"""Looking up names as the system does, in few threads of one's own: a name server that is silent holds up no others."""

import asyncio
import errno
import socket
from functools import partial
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from proxy import daemon

LOOKUPS = 4  # at once; a thread cannot be stopped, so that one which hangs counts until its name server gives up
PATIENCE = 10.0  # seconds to wait for one's turn, and for an answer


class Names(AbstractResolver):
    """The system's resolver, hosts file and all.

    asyncio's own look-ups share the threads of the whole process: a host that redirects to names whose server does not
    answer would keep every other upstream waiting.
    """

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(LOOKUPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a host. Raises OSError if there are none, or none in time."""
        # aiohttp shields this from whoever gives up: without an end of its own it would stay in the queue for ever.
        try:
            async with asyncio.timeout(PATIENCE):
                await self._turns.acquire()
                return await asyncio.shield(self._started(host, port, family))
        except TimeoutError:
            raise socket.gaierror(socket.EAI_AGAIN, "no name server answers") from None

    def _started(self, host: str, port: int, family: socket.AddressFamily) -> asyncio.Future[list[ResolveResult]]:
        """Its turn is held until the thread is done, however long anybody waits for it."""
        try:
            found = asyncio.wrap_future(daemon.start(partial(_look_up, host, port, family), "look up"))
        except RuntimeError as error:
            self._turns.release()
            raise OSError(errno.EAGAIN, "no thread can be started") from error
        found.add_done_callback(self._ended)
        return found

    def _ended(self, found: asyncio.Future[list[ResolveResult]]) -> None:
        self._turns.release()
        if not found.cancelled():
            found.exception()  # is known by whoever still waits; else it would be logged as nobody's

    async def close(self) -> None:
        """Nothing is waited for."""


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    found = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [
        ResolveResult(
            hostname=host, host=_numeric(place), port=port, family=kind, proto=protocol, flags=socket.AI_NUMERICHOST
        )
        for kind, _, protocol, _, place in found
    ]


def _numeric(place: Any) -> str:
    """An address in digits, with its zone: a link-local one is nothing without."""
    return socket.getnameinfo(place, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
