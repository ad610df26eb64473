"""Files on their way to sockets: who waits for whom, and what is left behind."""

import asyncio
import contextlib
import errno
import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxy import files
from proxy.files import Extent, Handle, Outlet, Senders, cached, sending
from proxy.files.sending import _watch

from .stretches import BODY

PATIENCE = 30.0


class Client:
    """Both ends of a connection."""

    def __init__(self, stack: contextlib.ExitStack, listener: socket.socket) -> None:
        self.far = stack.enter_context(socket.create_connection(listener.getsockname()))
        self.near = stack.enter_context(listener.accept()[0])
        self.near.setblocking(False)
        self.outlet = stack.enter_context(contextlib.closing(Outlet(self.near.fileno())))

    @property
    def is_held_back(self) -> bool:
        return bool(self.near.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK))

    async def take(self, count: int) -> bytes:
        def taken() -> bytes:
            return self.far.recv(count, socket.MSG_WAITALL)

        return await asyncio.to_thread(taken)


class Clients:
    """As many as are wanted."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def one(self) -> Client:
        return Client(self._stack, self._listener)


@pytest.fixture
def clients() -> Iterator[Clients]:
    with contextlib.ExitStack() as stack:
        yield Clients(stack)


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is in memory, whether or not this kernel can tell."""
    monkeypatch.setattr(sending, "is_in_memory", lambda *_: True)


async def blocked(client: Client) -> None:
    """Until as much has been sent as the client takes without reading."""
    before = -1
    while client.outlet.sent != before or not before:
        before = client.outlet.sent
        await asyncio.sleep(0.02)


async def test_clients_that_take_nothing_hold_up_nobody_and_get_all_once_they_read(
    clients: Clients, senders: Senders, handle: Handle
) -> None:
    slow, quick = [clients.one() for _ in range(12)], clients.one()
    async with asyncio.TaskGroup() as group:
        for client in slow:
            group.create_task(senders.send(client.outlet, Extent(handle, 0, len(BODY)), PATIENCE))
        for client in slow:
            await blocked(client)
        group.create_task(senders.send(quick.outlet, Extent(handle, 0, len(BODY)), PATIENCE))
        assert await quick.take(len(BODY)) == BODY
        assert all(client.outlet.sent < len(BODY) for client in slow)
        for client in slow:
            assert await client.take(len(BODY)) == BODY
    assert {client.outlet.sent for client in [*slow, quick]} == {len(BODY)}


async def test_what_comes_last_is_not_held_back(clients: Clients, senders: Senders, handle: Handle) -> None:
    client = clients.one()
    await senders.send(client.outlet, Extent(handle, 5, 10), PATIENCE)
    assert not client.is_held_back
    assert await client.take(10) == BODY[5:15]


async def test_a_client_that_takes_nothing_for_too_long_is_given_up(
    clients: Clients, senders: Senders, handle: Handle
) -> None:
    client = clients.one()
    with pytest.raises(TimeoutError):
        await senders.send(client.outlet, Extent(handle, 0, len(BODY)), 0.05)
    assert 0 < client.outlet.sent < len(BODY)
    assert not client.is_held_back


class Trickle:
    """An outlet by which nothing new is sent, while the client takes of what was, a little between any two looks."""

    sent = 0

    def __init__(self, over: asyncio.Future[None]) -> None:
        self._over = over
        self._looks = 0

    @property
    def taken(self) -> int:
        self._looks += 1
        if self._looks == 20:
            self._over.set_result(None)
        return self._looks


async def test_a_client_that_takes_of_what_was_sent_before_is_waited_for() -> None:
    over = asyncio.get_running_loop().create_future()
    transfer: Any = SimpleNamespace(over=over, is_waiting=True)
    outlet: Any = Trickle(over)
    await _watch(transfer, outlet, 0.001)
    assert over.done()


