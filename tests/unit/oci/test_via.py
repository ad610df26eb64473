"""The way of a request through caches: what is read of Via, what is passed on, when it is a loop."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci import via
from proxy.oci.errors import OciError, Problem

NAMES = st.lists(st.from_regex(r"entrepot-[0-9a-f]{32}", fullmatch=True), max_size=via.MOST, unique=True)


@given(NAMES)
def test_what_is_rendered_is_read_again(names: list[str]) -> None:
    assert via.parse([via.render(names)]) == tuple(names)


@given(st.lists(st.text()))
def test_whatever_a_client_sends_only_our_own_names_are_left_of_it(headers: list[str]) -> None:
    assert all(name.startswith("entrepot-") and name.isascii() and len(name) == 41 for name in via.parse(headers))


@given(NAMES)
def test_a_way_that_has_been_here_or_is_too_long_is_a_loop(names: list[str]) -> None:
    if len(names) < via.MOST:
        assert via.joined(names, "entrepot-us") == (*names, "entrepot-us")
    for own in names:
        with pytest.raises(OciError) as raised:
            via.joined(names, own)
        assert raised.value.problem is Problem.LOOP
