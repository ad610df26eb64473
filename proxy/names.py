"""Looking up names as the system does, in few threads of one's own: a name server that is silent holds up no others."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

LOOKUPS = 4  # at once; more wait, and whoever has waited for too long gives up


class Names(AbstractResolver):
    """The system's resolver, hosts file and all.

    asyncio's own look-ups share the threads of the whole process: a host that redirects to names whose server does not
    answer would keep every other upstream waiting.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a host. Raises OSError if there are none."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host, port, family)

    async def close(self) -> None:
        """Start no more look-ups; those that are going on are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)


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