async def test_a_transfer_that_nobody_waits_for_any_more_leaves_file_and_connection_alone(
    clients: Clients, senders: Senders, handle: Handle
) -> None:
    client, other = clients.one(), clients.one()
    sending = asyncio.create_task(senders.send(client.outlet, Extent(handle, 0, len(BODY)), PATIENCE))
    await blocked(client)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    sent = client.outlet.sent
    assert await client.take(sent) == BODY[:sent]
    await senders.send(other.outlet, Extent(handle, 0, 10), PATIENCE)  # looked after what was told before
    assert client.outlet.sent == sent


async def test_a_client_that_left_is_told_from_a_disk_that_fails(
    clients: Clients, senders: Senders, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, there = clients.one(), clients.one()
    gone.far.close()
    with pytest.raises(ConnectionError):
        await senders.send(gone.outlet, Extent(handle, 0, len(BODY)), PATIENCE)
    for number, kind in ((errno.ETIMEDOUT, ConnectionError), (errno.EIO, OSError)):

        def fails(*_: object, number: int = number) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "sendfile", fails)
        with pytest.raises(kind) as raised:
            await senders.send(there.outlet, Extent(handle, 0, 10), PATIENCE)
        assert isinstance(raised.value, ConnectionError) == (number != errno.EIO)


async def test_a_file_that_has_become_shorter_is_damage(clients: Clients, senders: Senders, handle: Handle) -> None:
    client = clients.one()
    with pytest.raises(OSError, match="shorter") as raised:
        await senders.send(client.outlet, Extent(handle, len(BODY), 1), PATIENCE)
    assert files.is_damage(raised.value)


