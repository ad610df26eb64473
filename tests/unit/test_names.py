"""Look-ups: few at once, each with an end, and what nobody waits for any more is in nobody's way."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from proxy import names
from proxy.names import LOOKUPS, Names


class Silence:
    """The system's resolver, which does not answer for names below silent.example until it is over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.over = threading.Event()
        self.asked: list[str] = []
        self.begun = threading.Event()
        self._changed = threading.Condition()
        self._known = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host: str, *args: Any, **kwargs: Any) -> Any:
        with self._changed:
            self.asked.append(host)
            self._changed.notify_all()
        if host.endswith("silent.example"):
            self.begun.set()
            self.over.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "silence")
        return self._known(host, *args, **kwargs)

    def wait(self, count: int) -> None:
        """Until it has been asked so often; blocking."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.asked) >= count, 20)


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[Silence]:
    """See Silence."""
    made = Silence(monkeypatch)
    yield made
    made.over.set()


async def test_a_name_is_what_the_system_says_addresses_in_digits(silence: Silence) -> None:
    for host, meant in (("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("127.1", "127.0.0.1")):
        found = await Names().resolve(host, 80, socket.AF_UNSPEC)
        assert {(one["host"], one["port"], one["hostname"]) for one in found} == {(meant, 80, host)}
    assert len(silence.asked) == 3


async def test_silence_has_an_end_and_leaves_no_queue(silence: Silence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "PATIENCE", 0.05)
    resolver = Names()
    lookups = [resolver.resolve(f"h{number}.silent.example") for number in range(5 * LOOKUPS)]
    answers = await asyncio.gather(*lookups, return_exceptions=True)
    assert all(isinstance(answer, socket.gaierror) for answer in answers)
    await asyncio.to_thread(silence.wait, LOOKUPS)
    assert len(silence.asked) == LOOKUPS  # the others gave up in the queue, and left it
    silence.over.set()
    monkeypatch.setattr(names, "PATIENCE", 10)
    assert await resolver.resolve("127.0.0.1")
    assert len(silence.asked) == LOOKUPS + 1


async def test_a_look_up_that_hangs_is_no_thread_that_the_process_waits_for(silence: Silence) -> None:
    asked = asyncio.create_task(Names().resolve("h.silent.example"))
    await asyncio.to_thread(silence.begun.wait, 20)
    (thread,) = [one for one in threading.enumerate() if one.name == "look up"]
    assert thread.daemon
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)


async def test_a_name_that_is_none_raises_what_the_connector_knows() -> None:
    for host in ("a..b", "a" * 64 + ".example"):
        with pytest.raises((OSError, ValueError)):
            await Names().resolve(host)
