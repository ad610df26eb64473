"""A yes stands for one turn of the event loop: who asks in it asks at the same time."""

import asyncio

from proxy.encore import Standing


class Source:
    """Whoever served it: whether they would again, and how often they were asked."""

    def __init__(self) -> None:
        self.holds = True
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.holds


async def turn() -> None:
    """Let the event loop go on to its next turn."""
    await asyncio.sleep(0)


async def test_who_asks_in_one_turn_of_the_event_loop_is_answered_by_one_question() -> None:
    source = Source()
    standing = Standing(source)
    assert all(standing() for _ in range(16))
    assert source.asked == 1


async def test_what_changes_is_seen_in_the_next_turn() -> None:
    source = Source()
    standing = Standing(source)
    for turns in range(1, 4):
        assert standing()
        assert standing()
        assert source.asked == turns
        await turn()
    source.holds = False
    assert not standing()


async def test_a_no_is_asked_for_anew_each_time() -> None:
    source = Source()
    source.holds = False
    standing = Standing(source)
    assert not standing()
    source.holds = True
    assert standing()
    assert source.asked == 2


async def test_the_yes_to_one_answer_says_nothing_of_another() -> None:
    one, other = Source(), Source()
    other.holds = False
    assert Standing(one)()
    assert not Standing(other)()
