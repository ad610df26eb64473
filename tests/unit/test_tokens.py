"""What is read of a token service's answer, and for how long it is believed."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from proxy.oci.errors import OciError
from proxy.tokens import DEFAULT_LIFE, LONGEST_LIFE, MAX_TOKEN, _read_token

REALM = URL("https://auth.example/token")


@pytest.mark.parametrize(
    ("answer", "token", "life"),
    [
        ({"token": "a", "expires_in": 300}, "a", 300),
        ({"access_token": "a", "expires_in": 300}, "a", 300),
        ({"token": "a", "access_token": "b"}, "a", DEFAULT_LIFE),
        ({"token": "", "access_token": "b"}, "b", DEFAULT_LIFE),
        ({"token": None, "access_token": "b"}, "b", DEFAULT_LIFE),
        ({"token": "a", "expires_in": 0}, "a", DEFAULT_LIFE),
        ({"token": "a", "expires_in": -1}, "a", DEFAULT_LIFE),
        ({"token": "a", "expires_in": True}, "a", DEFAULT_LIFE),
        ({"token": "a", "expires_in": "300"}, "a", DEFAULT_LIFE),
        ({"token": "a", "expires_in": 59.5}, "a", 59.5),
        ({"token": "a", "expires_in": 10**9}, "a", LONGEST_LIFE),
        ({"token": "a", "expires_in": 10**400}, "a", LONGEST_LIFE),
        ({"token": "a", "issued_at": "1999-01-01T00:00:00Z"}, "a", DEFAULT_LIFE),
        ({"token": "a" * MAX_TOKEN}, "a" * MAX_TOKEN, DEFAULT_LIFE),
    ],
)
def test_a_token_and_its_life_are_read(answer: dict[str, object], token: str, life: float) -> None:
    assert _read_token(json.dumps(answer).encode(), REALM) == (token, life)


@pytest.mark.parametrize("life", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_a_life_that_is_no_number_ends_all_the_same(life: bytes) -> None:
    assert 0 < _read_token(b'{"token":"a","expires_in":' + life + b"}", REALM)[1] <= LONGEST_LIFE


@given(st.binary(max_size=64) | st.builds(lambda text: json.dumps({"token": text}).encode(), st.text()))
def test_whatever_comes_is_a_token_fit_for_a_header_or_upstreams_failure(body: bytes) -> None:
    with contextlib.suppress(OciError):
        token, life = _read_token(body, REALM)
        assert token.isascii()
        assert token.isprintable()
        assert 0 < life <= LONGEST_LIFE
