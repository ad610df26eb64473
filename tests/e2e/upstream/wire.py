"""What a client sent, kept as it came: no line joined, no byte decoded away."""

import asyncio
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, unquote

Header = tuple[str, str]
MAX_HEAD = 1 << 20


class BadRequestError(Exception):
    """The client did not send an HTTP/1 request."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came over the wire."""

    method: str
    target: str
    headers: tuple[Header, ...] = ()
    version: str = "HTTP/1.1"
    body: bytes = field(default=b"", repr=False)
    at: float = 0.0
    connection: int = 0

    @property
    def path(self) -> str:
        """The path byte for byte: percent-escapes are kept."""
        return self.target.partition("?")[0]

    @property
    def decoded_path(self) -> str:
        """The path with percent-escapes resolved."""
        return unquote(self.path)

    @property
    def query(self) -> list[tuple[str, str]]:
        """The query as decoded pairs, in order, repeats kept."""
        return parse_qsl(self.target.partition("?")[2], keep_blank_values=True)

    @property
    def form(self) -> list[tuple[str, str]]:
        """A form body as decoded pairs."""
        return parse_qsl(self.body.decode("latin-1"), keep_blank_values=True)

    def lines(self, name: str) -> list[str]:
        """Every line of a header, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        """All lines of a header joined by a comma, or None."""
        lines = self.lines(name)
        return ", ".join(lines) if lines else None

    def without(self, name: str) -> "Request":
        """The same request without a header."""
        return replace(self, headers=tuple(pair for pair in self.headers if pair[0].lower() != name.lower()))

    @property
    def closes(self) -> bool:
        """Whether the client wants the connection closed after the answer."""
        wish = (self.header("Connection") or "").lower()
        return "close" in wish or (self.version == "HTTP/1.0" and "keep-alive" not in wish)


async def read_request(reader: asyncio.StreamReader, connection: int) -> Request | None:
    """The next request on a connection; None when the client has left."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        request = _parse(head, connection)
        return replace(request, body=await reader.readexactly(_length(request)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    except asyncio.LimitOverrunError as error:
        raise BadRequestError(str(error)) from error


def _parse(head: bytes, connection: int) -> Request:
    start, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    try:
        method, target, version = start.split(" ")
    except ValueError:
        raise BadRequestError(start) from None
    if not version.startswith("HTTP/1."):
        raise BadRequestError(start)
    pairs = (line.partition(":") for line in lines)
    headers = tuple((name, value.strip(" \t")) for name, _, value in pairs)
    return Request(method, target, headers, version, at=asyncio.get_running_loop().time(), connection=connection)


def _length(request: Request) -> int:
    if request.lines("Transfer-Encoding"):
        raise BadRequestError("this server takes no chunked request")
    length = request.header("Content-Length") or "0"
    if not length.isdecimal():
        raise BadRequestError(length)
    return int(length)
