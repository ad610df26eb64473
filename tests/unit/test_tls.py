"""TLS by our own hands: what a client sees of a session, also while a thread has it."""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy import tls
from proxy.files import Extent, Handle, Outlet, Senders
from proxy.sealing import SLICE
from proxy.tls import Secured, Session

from .stretches import BODY

PATIENCE = 25.0  # seconds, less than a test has
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


class Spoken(asyncio.Protocol):
    """Notes what comes."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.data = b""
        self.events: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.events.append("data")

    def pause_writing(self) -> None:
        self.events.append("paused")

    def resume_writing(self) -> None:
        self.events.append("resumed")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  what others do, in threads and processes
            await asyncio.sleep(0.005)


class Place:
    """A server of sessions, and its clients: blocking sockets, used in threads."""

    def __init__(self, address: tuple[str, int], spoken: list[Spoken], trust: ssl.SSLContext) -> None:
        self.address = address
        self.spoken = spoken
        self.trust = trust
        self.stack = contextlib.ExitStack()

    def plain(self) -> socket.socket:
        sock = self.stack.enter_context(socket.create_connection(self.address))
        sock.settimeout(PATIENCE)
        return sock

    def secured(self, **options: Any) -> ssl.SSLSocket:
        """Blocking."""
        sock = self.trust.wrap_socket(self.plain(), server_hostname="127.0.0.1", suppress_ragged_eofs=False, **options)
        return self.stack.enter_context(sock)

    async def met(self) -> tuple[ssl.SSLSocket, Spoken]:
        sock = await asyncio.to_thread(self.secured)
        await until(lambda: self.spoken[-1].transport)
        return sock, self.spoken[-1]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(params=VERSIONS, ids=["1.2", "1.3"])
async def place(authority: trustme.CA, request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    context, trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(trust)
    context.maximum_version = context.minimum_version = request.param
    spoken = list[Spoken]()

    def speak() -> Session:
        spoken.append(Spoken())
        return Session(spoken[-1], context)

    server = await asyncio.get_running_loop().create_server(speak, "127.0.0.1", 0)
    place = Place(server.sockets[0].getsockname(), spoken, trust)
    try:
        with place.stack:
            yield place
    finally:
        server.close()
        for one in spoken:
            if one.transport is not None:
                one.transport.abort()
        await until(lambda: all(one.transport is None or "lost" in one.events for one in spoken))


class Sending:
    """A stretch of a file on its way to a client."""

    def __init__(self, spoken: Spoken, senders: Senders, extent: Extent, patience: float = PATIENCE) -> None:
        assert isinstance(spoken.transport, Secured)
        self._transport = spoken.transport
        self._sender = senders._senders[0]
        self.outlet = spoken.transport.outlet()
        self.is_lent = asyncio.Event()
        self.task = asyncio.create_task(self._run(senders, extent, patience))

    async def _run(self, senders: Senders, extent: Extent, patience: float) -> None:
        await asyncio.sleep(0)  # uvloop writes at the end of a round
        await until(lambda: not self._transport.get_write_buffer_size())
        with contextlib.closing(self.outlet), self.outlet.lent():
            self.is_lent.set()
            await senders.send(self.outlet, extent, patience)

    async def blocked(self) -> None:
        """Until the thread waits for the client, and the system has nothing on its way to it any more either."""
        before = -1
        while not self._is_waiting() or self.outlet.taken != before:
            before = self.outlet.taken
            await asyncio.sleep(0.05)

    def _is_waiting(self) -> bool:
        transfer = self._sender._registered.get(self.outlet.fd)
        return transfer is not None and transfer.is_waiting


def read(sock: ssl.SSLSocket, count: int) -> bytes:
    """So many bytes; blocking."""
    data = bytearray()
    while len(data) < count and (more := sock.recv(count - len(data))):
        data += more
    return bytes(data)


def rest(sock: ssl.SSLSocket) -> tuple[bytes, str]:
    """All that comes, and how it ends: "clean" if the server has said that it is over."""
    data = bytearray()
    try:
        while more := sock.recv(65536):
            data += more
    except (ssl.SSLEOFError, ConnectionResetError):
        return bytes(data), "torn"
    return bytes(data), "clean"


async def test_what_either_side_says_is_what_the_other_hears(place: Place) -> None:
    sock, spoken = await place.met()
    said = os.urandom(100_000)
    await asyncio.to_thread(sock.sendall, said)
    await until(lambda: len(spoken.data) == len(said))
    spoken.transport.write(said[:10])
    spoken.transport.writelines([said[10:20], said[20:]])
    assert await asyncio.to_thread(read, sock, len(said)) == spoken.data == said


async def test_each_side_may_end_it_and_the_other_is_told(place: Place) -> None:
    sock, spoken = await place.met()
    spoken.transport.write(BODY)
    spoken.transport.close()
    spoken.transport.write(b"too late")
    assert await asyncio.to_thread(rest, sock) == (BODY, "clean")
    sock, spoken = await place.met()
    await asyncio.to_thread(sock.unwrap)  # raises unless it is answered
    await until(lambda: "lost" in spoken.events)


async def test_a_client_that_is_gone_without_a_word_is_noticed(place: Place) -> None:
    sock, spoken = await place.met()
    sock.close()
    await until(lambda: "lost" in spoken.events)
    spoken.transport.write(b"nobody")
    spoken.transport.pause_reading()
    spoken.transport.resume_reading()
    spoken.transport.close()
    assert spoken.transport.is_closing()


async def test_a_stretch_of_a_file_arrives_between_what_is_written(
    place: Place, senders: Senders, handle: Handle
) -> None:
    sock, spoken = await place.met()
    spoken.transport.write(b"before")
    sending = Sending(spoken, senders, Extent(handle, 5, len(BODY) - 10))
    await sending.is_lent.wait()
    spoken.transport.write(b"after")
    received = await asyncio.to_thread(read, sock, len(BODY) - 10 + 11)
    await sending.task
    assert received == b"before" + BODY[5:-5] + b"after"
    assert sending.outlet.sent == len(BODY) - 10


async def test_what_a_client_says_meanwhile_is_heard_afterwards_and_in_order(
    place: Place, senders: Senders, handle: Handle
) -> None:
    sock, spoken = await place.met()
    sending = Sending(spoken, senders, Extent(handle, 0, len(BODY)))
    await sending.blocked()
    said = [os.urandom(1000) for _ in range(20)]
    for one in said[:10]:
        await asyncio.to_thread(sock.sendall, one)
    await until(lambda: len(spoken.transport._session._held))
    assert spoken.data == b""
    assert await asyncio.to_thread(read, sock, len(BODY)) == BODY
    for one in said[10:]:
        await asyncio.to_thread(sock.sendall, one)
    await sending.task
    await until(lambda: len(spoken.data) == 20_000)
    assert spoken.data == b"".join(said)


async def test_a_client_that_talks_without_listening_is_read_from_no_more_until_it_listens(
    place: Place, senders: Senders, handle: Handle
) -> None:
    reader, writer = await asyncio.open_connection(*place.address, ssl=place.trust)  # a socket is no two threads'
    await until(lambda: place.spoken[-1].transport)
    spoken = place.spoken[-1]
    sending = Sending(spoken, senders, Extent(handle, 0, len(BODY)))
    await sending.blocked()
    writer.write(BODY)
    held = spoken.transport._session._held
    await until(lambda: not spoken.transport._raw.is_reading())
    assert tls.HELD < len(held) < len(BODY) // 2
    assert await reader.readexactly(len(BODY)) == BODY
    await sending.task
    await until(lambda: len(spoken.data) == len(BODY))
    assert spoken.data == BODY
    writer.transport.abort()


async def test_what_is_broken_off_ends_with_whole_records_and_a_word(
    place: Place, senders: Senders, handle: Handle
) -> None:
    """A client that gets less than it was promised can tell that by the length, and trust what it got."""
    sock, spoken = await place.met()
    sending = Sending(spoken, senders, Extent(handle, 0, len(BODY)))
    await sending.blocked()
    spoken.transport.close()
    sending.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sending.task
    received, end = await asyncio.to_thread(rest, sock)
    assert (received, end) == (BODY[: sending.outlet.sent], "clean")
    assert 0 < len(received) < len(BODY)


async def test_what_is_closed_while_a_stretch_is_sent_ends_after_it(
    place: Place, senders: Senders, handle: Handle
) -> None:
    sock, spoken = await place.met()
    sending = Sending(spoken, senders, Extent(handle, 0, len(BODY)))
    await sending.is_lent.wait()
    spoken.transport.close()
    assert await asyncio.to_thread(rest, sock) == (BODY, "clean")
    await sending.task


async def test_a_client_that_goes_while_a_stretch_is_sent_ends_it(
    place: Place, senders: Senders, handle: Handle
) -> None:
    sock, spoken = await place.met()
    sending = Sending(spoken, senders, Extent(handle, 0, len(BODY)))
    await sending.blocked()
    sock.close()
    with pytest.raises(ConnectionError):
        await sending.task
    await until(lambda: "lost" in spoken.events)


async def test_a_file_that_is_shorter_than_it_was_is_no_whole_stretch(
    place: Place, senders: Senders, handle: Handle
) -> None:
    sock, spoken = await place.met()
    sending = Sending(spoken, senders, Extent(handle, len(BODY) - 10, 20))
    with pytest.raises(OSError, match="shorter"):
        await sending.task
    spoken.transport.close()
    assert await asyncio.to_thread(rest, sock) == (BODY[-10:], "clean")


async def test_what_was_encrypted_before_the_disk_failed_reaches_the_client(
    place: Place, senders: Senders, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that is left out would have the client reject all that follows, the word that it is over among it."""
    preadv = os.preadv

    def failing(source: int, buffers: list[memoryview], offset: int, *flags: int) -> int:
        if offset >= SLICE and not flags:
            raise OSError(errno.EIO, "Input/output error")
        return preadv(source, buffers, offset, *flags)

    monkeypatch.setattr(os, "preadv", failing)
    sock, spoken = await place.met()
    sending = Sending(spoken, senders, Extent(handle, 0, len(BODY)))
    with pytest.raises(OSError, match="Input/output"):
        await sending.task
    spoken.transport.close()
    assert await asyncio.to_thread(rest, sock) == (BODY[:SLICE], "clean")
    assert sending.outlet.sent == SLICE


