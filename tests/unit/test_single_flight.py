"""Equal work is done once, and it belongs to nobody who waits for it."""

import asyncio
import gc

import pytest

from proxy.single_flight import SingleFlight


class Work:
    """Work that ends when it is told to, and counts how often it was begun."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun = 0
        self.cancelled = 0
        self.done = asyncio.Event()
        self.started = asyncio.Event()
        self._error = error

    async def __call__(self) -> int:
        self.begun += 1
        self.started.set()
        try:
            await self.done.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self._error is not None:
            raise self._error
        return self.begun


async def join(flights: SingleFlight[str, int], key: str, work: Work, count: int) -> list[asyncio.Task[int]]:
    """So many callers of one key, all of them waiting."""
    tasks = [asyncio.create_task(flights.run(key, work)) for _ in range(count)]
    await work.started.wait()
    await asyncio.sleep(0)
    return tasks


async def test_all_who_ask_meanwhile_get_the_one_result() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    tasks = await join(flights, "a", work, 32)
    assert len(flights) == 1
    work.done.set()
    assert await asyncio.gather(*tasks) == [1] * 32
    assert len(flights) == 0


async def test_who_asks_afterwards_has_it_done_anew() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    work.done.set()
    assert await flights.run("a", work) == 1
    assert await flights.run("a", work) == 2


async def test_other_keys_are_other_work() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    first, second = Work(), Work()
    tasks = [*await join(flights, "a", first, 2), *await join(flights, "b", second, 2)]
    assert len(flights) == 2
    second.done.set()
    assert await tasks[2] == 1
    assert not tasks[0].done()
    first.done.set()
    await asyncio.gather(*tasks)


async def test_all_who_wait_get_the_error_and_the_next_one_a_new_try() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work(ValueError("no"))
    tasks = await join(flights, "a", work, 3)
    work.done.set()
    assert [type(error) for error in await asyncio.gather(*tasks, return_exceptions=True)] == [ValueError] * 3
    with pytest.raises(ValueError, match="no"):
        await flights.run("a", work)
    assert work.begun == 2


async def test_a_caller_that_leaves_leaves_the_work_running() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    first, second = await join(flights, "a", work, 2)
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    assert work.cancelled == 0
    work.done.set()
    assert await second == 1


async def test_the_work_goes_on_though_everybody_has_left() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    tasks = await join(flights, "a", work, 3)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    late = asyncio.create_task(flights.run("a", work))
    await asyncio.sleep(0)
    work.done.set()
    assert await late == 1


async def test_an_error_that_nobody_waits_for_is_no_complaint_of_the_loops() -> None:
    complaints: list[object] = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        flights: SingleFlight[str, int] = SingleFlight()
        work = Work(ValueError("no"))
        (task,) = await join(flights, "a", work, 1)
        task.cancel()
        await asyncio.wait([task])
        work.done.set()
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(flights) == 0
        del task, flights
        gc.collect()
    finally:
        loop.set_exception_handler(before)
    assert complaints == []


async def test_closing_ends_the_work_and_waits_for_its_end() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    tasks = await join(flights, "a", work, 2)
    await flights.aclose()
    assert (work.cancelled, len(flights)) == (1, 0)
    assert all(
        isinstance(error, asyncio.CancelledError) for error in await asyncio.gather(*tasks, return_exceptions=True)
    )
