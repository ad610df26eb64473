"""Entity tags that are digests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.conditional import etag, if_range, none_match
from proxy.oci.digest import Digest

DIGEST = Digest.of(b"here")
OTHER = Digest.of(b"there")


def test_an_entity_tag_is_the_digest_in_quotes() -> None:
    assert etag(DIGEST) == f'"{DIGEST}"'


@pytest.mark.parametrize(
    "headers",
    [
        [f'"{DIGEST}"'],
        [f"{DIGEST}"],
        [f'W/"{DIGEST}"'],
        [f"W/{DIGEST}"],
        ["*"],
        [" * "],
        [f'"a", "{DIGEST}"'],
        [f'"a",W/"{DIGEST}" , "b"'],
        [f'"{OTHER}"', f'\t"{DIGEST}"'],
        [f',, "{DIGEST}",'],
    ],
)
def test_a_client_that_has_the_content_needs_it_not_again(headers: list[str]) -> None:
    assert none_match(headers, DIGEST)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        [","],
        ['""'],
        [f'"{OTHER}"'],
        [f'"{DIGEST}'],
        [f"'{DIGEST}'"],
        [f'w/"{DIGEST}"'],
        [f'"{str(DIGEST).upper()}"'],
        [f'"{DIGEST.encoded}"'],
        ['"*"'],
        [f'"{DIGEST}" "{OTHER}"'],
        ["Sun, 06 Nov 1994 08:49:37 GMT"],
    ],
)
def test_a_client_that_has_other_content_gets_this_one(headers: list[str]) -> None:
    assert not none_match(headers, DIGEST)


@given(st.lists(st.text(st.characters(exclude_categories=(), exclude_characters="*"), max_size=30)))
def test_arbitrary_tags_never_match_and_never_raise(headers: list[str]) -> None:
    assert not none_match(headers, DIGEST)


def test_a_range_without_a_condition_is_honoured() -> None:
    assert if_range(None, DIGEST)


def test_a_range_of_the_same_content_is_honoured() -> None:
    assert if_range(f' "{DIGEST}"', DIGEST)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "*",
        f"{DIGEST}",
        f'W/"{DIGEST}"',
        f'"{OTHER}"',
        f'"{DIGEST}", "{OTHER}"',
        "Sun, 06 Nov 1994 08:49:37 GMT",
    ],
)
def test_a_range_of_what_may_be_other_content_is_not_honoured(header: str) -> None:
    assert not if_range(header, DIGEST)


@given(st.text(st.characters(exclude_categories=())))
def test_an_arbitrary_condition_never_raises(header: str) -> None:
    assert not if_range(header, DIGEST)
