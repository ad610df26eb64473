"""Requests that came before, byte for byte, answered again without being parsed, routed and rendered anew.

The nodes of a cluster and the threads of one client ask in the very same words. To parse a request, to start a task for
it and to render its answer takes aiohttp and us ten times as long as to find the answer (docs/performance.md): whoever
has answered one may say how the same one is to be answered, and is asked that in place of all the rest. Whether it may
be answered so is decided anew in each turn of the event loop. All else goes the ordinary way.
"""

from collections.abc import Callable
from typing import Any, Protocol

from aiohttp import web
from cachetools import LRUCache

LONGEST_HEAD = 2048  # bytes
MEMORY = 16 * 1024 * 1024  # bytes of heads, answers and what they are made of, of one process
OVERHEAD = 4096  # bytes of the head, and of the objects around the answer
SEEN = 16384  # heads that are known to have come once
INTERNALS = ("_close", "_force_close", "_keepalive_timeout", "_next_keepalive_close_time", "_paused")  # of aiohttp's
MORE_THAN_A_HEAD = (b"\r\ncontent-length:", b"\r\ntransfer-encoding:", b"\r\nupgrade:", b"\r\nexpect:")


class Again(Protocol):
    """How a request is answered when it comes again."""

    @property
    def size(self) -> int:
        """Bytes that it takes to keep it."""

    def __call__(self, client: str) -> bytes | None:
        """All of the answer to a client at this address; None where it takes more than memory to find one."""


class Repeats:
    """What was asked before, and how it is answered again."""

    def __init__(self) -> None:
        self._seen: LRUCache[int, bool] = LRUCache(SEEN)
        self._known: LRUCache[bytes, Again] = LRUCache(MEMORY, getsizeof=lambda again: again.size + OVERHEAD)

    def find(self, head: bytes) -> Again | None:
        """How the request with this head, and nothing else, is answered again."""
        return self._known.get(head)

    def offer(self, head: bytes, make: Callable[[], Again]) -> None:
        """Have a request like this answered so, if it has come before: many heads are those of one request only."""
        if hash(head) in self._seen:
            self._known[head] = make()
        self._seen[hash(head)] = True


class Connection(web.RequestHandler):
    """A client's connection. It is a plain one for as long as heads of requests come alone, each after an answer.

    Only then is it known that the next bytes are the beginning of a request; whoever sends bodies, sends on before the
    answer, or sends a head by halves, is understood by aiohttp's parser alone from then on.
    """

    __slots__ = ("_asked", "_is_plain", "_repeats")

    def __init__(self, repeats: Repeats, server: web.Server, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._repeats = repeats
        self._is_plain = True
        self._asked: bytes | None = None  # the head that is being answered

    def data_received(self, data: bytes) -> None:
        """Answer again what was asked before; hand all else to aiohttp, which says b"" when it reads on."""
        if self._is_plain and data:
            if self._asked is None and self._answer_again(data):
                return
            self._is_plain = self._asked is None and _is_a_head(data)
            self._asked = data if self._is_plain else None
        super().data_received(data)

    def _answer_again(self, head: bytes) -> bool:
        again = self._repeats.find(head)
        if again is None or self.transport is None or self._paused or self._close or self._force_close:
            return False  # a client that does not read is waited for elsewhere
        answer = again(self.peername[0]) if isinstance(self.peername, tuple) else None
        if answer is None:
            return False
        self.transport.write(answer)
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        return True

    def log_access(self, request: web.BaseRequest, response: web.StreamResponse, time: float | None) -> None:
        """aiohttp's word that all of an answer was handed to the connection."""
        super().log_access(request, response, time)
        self._is_plain = self._is_plain and bool(response.keep_alive)
        self._asked = None

    def offer(self, make: Callable[[], Again]) -> None:
        """Have the request that is being answered answered like this when it comes again."""
        if self._asked is not None:
            self._repeats.offer(self._asked, make)


class Server(web.Server):
    """aiohttp's server, with connections of our own as long as it has what those use of it."""

    def __init__(self, handler: Callable[[web.BaseRequest], Any], **settings: Any) -> None:
        super().__init__(handler, **settings)
        self._repeats = Repeats()

    def __call__(self) -> web.RequestHandler:
        """A connection, for the event loop."""
        if not all(hasattr(web.RequestHandler, name) for name in INTERNALS):
            return super().__call__()
        return Connection(self._repeats, self, loop=self._loop, **self._kwargs)


def offer(request: web.BaseRequest, response: web.StreamResponse, make: Callable[[], Again]) -> None:
    """Have a request answered like this when it comes again, unless its connection ends with the answer."""
    if response.keep_alive and isinstance(request.protocol, Connection):
        request.protocol.offer(make)


def _is_a_head(data: bytes) -> bool:
    """Whether these bytes are the head of one request without a body, and nothing else."""
    if len(data) > LONGEST_HEAD or not data.startswith((b"GET /", b"HEAD /")):
        return False
    if data.find(b"\r\n\r\n") != len(data) - 4 or data.count(b"\n") != data.count(b"\r\n"):
        return False
    lower = data.lower()
    return not any(field in lower for field in MORE_THAN_A_HEAD)
