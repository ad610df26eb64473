"""A client for blobs that costs as little as can be: bytes are discarded in the kernel, or hashed.

A process of its own (`drain` of load.py starts it): a Load as JSON comes on standard input; "ready" goes out once all
connections are made; it begins when another line comes, and a Drained as JSON goes out at the end.
"""

import hashlib
import json
import select
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from benchmarks.contents import MANIFEST

HEAD = 64 * 1024  # bytes that a response's head may take
BUFFER = 4 * 1024 * 1024  # bytes that are discarded at a time; the kernel does not write into it
RECORDS = 256 * 1024  # bytes of what has to be read
Span = tuple[int, int]  # from its first byte to behind its last


class WrongAnswerError(RuntimeError):
    """An answer is not what it should be."""


@dataclass(frozen=True)
class Load:
    """What is asked for, by how many connections.

    With `seconds` each asks for all of it again and again for so long, and what has arrived by then counts. Without,
    each asks once; or, with `spans`, for the next of them until none is left. `digests`: the sha256 of each span, or of
    all of it; bodies are hashed then.
    """

    host: str
    path: str
    size: int  # bytes
    connections: int = 1
    seconds: float | None = None
    spans: tuple[Span, ...] = ()
    digests: tuple[str, ...] = ()
    is_tls: bool = False


@dataclass(frozen=True)
class Drained:
    """What came of it. `seconds`: until the last; `firsts`, `totals`: of each right answer, since it was asked for."""

    seconds: float = 0.0
    received: int = 0  # bytes of bodies
    firsts: tuple[float, ...] = ()
    totals: tuple[float, ...] = ()
    wrong: tuple[str, ...] = ()  # what was wrong with each that was not
    cpu: float = 0.0  # seconds that this client used

    def check(self) -> None:
        """Raises WrongAnswerError if any answer was wrong."""
        if self.wrong:
            raise WrongAnswerError(f"{len(self.wrong)} answers were wrong; the first: {self.wrong[0]}")


@dataclass(frozen=True)
class Ask:
    """One request: a span, or all (None), and the digest that it has to have ("": any)."""

    span: Span | None
    digest: str


def asks(load: Load) -> Iterator[Ask]:
    """What is asked for, in this order, by whichever connection is free."""
    digests = load.digests or ("",)
    if load.seconds is not None:
        while True:
            yield Ask(None, "")
    elif load.spans:
        for number, span in enumerate(load.spans):
            yield Ask(span, digests[number % len(digests)])
    else:
        yield from [Ask(None, digests[0])] * load.connections


@dataclass
class Tally:
    """What has been counted so far."""

    received: int = 0
    firsts: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Scratch:
    """Room for what arrives, one for all connections: what is discarded is not written there at all."""

    def __init__(self) -> None:
        self.discarded = memoryview(bytearray(BUFFER))
        self.read = memoryview(bytearray(RECORDS))


