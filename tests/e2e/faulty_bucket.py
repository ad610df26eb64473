"""A bucket that fails: it passes on to a real S3 server what it is asked, counts it, and answers some of it wrongly."""

import asyncio
import http.client
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from .upstream.behaviours import Asked, Behaviour, Held, Misdeclared, Raw, Resized, WrongBytes
from .upstream.deliver import Dispatch
from .upstream.gates import Gate
from .upstream.journal import Journal
from .upstream.listener import Listener
from .upstream.peer import Peer
from .upstream.reply import BEFORE_HEAD, Ending, Reply
from .upstream.wire import Request, read_request

_FRAMING = {"content-length", "connection", "transfer-encoding"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """S3's own kind of error; `status` 200 is what S3 does where it notices only after it has begun to answer."""

    status: int
    code: str

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{self.code}</Code><Message>no</Message></Error>'
        return Reply(self.status, (("Content-Type", "application/xml"),), body.encode())


@dataclass(frozen=True, slots=True)
class Page:
    """Not S3 at all, but somebody in between who has a page for everything."""

    status: int

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        return Reply(self.status, (("Content-Type", "text/html"),), b"<html><p>Welcome & log in<br></html>")


@dataclass(frozen=True, slots=True)
class Halved:
    """Breaks off in the middle of the body, or (`at` -1) before the head."""

    ending: Ending
    at: int | None = None

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        cut = len(reply.body) // 2 if self.at is None else self.at
        return replace(reply, delivery=replace(reply.delivery, cut=cut, ending=self.ending))


@dataclass(frozen=True, slots=True)
class Bare:
    """Says that all is well, and nothing else."""

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        return Reply(200)


@dataclass(frozen=True, slots=True)
class Stalled:
    """Stops in the middle of the body, and says no more."""

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        return Held(len(reply.body) // 2, Gate())(reply, asked)


@dataclass(frozen=True, slots=True)
class Fault:
    """How a request goes wrong; `is_done`: the server has done what was asked, and it is the answer that suffers."""

    behaviour: Behaviour
    is_done: bool = False


FAULTS: Mapping[str, Fault] = {
    "reset": Fault(Halved(Ending.RESET, BEFORE_HEAD)),
    "hung-up": Fault(Halved(Ending.FIN, BEFORE_HEAD)),
    "lost-answer": Fault(Halved(Ending.RESET, BEFORE_HEAD), is_done=True),
    "silent": Fault(Held(BEFORE_HEAD, Gate())),
    "silent-after": Fault(Held(BEFORE_HEAD, Gate()), is_done=True),
    "broken": Fault(Halved(Ending.RESET), is_done=True),
    "stalled": Fault(Stalled(), is_done=True),
    "truncated": Fault(Misdeclared(-1), is_done=True),
    "shorter": Fault(Resized(-1), is_done=True),
    "longer": Fault(Resized(1), is_done=True),
    "wrong": Fault(WrongBytes(), is_done=True),
    "412": Fault(Refusal(412, "PreconditionFailed")),
    "409": Fault(Refusal(409, "ConditionalRequestConflict")),
    "500": Fault(Refusal(500, "InternalError")),
    "503": Fault(Refusal(503, "SlowDown")),
    "denied": Fault(Refusal(403, "AccessDenied")),
    "skewed": Fault(Refusal(403, "RequestTimeTooSkewed")),
    "expired": Fault(Refusal(400, "ExpiredToken")),
    "elsewhere": Fault(Refusal(301, "PermanentRedirect")),
    "no-bucket": Fault(Refusal(404, "NoSuchBucket")),
    "error-in-200": Fault(Refusal(200, "InternalError")),
    "page": Fault(Page(200)),
    "page-502": Fault(Page(502)),
    "bare": Fault(Bare()),
    "garbage": Fault(Raw(b"\x00\x01 what is this?\r\n\r\n")),
}


@dataclass(frozen=True, slots=True)
class Point:
    """Which request goes wrong, and how: the `number`-th (from 1), or all from there on."""

    number: int
    fault: str
    lasts: bool = False

    def __str__(self) -> str:
        return f"{self.number}{'+' if self.lasts else ''} {self.fault}"


def blobs(request: Request) -> bool:
    """Questions for the bytes of a blob."""
    return request.method == "GET" and "/blobs/" in request.path


class FaultyBucket(Journal, Listener):
    """In front of an S3 server: right until told otherwise."""

    def __init__(self, server: str) -> None:
        Journal.__init__(self)
        Listener.__init__(self)
        self._server = urlsplit(server).netloc
        self._point: Point | None = None
        self._rules: list[tuple[Callable[[Request], bool], Fault]] = []
        self._number = 0
        self.hits: Counter[str] = Counter()
        """What went wrong since it was told to, by kind of request."""
        self.is_deaf = False
        """Takes connections and reads nothing of what is sent on them."""

    @property
    def made(self) -> int:
        """How many requests came since it was last told what is to go wrong."""
        return self._number

    def fail(self, point: Point | None) -> None:
        """Count from now on, and let those requests go wrong."""
        self._point, self._number = point, 0
        self.hits.clear()

    def fail_all(self, fault: str | Fault, where: Callable[[Request], bool] = lambda _: True) -> None:
        """Let all requests of a kind go wrong, until it heals."""
        self._rules.append((where, FAULTS[fault] if isinstance(fault, str) else fault))

    def heal(self) -> None:
        """Let nothing more go wrong; what is under way does not get better."""
        self._point = None
        self._rules.clear()

    def changed(self) -> None:
        """Let everyone who waits look again."""
        Journal.changed(self)

    async def serve(self, peer: Peer) -> None:
        """Answer the requests of one connection, in order."""
        if self.is_deaf:
            await peer.gone.wait()
        while (request := await read_request(peer.reader, peer.number)) is not None:
            self._record(request)
            if not await self._exchange(request, peer) or request.closes:
                break
        await peer.finish()

    async def _exchange(self, request: Request, peer: Peer) -> bool:
        fault = self._fault(request)
        reply = Reply()
        if fault is None or fault.is_done:
            reply = await asyncio.to_thread(self._forwarded, request)
        if fault is not None:
            self.hits[kind(request)] += 1
            reply = fault.behaviour(reply, Asked(request, lambda _: reply))
        return await Dispatch(reply, peer, request.method == "HEAD", lambda size: self._sent(request.path, size)).run()

    def _fault(self, request: Request) -> Fault | None:
        self._number += 1
        point = self._point
        if point is not None and (self._number == point.number or (point.lasts and self._number > point.number)):
            return FAULTS[point.fault]
        return next((fault for where, fault in self._rules if where(request)), None)

    def _forwarded(self, request: Request) -> Reply:
        """What the server says; blocking."""
        connection = http.client.HTTPConnection(self._server, timeout=10)
        try:
            connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers:
                if name.lower() not in {"connection", "expect"}:
                    connection.putheader(name, value)
            connection.endheaders(request.body)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        is_head = request.method == "HEAD"  # its length is that of another body
        dropped = _FRAMING - {"content-length"} if is_head else _FRAMING
        headers = tuple(pair for pair in answer.getheaders() if pair[0].lower() not in dropped)
        return Reply(answer.status, headers, body)


def kind(request: Request) -> str:
    """What S3 calls what is asked for, more or less."""
    names = {name for name, _ in request.query}
    if request.method == "GET" and "uploads" in names:
        return "ListMultipartUploads"
    if "uploads" in names:
        return "CreateMultipartUpload"
    if "uploadId" in names:
        return {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}[
            request.method
        ]
    return f"{request.method.capitalize()}Object"
