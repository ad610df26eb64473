"""What a tag has stood for: moves are kept in order, and a time says which of them counts."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.digest import Digest
from proxy.oci.history import LONGEST, Move, as_of, moved

A, B = (Digest("sha256", letter * 64) for letter in "ab")
DIGESTS = st.sampled_from([A, B, Digest("sha256", "c" * 64)])


def test_what_is_nothing_new_is_no_move() -> None:
    assert moved([Move(1.0, A)], A, 2.0) == (Move(1.0, A),)


def test_a_tag_stands_for_the_last_move_before_a_time() -> None:
    history = [Move(10.0, A), Move(20.0, B), Move(30.0, A)]
    assert [as_of(history, when) for when in (9.9, 10.0, 19.0, 20.0, 29.0, 99.0)] == [None, A, A, B, B, A]


def test_the_oldest_moves_are_forgotten_in_the_end() -> None:
    history: tuple[Move, ...] = ()
    for number in range(LONGEST + 10):
        history = moved(history, A if number % 2 else B, float(number))
    assert (len(history), history[0].at) == (LONGEST, 10.0)


@given(st.lists(st.tuples(st.floats(0, 1e10), DIGESTS), max_size=50))
def test_whatever_the_clock_does_the_last_move_is_what_the_tag_stands_for(moves: list[tuple[float, Digest]]) -> None:
    history: tuple[Move, ...] = ()
    for at, digest in moves:
        history = moved(history, digest, at)
        assert as_of(history, 1e10) == digest
    assert list(history) == sorted(history, key=lambda move: move.at)
    assert all(one.digest != two.digest for one, two in itertools.pairwise(history))
