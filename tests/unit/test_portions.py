"""What the event loop sends by itself is shared out among its turns, so that others have theirs in between."""

import asyncio
from collections import Counter

from proxy.files.portions import PORTION, Portions

PIECE = PORTION // 3 + 1


class Turns:
    """Counts the turns of the event loop that have passed."""

    def __init__(self) -> None:
        self.number = 0
        self._task = asyncio.create_task(self._count())

    async def _count(self) -> None:
        while True:
            self.number += 1
            await asyncio.sleep(0)

    def end(self) -> None:
        self._task.cancel()


async def test_who_is_alone_does_not_wait_however_much_it_is() -> None:
    portions, passed = Portions(), list[str]()
    asyncio.get_running_loop().call_soon(passed.append, "a turn")
    await portions.turn(10 * PORTION)
    assert not passed


async def test_a_turn_has_no_more_than_its_portion_and_all_come_in_their_order() -> None:
    portions, turns, sent, order = Portions(), Turns(), Counter[int](), list[int]()

    async def send(number: int) -> None:
        await portions.turn(PIECE)
        sent[turns.number] += PIECE
        order.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(30):
            group.create_task(send(number))
    turns.end()
    assert order == list(range(30))
    assert len(sent) == 10
    assert max(sent.values()) < PORTION + PIECE


async def test_what_is_more_than_a_portion_has_a_turn_for_itself() -> None:
    portions, turns, sent = Portions(), Turns(), list[int]()

    async def send() -> None:
        await portions.turn(2 * PORTION)
        sent.append(turns.number)

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(send())
    turns.end()
    assert len(set(sent)) == 5


async def test_who_has_given_up_holds_up_nobody() -> None:
    portions = Portions()
    at_once, *given_up, last = [asyncio.create_task(portions.turn(PORTION)) for _ in range(4)]
    await at_once
    for task in given_up:
        assert task.cancel()
    await last
    assert all(task.cancelled() for task in given_up)


async def test_a_turn_with_nothing_to_send_leaves_nothing_to_be_done() -> None:
    portions = Portions()
    await portions.turn(PORTION)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    passed = list[str]()
    asyncio.get_running_loop().call_soon(passed.append, "a turn")
    await portions.turn(PORTION)
    assert not passed