async def test_what_has_to_be_read_from_the_disk_first_holds_up_nobody(
    clients: Clients, senders: Senders, handle: Handle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cold").write_bytes(BODY)
    reading, gate = threading.Event(), threading.Event()
    preadv, pread = os.preadv, os.pread
    with contextlib.closing(Handle(os.open(tmp_path / "cold", os.O_RDONLY), len(BODY))) as cold:

        def looked(fd: int, *rest: Any) -> int:
            if fd == cold.fd:
                raise BlockingIOError
            return preadv(fd, *rest)

        def read(fd: int, *rest: Any) -> bytes:
            if fd == cold.fd:
                reading.set()
                gate.wait(10)
            return pread(fd, *rest)

        monkeypatch.setattr(os, "preadv", looked)
        monkeypatch.setattr(os, "pread", read)
        one, other = clients.one(), clients.one()
        sending = asyncio.create_task(senders.send(one.outlet, Extent(cold, 0, 1000), PATIENCE))
        await asyncio.to_thread(reading.wait, 10)
        await senders.send(other.outlet, Extent(handle, 0, 1000), PATIENCE)
        assert one.outlet.sent == 0
        gate.set()
        await sending
        assert await one.take(1000) == BODY[:1000]


async def test_a_stretch_that_is_in_memory_goes_out_at_once_as_far_as_its_client_takes_it(
    clients: Clients, handle: Handle, in_memory: None
) -> None:
    client = clients.one()
    sent = files.send_now(client.near.fileno(), Extent(handle, 5, len(BODY) - 5))
    assert 0 < sent < len(BODY) - 5
    while more := files.send_now(client.near.fileno(), Extent(handle, 5, len(BODY) - 5).behind(sent)):
        sent += more
    assert await client.take(sent) == BODY[5 : 5 + sent]


async def test_of_a_stretch_that_is_not_in_memory_nothing_goes_out_at_once(
    clients: Clients, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "is_in_memory", lambda *_: False)
    client = clients.one()
    assert files.send_now(client.near.fileno(), Extent(handle, 0, 1000)) == 0


@pytest.mark.parametrize(
    ("number", "raised"), [(errno.EIO, OSError), (errno.ETIMEDOUT, ConnectionError), (errno.EPIPE, ConnectionError)]
)
async def test_what_cannot_go_out_at_once_says_whether_it_is_the_client_or_the_file(
    clients: Clients,
    handle: Handle,
    in_memory: None,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    raised: type[OSError],
) -> None:
    def refusing(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    client = clients.one()
    monkeypatch.setattr(os, "sendfile", refusing)
    with pytest.raises(raised) as caught:
        files.send_now(client.near.fileno(), Extent(handle, 0, 1000))
    assert isinstance(caught.value, ConnectionError) == issubclass(raised, ConnectionError)


async def test_its_threads_and_descriptors_end_with_it() -> None:
    def threads() -> int:
        return sum(thread.name.startswith("send") for thread in threading.enumerate())

    before, running = await files.count_descriptors(), threads()
    async with contextlib.aclosing(Senders(3)):
        assert threads() == running + 3
    assert await files.count_descriptors() == before
    assert threads() == running


async def test_bytes_that_are_in_memory_are_at_hand_and_others_are_not(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not cached.tells(handle.fd):
        pytest.skip("this file system cannot tell what is in memory")
    there = handle.at_hand(3, 10)
    assert there is not None
    assert bytes(there) == BODY[3:13]
    assert handle.at_hand(len(BODY) - 5, 10) is None

    def waits(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", waits)
    assert handle.at_hand(3, 10) is None


@pytest.mark.parametrize("is_named", [True, False])
async def test_only_a_file_without_a_name_takes_a_thread_to_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_named: bool
) -> None:
    (tmp_path / "file").write_bytes(b"body")
    handle = Handle(os.open(tmp_path / "file", os.O_RDONLY), 4)
    fd, closed, close = handle.fd, asyncio.Event(), os.close
    where, loop = list[str](), asyncio.get_running_loop()
    if not is_named:
        (tmp_path / "file").unlink()

    def noted(one: int) -> None:
        if one == fd:
            where.append(threading.current_thread().name)
            loop.call_soon_threadsafe(closed.set)
        close(one)

    monkeypatch.setattr(os, "close", noted)
    handle.close()
    await closed.wait()
    assert (where == [threading.current_thread().name]) == is_named


async def test_a_client_that_the_kernel_will_not_watch_is_given_up_and_the_others_are_sent_to(
    clients: Clients, senders: Senders, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, other = clients.one(), clients.one()

    class Refusing:
        def __init__(self, epoll: select.epoll) -> None:
            self.poll, self.unregister, self.close = epoll.poll, epoll.unregister, epoll.close

        def register(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (sender,) = senders._senders
    monkeypatch.setattr(sender, "_epoll", Refusing(sender._epoll))
    await senders.send(other.outlet, Extent(handle, 0, 10), PATIENCE)  # its thread has left the other one
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(OSError, match="No space left"):
            await senders.send(client.outlet, Extent(handle, 0, len(BODY)), PATIENCE)
        await senders.send(other.outlet, Extent(handle, 10, 10), PATIENCE)
    assert await other.take(20) == BODY[:20]


async def test_of_a_file_that_is_not_in_memory_only_what_was_read_is_sent(
    clients: Clients, senders: Senders, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, looks, read, beyond = clients.one(), 0, 0, list[int]()
    pread, sendfile = os.pread, os.sendfile

    def once_cold(_fd: int, buffers: list[bytearray], _offset: int, _flags: int) -> int:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise BlockingIOError
        return len(buffers[0])  # what comes next has been read ahead, and what is behind it has not

    def reading(fd: int, count: int, offset: int) -> bytes:
        nonlocal read
        read = max(read, offset + count)
        return pread(fd, count, offset)

    def sending(out: int, fd: int, offset: int, count: int) -> int:
        beyond.append(max(0, offset + count - read))
        return sendfile(out, fd, offset, count)

    for name, call in (("preadv", once_cold), ("pread", reading), ("sendfile", sending)):
        monkeypatch.setattr(os, name, call)
    async with asyncio.TaskGroup() as group:
        group.create_task(senders.send(client.outlet, Extent(handle, 0, len(BODY)), PATIENCE))
        assert await client.take(len(BODY)) == BODY
    assert set(beyond) == {0}
