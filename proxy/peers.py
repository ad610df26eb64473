"""The other replicas on a bucket, asked for what they are bringing in."""

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable

import aiohttp
from cachetools import TTLCache
from yarl import URL

from proxy.blob_stream import BlobStream
from proxy.lending import HOLDER, PREFIX
from proxy.oci.address import is_neighbour
from proxy.oci.digest import Digest
from proxy.stores.leases import Lease
from proxy.telemetry import Logger

PATIENCE = 3.0  # seconds for the head of an answer: who takes longer is taken for dead
SILENCE, REMEMBERED = 30.0, 1024  # seconds for which such an address is not asked again, and how many are known
STALL = 30.0  # seconds without a byte


class Peers:
    """Their connections. What comes from them is believed by nobody before it was held against a digest."""

    def __init__(self, received: Callable[[int], None], log: Logger) -> None:
        """`received` is told of bytes as they come."""
        self._received = received
        self._log = log
        self._session: aiohttp.ClientSession | None = None
        self._silent: TTLCache[str, bool] = TTLCache(REMEMBERED, SILENCE)  # addresses that nothing came from in time

    @contextlib.asynccontextmanager
    async def open(self, lease: Lease, digest: Digest, start: int) -> AsyncIterator[BlobStream | None]:
        """A blob from an offset on, as its holder has it or gets it; None where it is not the holder that answers."""
        async with contextlib.AsyncExitStack() as stack:
            response = None if lease.address in self._silent else await self._answer(stack, lease, digest, start)
            stream = None
            if response is not None and response.status == 200 and response.headers.get(HOLDER) == lease.holder:
                stream = BlobStream(response, STALL, self._received)
                stream.start = start
                stream.total = None if stream.total is None else start + stream.total
            elif response is not None:
                self._log.info("replica has nothing", address=lease.address, status=response.status)
            yield stream

    async def _answer(
        self, stack: contextlib.AsyncExitStack, lease: Lease, digest: Digest, start: int
    ) -> aiohttp.ClientResponse | None:
        try:
            async with asyncio.timeout(PATIENCE):
                return await stack.enter_async_context(self._ask(lease, digest, start))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            if isinstance(error, TimeoutError):
                self._silent[lease.address] = True
            self._log.warning(
                "replica does not answer", address=lease.address, reason=type(error).__name__,
                meanwhile="another one goes on", remedy="if it is alive, see server.advertise",
            )  # fmt: skip
            return None

    def _ask(
        self, lease: Lease, digest: Digest, start: int
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, socket_factory=_guarded_socket),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session.get(
            URL(lease.address).with_path(f"{PREFIX}{digest}").with_query(start=start),
            headers={"Authorization": f"Bearer {lease.token}", "Accept-Encoding": "identity"},
            allow_redirects=False,
            ssl=True if lease.certificate is None else aiohttp.Fingerprint(bytes.fromhex(lease.certificate)),
        )

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()


def _guarded_socket(info: aiohttp.AddrInfoType) -> socket.socket:
    """A socket to where a replica may be: a lease may have been written by anybody who may write to the bucket."""
    family, kind, protocol, _, place = info
    if not is_neighbour(ipaddress.ip_address(str(place[0]).partition("%")[0])):
        raise OSError(errno.EACCES, "no replica can be there")
    return socket.socket(family=family, type=kind, proto=protocol)
