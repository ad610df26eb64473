"""Each way to misbehave: a frozen value that turns the right answer into a wrong one."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from .gates import Gate, Steps
from .reply import PIECE, Delivery, Drip, Ending, Framing, Hold, Reply, Trailing, oci_error
from .wire import Header, Request

_CODES = {401: "UNAUTHORIZED", 403: "DENIED", 404: "MANIFEST_UNKNOWN", 405: "UNSUPPORTED", 429: "TOOMANYREQUESTS"}


@dataclass(frozen=True, slots=True)
class Asked:
    """The request that is answered, and how the server would answer another one."""

    request: Request
    answer: Callable[[Request], Reply]


class Behaviour(Protocol):
    """Turns one answer into another."""

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply: ...


def _delivered(reply: Reply, change: Callable[[Delivery], Delivery]) -> Reply:
    return replace(reply, delivery=change(reply.delivery))


@dataclass(frozen=True, slots=True)
class Status:
    """Answers with this status, these headers and this body (an OCI error when none is given)."""

    code: int
    headers: tuple[Header, ...] = ()
    body: bytes | None = None

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        if self.body is None and self.code >= 400:
            fresh = oci_error(self.code, _CODES.get(self.code, "UNAVAILABLE"))
        else:
            fresh = Reply(self.code, body=self.body or b"")
        fresh = replace(fresh.dropping(*(name for name, _ in self.headers)), delivery=reply.delivery)
        return fresh.adding(*self.headers)


@dataclass(frozen=True, slots=True)
class Body:
    """Sends another body, correctly framed, under the headers of the true one."""

    data: bytes

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        return replace(reply, body=self.data)


@dataclass(frozen=True, slots=True)
class Resized:
    """Makes the body so many bytes longer or (negative) shorter, with a Content-Length that agrees."""

    by: int

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        return replace(reply, body=_resize(reply.body, self.by))


@dataclass(frozen=True, slots=True)
class Misdeclared:
    """Sends so many bytes more or (negative) less than Content-Length says; after less it closes with FIN."""

    by: int

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        wrong = replace(reply, body=_resize(reply.body, self.by), declared=len(reply.body))
        return wrong if self.by > 0 else _delivered(wrong, lambda plan: replace(plan, ending=Ending.FIN))


@dataclass(frozen=True, slots=True)
class WrongBytes:
    """Flips every bit of one byte of the body, the middle one unless told."""

    at: int | None = None

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        body = bytearray(reply.body)
        if body:
            body[len(body) // 2 if self.at is None else self.at] ^= 0xFF
        return replace(reply, body=bytes(body))


@dataclass(frozen=True, slots=True)
class Cut:
    """Sends so many bytes of the body (-1: not even the head), then ends the connection in this way."""

    after: int
    ending: Ending

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        return _delivered(reply, lambda plan: replace(plan, cut=self.after, ending=self.ending))


@dataclass(frozen=True, slots=True)
class Held:
    """Stops after so many bytes of the body (-1: before the head) until the gate is opened."""

    after: int
    gate: Gate

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        return _delivered(reply, lambda plan: replace(plan, holds=(*plan.holds, Hold(self.after, self.gate))))


@dataclass(frozen=True, slots=True)
class Dripped:
    """Sends the body so many bytes per step."""

    size: int
    steps: Steps

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        return _delivered(reply, lambda plan: replace(plan, body=Drip(self.size, self.steps)))


@dataclass(frozen=True, slots=True)
class SlowHead:
    """Sends the status line and the headers so many bytes per step."""

    size: int
    steps: Steps

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        return _delivered(reply, lambda plan: replace(plan, head=Drip(self.size, self.steps)))


@dataclass(frozen=True, slots=True)
class Framed:
    """Frames the body otherwise: chunked, or ended by the close of the connection."""

    framing: Framing
    chunk: int = PIECE

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        return replace(reply, framing=self.framing, chunk=self.chunk)


@dataclass(frozen=True, slots=True)
class IgnoresRange:
    """Answers a ranged request as if it had no Range: 200 and the whole body."""

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        return replace(asked.answer(asked.request.without("Range")), delivery=reply.delivery)


@dataclass(frozen=True, slots=True)
class WrongContentRange:
    """Gives a 206 this Content-Range, or one that starts a byte too late."""

    value: str | None = None

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        true = reply.header("Content-Range")
        return reply if true is None else reply.setting("Content-Range", self.value or _shifted(true))


@dataclass(frozen=True, slots=True)
class OtherBodyOnRange:
    """Answers a ranged request with as many, but all other, bytes; anything else truly."""

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        return replace(reply, body=bytes(byte ^ 0xFF for byte in reply.body)) if reply.status == 206 else reply


@dataclass(frozen=True, slots=True)
class Redirected:
    """Sends the client elsewhere; the Location goes out byte for byte."""

    location: str | Callable[[Request], str]
    status: int = 307

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        location = self.location if isinstance(self.location, str) else self.location(asked.request)
        return Reply(self.status, (("Location", location),), delivery=reply.delivery)


@dataclass(frozen=True, slots=True)
class HeaderAdded:
    """Adds header lines, written as they are: control characters and repeats included."""

    pairs: tuple[Header, ...]

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        return reply.adding(*self.pairs)


@dataclass(frozen=True, slots=True)
class HeaderSet:
    """Gives a header this one value instead of its own."""

    name: str
    value: str

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        return reply.setting(self.name, self.value)


@dataclass(frozen=True, slots=True)
class HeaderDropped:
    """Leaves headers out."""

    names: tuple[str, ...]

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        return reply.dropping(*self.names)


@dataclass(frozen=True, slots=True)
class Gzipped:
    """Sends the body gzipped with Content-Encoding: gzip, asked for or not."""

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        return replace(reply, body=gzip.compress(reply.body, mtime=0)).setting("Content-Encoding", "gzip")


@dataclass(frozen=True, slots=True)
class Trailed:
    """Sends bytes nobody asked for behind the answer, at once or when the gate is opened."""

    data: bytes
    gate: Gate | None = None

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        extra = Trailing(self.data, self.gate)
        return _delivered(reply, lambda plan: replace(plan, trailing=(*plan.trailing, extra)))


@dataclass(frozen=True, slots=True)
class Raw:
    """Sends exactly these bytes as the whole answer."""

    data: bytes

    def __call__(self, reply: Reply, asked: Asked, /) -> Reply:
        return replace(reply, raw=self.data)


def _resize(body: bytes, by: int) -> bytes:
    return body + b"\x00" * by if by >= 0 else body[:by]


def _shifted(content_range: str) -> str:
    unit, _, span = content_range.partition(" ")
    first, rest = span.split("-", 1)
    return f"{unit} {int(first) + 1}-{rest}"
