"""What could not be written is tried again, in its turn, and never grows without bound."""

import pytest

from proxy.later import Later


async def test_all_of_it_is_written_and_then_no_more() -> None:
    later, written = Later[int](10), list[int]()

    async def write(key: int) -> None:
        written.append(key)

    for key in (1, 2, 3, 2):
        later.add(key)
    later.discard(3)
    await later.again(write)
    await later.again(write)
    assert written == [1, 2]


async def test_what_fails_holds_up_nothing_else_for_long() -> None:
    later, written = Later[int](10), list[int]()

    async def write(key: int) -> None:
        if key == 1:
            raise OSError
        written.append(key)

    for key in (1, 2, 3):
        later.add(key)
    for _ in range(2):
        with pytest.raises(OSError):  # noqa: PT011
            await later.again(write)
    assert written == [2, 3]
    assert 1 in later


async def test_the_oldest_are_forgotten_first() -> None:
    later = Later[int](2)
    for key in (1, 2, 3):
        later.add(key)
    assert [key in later for key in (1, 2, 3)] == [False, True, True]
    later.clear()
    assert 3 not in later