class Connection:
    """One connection and the request that it is at."""

    def __init__(self, load: Load, tally: Tally, scratch: Scratch) -> None:
        self._scratch = scratch
        self._load = load
        self._tally = tally
        host, _, port = load.host.rpartition(":")
        sock = socket.create_connection((host, int(port)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = _trusting().wrap_socket(sock) if load.is_tls else sock
        self.sock.setblocking(False)
        self._head = b""
        self._left = 0

    def ask(self, ask: Ask) -> None:
        """Send a request; the answer is for `read`."""
        start, stop = ask.span or (0, self._load.size)
        span = "" if ask.span is None else f"Range: bytes={start}-{stop - 1}\r\n"
        self._status = b"200" if ask.span is None else b"206"
        self._digest, self._size, self._head, self._first = ask.digest, stop - start, b"", 0.0
        self._hasher = hashlib.sha256() if ask.digest else None
        self._began = time.perf_counter()
        # Some send a manifest only to whom has named its kind.
        headers = f"Host: {self._load.host}\r\nAccept: {MANIFEST}, */*\r\n{span}"
        self.sock.send(f"GET {self._load.path} HTTP/1.1\r\n{headers}\r\n".encode())

    def read(self) -> bool:
        """Take what has arrived. True at the end of an answer. Raises WrongAnswerError."""
        try:
            is_done = self._is_done()
            while self._load.is_tls and not is_done:  # what OpenSSL has read already wakes nobody
                is_done = self._is_done()
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError as error:
            raise WrongAnswerError(f"broken off: {error}") from error
        return is_done

    def _is_done(self) -> bool:
        if not self._first:
            return self._read_head()
        if self._hasher is None and not self._load.is_tls:
            return self._took(self.sock.recv_into(self._scratch.discarded, min(self._left, BUFFER), socket.MSG_TRUNC))
        count = self.sock.recv_into(self._scratch.read, min(self._left, RECORDS))
        return self._took(count, self._scratch.read[:count])

    def _read_head(self) -> bool:
        data = self.sock.recv(HEAD)
        if not data:
            raise WrongAnswerError("closed before an answer")
        self._head += data
        head, end, body = self._head.partition(b"\r\n\r\n")
        if not end or (not body and self._size):
            return False
        self._first = time.perf_counter() - self._began
        lines = head.lower().split(b"\r\n")
        if lines[0].split(b" ")[1] != self._status or b"content-length: %d" % self._size not in lines:
            raise WrongAnswerError(head.decode(errors="replace")[:300])
        self._left = self._size
        return self._took(len(body), body)

    def _took(self, count: int, data: "memoryview | bytes" = b"") -> bool:
        if not count and self._left:
            raise WrongAnswerError(f"{self._left} bytes were missing at the end")
        self._tally.received += count
        self._left -= count
        if self._hasher is not None:
            self._hasher.update(data)
        if self._left:
            return False
        if self._hasher is not None and self._hasher.hexdigest() != self._digest.removeprefix("sha256:"):
            raise WrongAnswerError("other bytes than its digest's")
        self._tally.firsts.append(self._first)
        self._tally.totals.append(time.perf_counter() - self._began)
        return True


def _trusting() -> ssl.SSLContext:
    """Whoever it is: the certificates are made by ourselves, for a day."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def run(load: Load, poll: select.epoll, connections: deque[Connection], tally: Tally) -> float:
    """Ask until all is there, or the time is over. Returns the seconds that it took."""
    todo = asks(load)
    began = time.perf_counter()
    until = None if load.seconds is None else began + load.seconds
    busy: dict[int, Connection] = {}

    def ask(connection: Connection) -> None:
        if (following := next(todo, None)) is not None:
            busy[connection.sock.fileno()] = connection
            connection.ask(following)
        else:
            poll.unregister(connection.sock)  # it may be closed now, which is no business of ours

    for connection in connections:
        ask(connection)
    while busy and (until is None or time.perf_counter() < until):
        for fd, _ in poll.poll(None if until is None else max(until - time.perf_counter(), 0)):
            try:
                if busy[fd].read():
                    ask(busy.pop(fd))
            except WrongAnswerError as error:
                poll.unregister(busy.pop(fd).sock)
                tally.wrong.append(str(error))
    return time.perf_counter() - began


def main() -> None:
    """Connect, say so, wait for the word, run, and tell what came of it."""
    load = _loaded(json.loads(sys.stdin.readline()))
    tally, poll, scratch = Tally(), select.epoll(), Scratch()
    connections = deque(Connection(load, tally, scratch) for _ in range(load.connections))
    for connection in connections:
        poll.register(connection.sock, select.EPOLLIN)
    _say("ready")
    sys.stdin.readline()
    before = time.process_time()
    seconds = run(load, poll, connections, tally)
    used = time.process_time() - before
    outcome = Drained(
        seconds, tally.received, tuple(tally.firsts), tuple(tally.totals), wrong=tuple(tally.wrong), cpu=used
    )
    _say(json.dumps(asdict(outcome)))


def _loaded(what: dict[str, object]) -> Load:
    lists = {
        key: tuple(tuple(one) if isinstance(one, list) else one for one in value)
        for key, value in what.items()
        if isinstance(value, list)
    }
    return Load(**{**what, **lists})  # type: ignore[arg-type]  # what `asdict` made of one


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
