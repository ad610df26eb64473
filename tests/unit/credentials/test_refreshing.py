"""A credential stays fresh without anybody waiting, and a source that fails is neither needed nor bothered."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.credentials.base import Credential, CredentialError, Issued
from proxy.credentials.refreshing import FIRST_PAUSE, LONGEST_PAUSE, LOOK, REFUSALS, Refreshing
from proxy.telemetry import quiet
from tests.unit.credentials.fakes import Clock, Script, issued, recording


class Gate:
    """A source that answers when it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.cancelled = 0
        self.open = asyncio.Event()
        self.reached = asyncio.Event()

    async def fetch(self) -> Issued:
        self.asked += 1
        self.reached.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return issued(f"secret-{self.asked}", 100)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gate() -> Gate:
    return Gate()


def refreshing(source: Script | Gate, clock: Clock, draw: float = 1.0, limit: float = 10) -> Refreshing:
    return Refreshing(source, quiet(), clock=clock, draw=lambda: draw, limit=limit)


async def settled(credential: Refreshing) -> None:
    """What goes on in the background has come to its end."""
    question = credential._question
    if question is not None:
        await asyncio.wait({question})


async def secret(credential: Refreshing) -> str:
    return (await credential.current()).secret


async def test_many_callers_are_one_question(clock: Clock, gate: Gate) -> None:
    credential = refreshing(gate, clock)
    callers = [asyncio.create_task(credential.current()) for _ in range(32)]
    await gate.reached.wait()
    gate.open.set()
    assert {one.secret for one in await asyncio.gather(*callers)} == {"secret-1"}
    assert gate.asked == 1


async def test_the_question_outlives_who_put_it(clock: Clock, gate: Gate) -> None:
    credential = refreshing(gate, clock)
    first, second = (asyncio.create_task(credential.current()) for _ in range(2))
    await gate.reached.wait()
    first.cancel()
    await asyncio.wait({first})
    gate.open.set()
    assert (await second).secret == "secret-1"
    assert (gate.asked, gate.cancelled) == (1, 0)


async def test_nothing_is_asked_in_the_first_half_of_its_life(clock: Clock) -> None:
    source = Script(issued("a", 100))
    credential = refreshing(source, clock)
    assert await secret(credential) == "a"
    clock.now += 49.9
    assert await secret(credential) == "a"
    assert (source.asked, credential._question) == (1, None)


async def test_in_the_second_half_one_question_is_put_and_nobody_waits_for_it(clock: Clock, gate: Gate) -> None:
    credential = refreshing(gate, clock)
    gate.open.set()
    await credential.current()
    gate.open.clear()
    gate.reached.clear()
    clock.now += 50
    async with asyncio.timeout(5):
        assert [await secret(credential) for _ in range(8)] == ["secret-1"] * 8
        await gate.reached.wait()
    assert gate.asked == 2
    gate.open.set()
    await settled(credential)
    assert await secret(credential) == "secret-2"
    assert gate.asked == 2


async def test_what_has_no_end_is_looked_at_again_in_the_background(clock: Clock) -> None:
    source = Script(issued("a"), issued("b"))
    credential = refreshing(source, clock)
    assert await secret(credential) == "a"
    clock.now += LOOK - 0.1
    await credential.current()
    assert (source.asked, credential._question) == (1, None)
    clock.now += 0.1
    assert await secret(credential) == "a"
    await settled(credential)
    assert await secret(credential) == "b"


async def test_a_failing_source_is_not_needed_until_the_life_has_really_ended(clock: Clock) -> None:
    source = Script(issued("a", 100), CredentialError("AWS is down"))
    credential = refreshing(source, clock)
    await credential.current()
    for _ in range(99):
        clock.now += 1
        assert await secret(credential) == "a"
        await settled(credential)
    assert 3 <= source.asked <= 12
    clock.now += 1
    with pytest.raises(CredentialError, match=r"^AWS is down$"):
        await credential.current()


async def test_what_has_no_end_is_kept_for_as_long_as_its_source_fails(clock: Clock) -> None:
    source = Script(issued("a"), CredentialError("the file is gone"))
    credential = refreshing(source, clock)
    for _ in range(100):
        assert await secret(credential) == "a"
        await settled(credential)
        clock.now += 10_000


