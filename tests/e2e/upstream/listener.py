"""A listening socket on 127.0.0.1 that owns every connection it accepted, and leaves nothing behind."""

import asyncio
import socket
import ssl
from types import TracebackType
from typing import Self

from .peer import Peer

BACKLOG = 4096


class Listener:
    """Accepts connections, serves each in a task of its own, and ends them all on leaving."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, name: str = "127.0.0.1") -> None:
        self._tls = tls
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[Exception] = []
        self._accepted = 0
        self._socket: socket.socket
        self._port = 0

    @property
    def host(self) -> str:
        """Where to connect: name:port."""
        return f"{self._name}:{self._port}"

    @property
    def url(self) -> str:
        """The base URL, without a trailing slash."""
        return f"{'https' if self._tls else 'http'}://{self.host}"

    @property
    def connections(self) -> int:
        """How many TCP connections ever came, those still in the backlog included."""
        self._accept()
        return self._accepted

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        self._accept()
        return len(self._tasks)

    async def __aenter__(self) -> Self:
        self._bind()
        self.come_back()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        await self.hang_up()
        if self._failures:
            raise ExceptionGroup("the fake server itself broke", self._failures)

    async def go_down(self) -> None:
        """Refuse new connections and drop the present ones, keeping the port."""
        asyncio.get_running_loop().remove_reader(self._socket)
        with self._socket:  # until there is another on its port: nobody else is to get it in between
            self._bind()
        await self.hang_up()

    def come_back(self) -> None:
        """Listen again."""
        self._socket.listen(BACKLOG)
        asyncio.get_running_loop().add_reader(self._socket, self._accept)

    async def hang_up(self) -> None:
        """Drop every open connection."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def serve(self, peer: Peer) -> None:
        """What to do with one connection; it is closed when this returns."""
        raise NotImplementedError

    def changed(self) -> None:
        """Called whenever a connection has come or gone."""

    def _bind(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.setblocking(False)
        self._socket.bind(("127.0.0.1", self._port))
        self._port = self._socket.getsockname()[1]

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._socket.accept()
            except OSError:  # nobody there, or not listening
                return
            self._accepted += 1
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = asyncio.get_running_loop().create_task(self._run(accepted, self._accepted))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
            self.changed()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.changed()

    async def _run(self, accepted: socket.socket, number: int) -> None:
        try:
            peer = await Peer.accept(number, accepted, self._tls)
        except OSError:  # the TLS handshake failed
            accepted.close()
            return
        except asyncio.CancelledError:
            accepted.close()
            raise
        try:
            await self.serve(peer)
        except ConnectionError:
            pass
        except Exception as error:
            self._failures.append(error)
        finally:
            await peer.drop()