async def test_of_a_piece_that_is_encrypted_each_byte_that_the_client_takes_counts(
    place: Place, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In less than it is waited for, a slow client takes less than is encrypted at once."""
    _, spoken = await place.met()
    room = memoryview(bytearray(100_000))
    takes = iter([1000, None, 500, None])

    def write(_outlet: Outlet, _pieces: object) -> int:
        if (count := next(takes)) is None:
            raise BlockingIOError
        return count

    monkeypatch.setattr(Outlet, "write", write)
    with contextlib.closing(spoken.transport.outlet()) as outlet:
        assert await asyncio.to_thread(outlet.push, handle.fd, 0, len(BODY), room) == len(room)
        assert (outlet.sent, outlet.taken) == (len(room), 1000)
        with pytest.raises(BlockingIOError):
            await asyncio.to_thread(outlet.push, handle.fd, len(room), len(BODY), room)
        assert (outlet.sent, outlet.taken) == (len(room), 1500)


async def test_a_client_that_takes_nothing_for_too_long_is_given_up(
    place: Place, senders: Senders, handle: Handle
) -> None:
    _, spoken = await place.met()
    sending = Sending(spoken, senders, Extent(handle, 0, len(BODY)), patience=0.2)
    with pytest.raises(TimeoutError):
        await sending.task


async def test_of_what_waits_for_a_client_no_more_than_a_piece_is_held(
    place: Place, senders: Senders, handle: Handle
) -> None:
    _, spoken = await place.met()
    sending = Sending(spoken, senders, Extent(handle, 0, len(BODY)))
    await sending.blocked()
    assert 0 < sum(map(len, sending.outlet._left)) < 400 * 1024
    assert spoken.transport.get_write_buffer_size() == 0
    sending.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sending.task


async def test_nothing_is_handed_on_while_it_is_not_wanted_and_nothing_is_lost(place: Place) -> None:
    sock, spoken = await place.met()
    spoken.transport.pause_reading()
    assert not spoken.transport.is_reading()
    await asyncio.to_thread(sock.sendall, b"one")
    await asyncio.sleep(0.05)  # nothing tells that nothing happens
    assert spoken.data == b""
    await asyncio.to_thread(sock.sendall, b"two")
    spoken.transport.resume_reading()
    await until(lambda: spoken.data == b"onetwo")


async def test_who_writes_more_than_is_taken_is_told_to_wait_and_to_go_on(place: Place) -> None:
    sock, spoken = await place.met()
    spoken.transport.set_write_buffer_limits(high=100_000)
    assert spoken.transport.get_write_buffer_limits()[1] == 100_000
    spoken.transport.write(BODY)
    await until(lambda: "paused" in spoken.events)
    assert spoken.transport.get_write_buffer_size() > 100_000
    assert await asyncio.to_thread(read, sock, len(BODY)) == BODY
    await until(lambda: spoken.events[-1] == "resumed")


async def test_a_client_that_talks_on_and_takes_nothing_of_what_it_is_answered_is_let_go(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock, spoken = await place.met()
    spoken.transport.write(BODY)
    await asyncio.to_thread(sock.sendall, b"talk")
    await until(lambda: spoken.data == b"talk")  # an answer may be as long as that
    monkeypatch.setattr(tls, "FULL", 1000)
    await asyncio.to_thread(sock.sendall, b"talk")
    await until(lambda: "lost" in spoken.events)
    assert spoken.data == b"talk"


async def test_a_client_that_says_no_hello_is_let_go(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE", 0.1)
    sock = place.plain()
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.to_thread(sock.recv, 1) == b""
    assert place.spoken[-1].events == []


async def test_a_client_that_does_not_take_the_end_is_let_go(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "FAREWELL", 0.1)
    sock, spoken = await place.met()
    spoken.transport.write(BODY)
    spoken.transport.close()
    await until(lambda: "lost" in spoken.events)
    received, end = await asyncio.to_thread(rest, sock)
    assert (end, received) == ("torn", BODY[: len(received)])


class Leaving:
    """A transport that has been closed, and what is left in it each time one looks; it is at an end when aborted."""

    def __init__(self, left: list[int]) -> None:
        self.left = left
        self.aborted = asyncio.Event()

    def get_write_buffer_size(self) -> int:
        return self.left.pop(0)

    def close(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted.set()


async def test_a_client_that_takes_the_end_slowly_is_waited_for_until_it_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tls, "FAREWELL", 0.001)
    raw: Any = Leaving([50, 40, 30, 29, 29, 28])
    session = Session(Spoken(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
    session.connection_made(raw)
    session.leave()
    async with asyncio.timeout(PATIENCE):
        await raw.aborted.wait()
    assert raw.left == [28]


async def test_plain_http_where_tls_is_spoken_is_ended_with_an_alert(place: Place) -> None:
    sock = place.plain()
    await asyncio.to_thread(sock.sendall, b"GET /v2/ HTTP/1.1\r\nHost: here\r\n\r\n")
    answer = await asyncio.to_thread(sock.recv, 100)
    assert answer[:1] in (b"\x15", b"")  # an alert (RFC 8446, 5.1), if OpenSSL has any for that
    assert place.spoken[-1].events == []
    await place.met()


async def test_bytes_that_do_not_decrypt_end_the_connection(place: Place) -> None:
    sock, spoken = await place.met()
    raw = socket.socket(fileno=os.dup(sock.fileno()))
    with raw:
        await asyncio.to_thread(raw.sendall, b"\x17\x03\x03\x00\x20" + bytes(32))
        await until(lambda: "lost" in spoken.events)
    assert spoken.data == b""


async def test_who_asks_is_told_of_tls_and_of_the_connection(place: Place) -> None:
    _, spoken = await place.met()
    tell = spoken.transport.get_extra_info
    assert isinstance(tell("sslcontext"), ssl.SSLContext)
    assert tell("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
    assert tell("peername")[0] == "127.0.0.1"
    assert tell("socket").fileno() > 0
    assert tell("nothing", 5) == 5
    assert spoken.transport.get_protocol() is spoken
    assert not spoken.transport.can_write_eof()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=300), st.integers(0, 600))
async def test_whatever_is_said_in_place_of_a_hello_nothing_is_heard(place: Place, data: bytes, cut: int) -> None:
    hello = _hello(place.trust)
    sock = place.plain()
    await asyncio.to_thread(sock.sendall, hello[:cut] + data)
    sock.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionResetError):
        while await asyncio.to_thread(sock.recv, 65536):
            pass
    assert place.spoken[-1].events == []


def _hello(trust: ssl.SSLContext) -> bytes:
    sealed = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        trust.wrap_bio(ssl.MemoryBIO(), sealed, server_hostname="127.0.0.1").do_handshake()
    return sealed.read()