async def test_once_the_source_is_back_its_credential_is_taken(clock: Clock) -> None:
    source = Script(issued("a", 100), CredentialError("down"), CredentialError("down"), issued("b", 100))
    credential = refreshing(source, clock)
    await credential.current()
    clock.now += 50
    for _ in range(3):
        await credential.current()
        await settled(credential)
        clock.now += 3
    assert await secret(credential) == "b"


async def test_after_its_life_the_source_is_waited_for(clock: Clock) -> None:
    credential = refreshing(Script(issued("a", 100), issued("b", 100)), clock)
    await credential.current()
    clock.now += 100
    assert await secret(credential) == "b"


async def test_the_first_failure_is_everybodys_for_a_pause(clock: Clock) -> None:
    source = Script(CredentialError("no such profile"), issued("a"))
    credential = refreshing(source, clock)
    for _ in range(5):
        with pytest.raises(CredentialError, match=r"^no such profile$"):
            await credential.current()
    assert source.asked == 1
    clock.now += FIRST_PAUSE * 1.5
    assert await secret(credential) == "a"


@pytest.mark.parametrize("draw", [0.0, 0.5, 1.0])
async def test_the_pauses_grow_to_a_bound(clock: Clock, draw: float) -> None:
    source = Script(CredentialError("down"))
    credential = refreshing(source, clock, draw)
    pauses = []
    for _ in range(12):
        with pytest.raises(CredentialError):
            await credential.current()
        pauses.append(credential._next_question - clock.now)
        clock.now = credential._next_question
    assert source.asked == 12
    half = FIRST_PAUSE / 2
    assert pauses == [half + draw * min(LONGEST_PAUSE, FIRST_PAUSE * 2**n) for n in range(12)]


async def test_a_source_that_hangs_is_given_up(clock: Clock, gate: Gate) -> None:
    credential = refreshing(gate, clock, limit=0.01)
    with pytest.raises(CredentialError, match=r"^no answer within 0\.01 s$"):
        await credential.current()
    assert gate.cancelled == 1


async def test_a_hanging_source_holds_up_nobody_who_has_a_good_one(clock: Clock, gate: Gate) -> None:
    gate.open.set()
    credential = refreshing(gate, clock, limit=0.01)
    await credential.current()
    gate.open.clear()
    clock.now += 60
    assert await secret(credential) == "secret-1"
    await settled(credential)
    assert await secret(credential) == "secret-1"
    assert gate.cancelled == 1


@pytest.mark.parametrize("life", [0.0, -5.0, float("nan")])
async def test_what_has_expired_already_is_a_failure(clock: Clock, life: float) -> None:
    credential = refreshing(Script(issued("a", life)), clock)
    with pytest.raises(CredentialError, match="clock"):
        await credential.current()


@pytest.mark.parametrize("life", [0.1, 1.0, LOOK])
async def test_a_short_life_is_used_and_is_no_reason_to_ask_all_the_time(clock: Clock, life: float) -> None:
    source = Script(issued("a", life))
    credential = refreshing(source, clock)
    for _ in range(3):
        assert await secret(credential) == "a"
    assert source.asked == 1
    clock.now += life
    assert await secret(credential) == "a"
    assert source.asked == 2


async def test_a_mistake_of_a_library_is_a_failure_whose_text_is_not_repeated(clock: Clock) -> None:
    logger, lines = recording()
    credential = Refreshing(Script(RuntimeError("hunter2")), logger, clock=clock)
    with pytest.raises(CredentialError, match="RuntimeError") as caught:
        await credential.current()
    assert "hunter2" not in f"{caught.value!r} {lines}"


async def test_each_failure_is_one_warning_and_the_end_of_them_is_told(clock: Clock) -> None:
    logger, lines = recording()
    source = Script(issued("hunter2", 100), CredentialError("down"), CredentialError("down"), issued("hunter3", 100))
    credential = Refreshing(source, logger, clock=clock, draw=lambda: 1.0)
    await credential.current()
    clock.now += 50
    for _ in range(3):
        for _ in range(4):
            await credential.current()
            await settled(credential)
        clock.now += 3
    assert [(line["log_level"], line["event"]) for line in lines] == [
        ("warning", "credential not refreshed, keeping the old one"),
        ("warning", "credential not refreshed, keeping the old one"),
        ("info", "credential refreshed again"),
    ]
    assert lines[0]["reason"] == "down"
    assert "hunter" not in f"{lines} {credential!r} {credential._held!r}"


