"""An answer as a value: what it says, how it is framed, how it is delivered."""

import json
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from http import HTTPStatus

from .gates import Gate, Steps
from .wire import Header

BEFORE_HEAD = -1
PIECE = 1 << 16


class Framing(Enum):
    """How the end of the body is told."""

    LENGTH = auto()
    CHUNKED = auto()
    CLOSE = auto()


class Ending(Enum):
    """What becomes of the connection after the answer."""

    KEEP = auto()
    FIN = auto()
    RESET = auto()


@dataclass(frozen=True, slots=True)
class Hold:
    """A gate in front of one position of the body (or in front of the head)."""

    at: int
    gate: Gate


@dataclass(frozen=True, slots=True)
class Drip:
    """So many bytes at a time, each time waiting for a step."""

    size: int
    steps: Steps


@dataclass(frozen=True, slots=True)
class Trailing:
    """Bytes nobody asked for, behind the answer."""

    data: bytes
    gate: Gate | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """How an answer leaves: where it is held, how fast it goes, where it ends."""

    holds: tuple[Hold, ...] = ()
    head: Drip | None = None
    body: Drip | None = None
    ending: Ending = Ending.KEEP
    cut: int | None = None
    trailing: tuple[Trailing, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. Header names and values are latin-1 and written as they are, control characters and all."""

    status: int = 200
    headers: tuple[Header, ...] = ()
    body: bytes = field(default=b"", repr=False)
    framing: Framing = Framing.LENGTH
    declared: int | None = None
    chunk: int = PIECE
    raw: bytes | None = None
    delivery: Delivery = Delivery()

    def header(self, name: str) -> str | None:
        """The first line of a header, or None."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def adding(self, *pairs: Header) -> "Reply":
        """With more header lines."""
        return replace(self, headers=(*self.headers, *pairs))

    def dropping(self, *names: str) -> "Reply":
        """Without some headers."""
        unwanted = {name.lower() for name in names}
        return replace(self, headers=tuple(pair for pair in self.headers if pair[0].lower() not in unwanted))

    def setting(self, name: str, value: str) -> "Reply":
        """With a header of exactly one line."""
        return self.dropping(name).adding((name, value))

    def head(self) -> bytes:
        """The status line and the headers, as sent."""
        phrase = HTTPStatus(self.status).phrase if self.status in set(HTTPStatus) else "Unknown"
        lines = [f"HTTP/1.1 {self.status} {phrase}", *(f"{name}: {value}" for name, value in self._all_headers())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _all_headers(self) -> tuple[Header, ...]:
        declared = str(len(self.body) if self.declared is None else self.declared)
        framing = {
            Framing.CHUNKED: ("Transfer-Encoding", "chunked"),
            Framing.CLOSE: ("Connection", "close"),
            Framing.LENGTH: ("Content-Length", self.header("Content-Length") or declared),
        }[self.framing]
        return (*self.dropping("Content-Length").headers, framing)


def oci_error(status: int, code: str, message: str = "", *headers: Header) -> Reply:
    """An error as the distribution spec wants it."""
    body = json.dumps({"errors": [{"code": code, "message": message or code.lower(), "detail": None}]}).encode()
    return Reply(status, (("Content-Type", "application/json"), *headers), body)


def json_reply(document: object, *headers: Header, media_type: str = "application/json") -> Reply:
    """A JSON document."""
    return Reply(200, (("Content-Type", media_type), *headers), json.dumps(document).encode())
