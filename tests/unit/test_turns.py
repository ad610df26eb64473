"""Turns: so many at once, fair between keys, and none lost by whoever stops waiting."""

import asyncio
import contextlib
from collections.abc import Callable, Hashable

from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.errors import OciError, Problem
from proxy.oci.retry import Ramp, RetryBudget
from proxy.turns import CarefulTurns, Turns


class Stage:
    """Tasks that take a turn and hold it until they are told to leave; `order` is who got one, in order."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.order: list[Hashable] = []
        self._leave: list[tuple[Hashable, asyncio.Event]] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def ask(self, key: Hashable, times: int = 1) -> None:
        """So many ask; returns when each of them holds a turn or waits."""
        for _ in range(times):
            self.tasks.append(asyncio.create_task(self._hold(key)))
        await settle()

    async def _hold(self, key: Hashable) -> None:
        async with self.turns.turn(key):
            self.order.append(key)
            event = asyncio.Event()
            self._leave.append((key, event))
            await event.wait()

    async def leave(self, key: Hashable) -> None:
        """The first of a key's holders leaves."""
        for found in [one for one in self._leave if one[0] == key][:1]:
            self._leave.remove(found)
            found[1].set()
        await settle()

    async def end(self) -> None:
        """Everybody goes home."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_no_more_than_the_bound_hold_a_turn() -> None:
    stage = Stage(Turns(8))
    await stage.ask("a", 20)
    assert stage.order == ["a"] * 6
    assert stage.turns.waiting == 14
    await stage.leave("a")
    assert stage.order == ["a"] * 7
    await stage.end()


async def test_the_last_quarter_is_for_whoever_holds_none() -> None:
    stage = Stage(Turns(8))
    await stage.ask("a", 20)
    await stage.ask("b", 20)
    await stage.ask("c", 20)
    await stage.ask("d", 1)
    assert stage.order == ["a"] * 6 + ["b", "c"]
    await stage.end()


async def test_a_turn_that_falls_free_goes_round_the_keys() -> None:
    stage = Stage(Turns(4))
    await stage.ask("a", 10)
    await stage.ask("b", 10)
    del stage.order[:]
    for key in ("a", "a", "a", "b", "b", "a"):
        await stage.leave(key)
    assert stage.order[:4].count("a") == stage.order[:4].count("b")
    await stage.end()


async def test_who_stops_waiting_is_passed_over_and_costs_no_turn() -> None:
    stage = Stage(Turns(4))
    await stage.ask("a", 3)
    await stage.ask("a", 5)
    for task in stage.tasks[3:6]:
        task.cancel()
    await settle()
    assert stage.turns.waiting == 2
    await stage.leave("a")
    assert stage.turns.waiting == 1
    await stage.end()
    again = Stage(stage.turns)
    await again.ask("x", 10)
    assert again.order == ["x"] * 3
    await again.end()


async def test_who_is_cancelled_as_its_turn_comes_gives_it_back() -> None:
    turns = Turns(4)
    stage = Stage(turns)
    await stage.ask("a", 5)
    stage._leave[0][1].set()
    await asyncio.sleep(0)  # the turn has been given, and its holder has not run yet
    stage.tasks[3].cancel()
    await settle()
    await stage.end()
    assert (turns._total, turns.waiting) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["ask", "leave", "cancel"])), max_size=60))
def test_whatever_happens_the_turns_add_up(steps: list[tuple[str, str]]) -> None:
    async def play() -> None:
        stage = Stage(Turns(4))
        for key, step in steps:
            if step == "ask":
                await stage.ask(key)
            elif step == "leave":
                await stage.leave(key)
            elif stage.tasks:
                stage.tasks[len(steps) % len(stage.tasks)].cancel()
                await settle()
            assert stage.turns._total <= 4
            assert stage.turns._total == sum(stage.turns._held.values())
        await stage.end()
        assert (stage.turns._total, stage.turns.waiting) == (0, 0)

    asyncio.run(play())


# Careful turns


async def asked(turns: CarefulTurns, answer: Callable[[], None], asking: list[int]) -> None:
    """Ask one question, and note how many are being asked at that time."""
    async with turns.turn():
        asking[0] += 1
        asking[1] = max(asking[1], asking[0])
        asking[2] += 1
        await settle()
        asking[0] -= 1
        answer()


async def test_careful_turns_begin_with_one_and_widen_with_each_answer() -> None:
    asking = [0, 0, 0]
    turns = CarefulTurns(Ramp(widest=8))
    await asyncio.gather(*(asked(turns, lambda: None, asking) for _ in range(100)))
    assert asking == [0, 8, 100]


async def test_after_no_answer_one_asks_at_a_time_and_nobody_is_left_waiting() -> None:
    def fail() -> None:
        raise OciError(Problem.UPSTREAM_TIMEOUT, "none")

    asking = [0, 0, 0]
    turns = CarefulTurns(Ramp(widest=8))
    results = await asyncio.gather(*(asked(turns, fail, asking) for _ in range(50)), return_exceptions=True)
    assert asking == [0, 1, 50]
    assert all(isinstance(result, OciError) for result in results)


async def test_an_answer_that_is_upstreams_word_is_an_answer() -> None:
    def deny() -> None:
        raise OciError(Problem.MANIFEST_UNKNOWN, "gone")

    asking = [0, 0, 0]
    turns = CarefulTurns(Ramp(widest=8))
    await asyncio.gather(*(asked(turns, deny, asking) for _ in range(50)), return_exceptions=True)
    assert asking[1] == 8


# The rules they follow


@given(st.lists(st.sampled_from(["enter", "good", "bad", "rest"]), max_size=80))
def test_a_ramp_is_never_wider_than_it_may_be(steps: list[str]) -> None:
    ramp, now, asking = Ramp(widest=16, rest=30), 0.0, 0
    for step in steps:
        now += 31 if step == "rest" else 0.1
        if step == "enter":
            asking += ramp.enter(now)
        elif step in {"good", "bad"} and asking:
            ramp.leave(now, is_good=step == "good")
            asking -= 1
        assert 0 <= asking <= 16
    assert asking or ramp.enter(now)


@given(st.lists(st.booleans(), max_size=500))
def test_retries_are_a_tenth_of_the_requests_and_a_few_more(steps: list[bool]) -> None:
    budget, asked_for, granted = RetryBudget(share=0.1, most=10), 0, 0
    for is_retry in steps:
        if is_retry:
            granted += budget.take()
        else:
            budget.asked()
            asked_for += 1
    assert granted <= 10 + 0.1 * asked_for + 1e-6


# Turns that rest


async def test_a_turn_that_rests_goes_to_whoever_waits() -> None:
    turns, lost = Turns(4, patience=0.01), asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(turns.turn("a")) for _ in range(3)]
        with held[1].rest(lost.set):
            async with asyncio.timeout(5), turns.turn("a"):
                assert lost.is_set()
    assert [turn.is_lost for turn in held] == [False, True, False]
    assert is_untouched(turns)


async def test_a_turn_may_rest_as_long_as_nobody_waits() -> None:
    turns = Turns(4, patience=0.0)
    async with turns.turn("a") as turn:
        with turn.rest(lambda: None):
            await asyncio.sleep(0.02)
        assert not turn.is_lost
    assert is_untouched(turns)


async def test_what_rests_after_others_have_begun_to_wait_is_lost_too() -> None:
    turns = Turns(4, patience=0.01)
    async with contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(turns.turn("a")) for _ in range(3)]
        waiting = asyncio.create_task(stack.enter_async_context(turns.turn("a")))
        await settle()
        assert turns.waiting == 1
        with held[0].rest(lambda: None):
            await asyncio.wait_for(waiting, 5)
        assert held[0].is_lost


async def test_the_turn_that_has_rested_longest_is_lost_first_and_only_as_many_as_are_wanted() -> None:
    turns = Turns(4, patience=0.01)
    async with contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(turns.turn("a")) for _ in range(3)]
        for turn in reversed(held):
            stack.enter_context(turn.rest(lambda: None))
        async with asyncio.timeout(5), turns.turn("a"):
            await asyncio.sleep(0.05)
            assert [turn.is_lost for turn in held] == [False, False, True]


def is_untouched(turns: Turns) -> bool:
    """Whether every turn has been given back, once."""
    return turns._total == 0 and not turns._held and not turns._resting and not turns.waiting


async def test_no_turn_is_taken_that_lets_nobody_in() -> None:
    turns = Turns(8, patience=0.01)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(6):
            await stack.enter_async_context(turns.turn("many"))
        waiting = asyncio.create_task(stack.enter_async_context(turns.turn("many")))
        await settle()
        async with turns.turn("one") as turn:  # of those that are for whoever has none
            with turn.rest(lambda: None):
                await asyncio.sleep(0.05)
            assert not turn.is_lost
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_as_many_turns_are_taken_as_it_takes_to_let_somebody_in() -> None:
    turns = Turns(8, patience=0.01)
    async with contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(turns.turn("many")) for _ in range(6)]
        others = [await stack.enter_async_context(turns.turn(name)) for name in ("one", "two")]
        for turn in (*others, *held[:2]):
            stack.enter_context(turn.rest(lambda: None))
        async with asyncio.timeout(5), turns.turn("many"):
            assert [turn.is_lost for turn in (*others, *held)] == [True, True, True, *[False] * 5]


async def test_who_stops_waiting_as_a_turn_is_given_back_takes_it_from_nobody() -> None:
    turns = Turns(4, patience=0.01)
    async with contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(turns.turn("a")) for _ in range(2)]
        leaving = contextlib.AsyncExitStack()
        await leaving.enter_async_context(turns.turn("a"))
        first, second = (asyncio.create_task(stack.enter_async_context(turns.turn("a"))) for _ in range(2))
        await settle()
        with held[0].rest(lambda: None):
            first.cancel()
            await leaving.aclose()  # in the same moment
            async with asyncio.timeout(5):
                await second
            assert not held[0].is_lost
        await asyncio.gather(first, return_exceptions=True)
    assert is_untouched(turns)