# What the registry refuses


async def test_a_refused_credential_is_asked_for_anew(clock: Clock) -> None:
    source = Script(issued("old"), issued("new"))
    credential = refreshing(source, clock)
    credential.rejected(await credential.current())
    assert await secret(credential) == "new"


async def test_a_credential_that_was_replaced_meanwhile_is_not_asked_for_again(clock: Clock) -> None:
    source = Script(issued("a"), issued("b"))
    credential = refreshing(source, clock)
    old = await credential.current()
    credential.rejected(old)
    await credential.current()
    clock.now += REFUSALS
    credential.rejected(old)
    credential.rejected(Credential("somebody", "else"))
    assert await secret(credential) == "b"
    assert source.asked == 2


async def test_refusals_ask_at_most_once_per_pause(clock: Clock) -> None:
    # ECR gives another password each time: that it is new does not make it worth asking for.
    source = Script(*(issued(str(n), 10_000) for n in range(1000)))
    credential = refreshing(source, clock)
    for _ in range(100):
        credential.rejected(await credential.current())
        clock.now += REFUSALS / 10
    assert source.asked == 1 + 10


async def test_what_was_refused_is_still_used_where_there_is_nothing_better(clock: Clock) -> None:
    source = Script(issued("a", 1000), CredentialError("down"))
    credential = refreshing(source, clock)
    credential.rejected(await credential.current())
    assert [await secret(credential) for _ in range(3)] == ["a"] * 3
    assert source.asked == 2


async def test_all_who_were_refused_at_once_wait_for_one_question(clock: Clock, gate: Gate) -> None:
    gate.open.set()
    credential = refreshing(gate, clock)
    refused = await credential.current()
    gate.open.clear()
    gate.reached.clear()
    for _ in range(8):
        credential.rejected(refused)
    callers = [asyncio.create_task(credential.current()) for _ in range(8)]
    await gate.reached.wait()
    gate.open.set()
    assert {one.secret for one in await asyncio.gather(*callers)} == {"secret-2"}


# The end


async def test_closing_ends_the_question(clock: Clock, gate: Gate) -> None:
    credential = refreshing(gate, clock)
    caller = asyncio.create_task(credential.current())
    await gate.reached.wait()
    await credential.aclose()
    assert gate.cancelled == 1
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_closing_what_was_never_asked_is_nothing(clock: Clock, gate: Gate) -> None:
    await refreshing(gate, clock).aclose()


# Whatever happens

_STEPS = st.lists(
    st.tuples(
        st.floats(0, 400),  # seconds that pass
        st.sampled_from([None, 0.5, 30.0, 300.0, CredentialError("down")]),  # what the source says from then on
        st.booleans(),  # whether the registry refuses what it gets
    ),
    max_size=40,
)


@given(_STEPS, st.floats(0, 1))
def test_whatever_happens_the_source_is_spared_and_what_is_given_is_good(
    steps: list[tuple[float, float | CredentialError | None, bool]], draw: float
) -> None:
    asyncio.run(_live(steps, draw))


async def _live(steps: list[tuple[float, float | CredentialError | None, bool]], draw: float) -> None:
    clock = Clock()
    source = Script(CredentialError("nothing yet"))
    credential = refreshing(source, clock, draw)
    ends: dict[str, float] = {}
    for number, (seconds, outcome, refuse) in enumerate(steps):
        clock.now += seconds
        source.outcomes = [outcome if isinstance(outcome, CredentialError) else issued(str(number), outcome)]
        if not isinstance(outcome, CredentialError):
            ends[str(number)] = clock.now + (float("inf") if outcome is None else outcome)
        before = source.asked
        for _ in range(3):
            try:
                given = await credential.current()
            except CredentialError:
                assert source.asked == before or isinstance(outcome, CredentialError)
                continue
            assert clock.now < ends[given.secret]
            if refuse:
                credential.rejected(given)
        await settled(credential)
        assert source.asked <= before + 2, "once for its age, once for the refusal"
    await credential.aclose()
