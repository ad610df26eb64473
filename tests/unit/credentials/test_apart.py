"""A library that blocks holds up nothing."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from proxy.credentials.apart import Apart
from proxy.credentials.base import CredentialError


class Library:
    """A call that blocks until the test lets it go on."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.free = threading.Event()
        self.threads: list[threading.Thread] = []

    def __call__(self) -> str:
        self.threads.append(threading.current_thread())
        self.called.set()
        assert self.free.wait(20)
        return "answer"


@pytest.fixture
def library() -> Iterator[Library]:
    library = Library()
    yield library
    library.free.set()
    for thread in library.threads:
        thread.join(20)


async def test_an_answer_is_handed_over(library: Library) -> None:
    library.free.set()
    assert await Apart("AWS").ask(library) == "answer"


async def test_what_is_raised_is_handed_over() -> None:
    def fail() -> None:
        raise CredentialError("no")

    with pytest.raises(CredentialError, match=r"^no$"):
        await Apart("AWS").ask(fail)


async def test_a_mistake_of_a_library_is_named_without_its_text() -> None:
    def fail() -> None:
        raise TypeError("hunter2")

    with pytest.raises(CredentialError, match=r"^AWS answered in a way not foreseen \(TypeError\)$"):
        await Apart("AWS").ask(fail)


async def test_who_does_not_answer_is_named_and_not_asked_again_meanwhile(library: Library) -> None:
    apart = Apart("AWS", limit=0.01)
    with pytest.raises(CredentialError, match=r"^AWS did not answer within 0\.01 s$"):
        await apart.ask(library)
    with pytest.raises(CredentialError, match=r"^AWS has not answered an earlier question yet$"):
        await apart.ask(library)
    assert len(library.threads) == 1
    library.free.set()
    await asyncio.to_thread(library.threads[0].join, 20)
    assert await Apart("AWS").ask(library) == "answer"


async def test_who_hangs_keeps_neither_the_pool_nor_the_process(library: Library) -> None:
    with pytest.raises(CredentialError):
        await Apart("AWS", limit=0.01).ask(library)
    assert library.threads[0].daemon
    assert not library.threads[0].name.startswith("asyncio")


async def test_who_is_cancelled_leaves_without_waiting(library: Library) -> None:
    task = asyncio.create_task(Apart("AWS").ask(library))
    async with asyncio.timeout(5):
        await asyncio.to_thread(library.called.wait)
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled()


def test_an_answer_that_comes_after_the_end_of_the_loop_is_nobodys(library: Library) -> None:
    async def leave() -> None:
        with pytest.raises(CredentialError):
            await Apart("AWS", limit=0.01).ask(library)

    asyncio.run(leave())
    library.free.set()
    library.threads[0].join(20)  # an exception in it would be a warning, which is an error here


async def test_a_library_that_would_end_the_process_is_a_failure_like_any_other() -> None:
    def ends() -> None:
        raise SystemExit(3)

    with pytest.raises(CredentialError, match="AWS answered in a way not foreseen"):
        await Apart("AWS").ask(ends)
