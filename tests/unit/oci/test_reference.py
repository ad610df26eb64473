"""Repository names and tags: the spec's grammar, and the traversal corpus of T28."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.digest import Digest
from proxy.oci.errors import OciError, Problem
from proxy.oci.reference import MAX_NAME, Repository, Tag, parse_reference
from tests.unit.oci.attempts import attempt

ANY_TEXT = st.text(st.characters(exclude_categories=()))
# The grammar as the specification writes it.
SPEC_NAME = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"

GOOD_NAMES = [
    "a",
    "0",
    "library/alpine",
    "a/b/c/d/e/f/g/h",
    "foo_bar",
    "foo__bar",
    "foo-bar",
    "foo-----bar",
    "foo.bar/x.y.z",
    "manifests",
    "blobs/uploads",
    "tags/list",
    "v2/v2",
    "a" * 255,
    "a/" * 127 + "a",
]
BAD_NAMES = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/..",
    "a/./b",
    "A",
    "library/Alpine",
    "a___b",
    "a..b",
    "a._b",
    "a-_b",
    "-a",
    "a-",
    "_a",
    "a_",
    ".a",
    "a.",
    "a/-b",
    "a:b",
    "a@b",
    "a b",
    "a\n",
    "\na",
    "a\r\nb",
    "a\x00",
    "a\\b",
    "..\\a",
    "%2e%2e/a",
    "a%2fb",
    "a%00",
    "a?b",
    "a#b",
    "a\u0661",
    "\u0430",
    "caf\u00e9",
    "a\u2024b",
    "a\udcff",
    "a" * 256,
    "a/" * 128 + "a",
]
GOOD_TAGS = ["latest", "_", "0", "A", "1.2.3", "v1_2-3..--", "_.", "a" * 128, "sha256-" + "a" * 64 + ".sig"]
BAD_TAGS = [
    "",
    ".",
    "..",
    ".a",
    "-a",
    "a" * 129,
    "a/b",
    "a\\b",
    "a b",
    "a\n",
    "a\x00",
    "a%00",
    "a+b",
    "a@b",
    "a\u0661",
    "\uff41",
    "a\u00e9",
    "\udcff",
]


def repository(name: str) -> Repository:
    return Repository.parse("docker.io", name)


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_name_of_the_grammar_is_taken_as_it_is(name: str) -> None:
    parsed = repository(name)
    assert (parsed.registry, parsed.name) == ("docker.io", name)
    assert str(parsed) == f"docker.io/{name}"


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_outside_the_grammar_is_refused(name: str) -> None:
    with pytest.raises(OciError) as caught:
        repository(name)
    assert caught.value.problem is Problem.NAME_INVALID


@given(st.text("ab0._-/A", max_size=24))
def test_exactly_the_names_of_the_specification_pass(name: str) -> None:
    fits = re.fullmatch(SPEC_NAME, name) is not None
    assert attempt(repository, name) == (Repository("docker.io", name) if fits else Problem.NAME_INVALID)


@given(ANY_TEXT | st.text("a0._-/", max_size=300))
def test_an_accepted_name_can_not_climb_out_of_a_directory(name: str) -> None:
    result = attempt(repository, name)
    if isinstance(result, Problem):
        assert result is Problem.NAME_INVALID
        return
    assert result.name == name
    assert name.isascii()
    assert len(name) <= MAX_NAME
    assert {"", ".", ".."}.isdisjoint(name.split("/"))


def test_the_limit_of_a_name_does_not_count_the_registry() -> None:
    assert Repository.parse("registry.example:5000", "a" * MAX_NAME).name == "a" * MAX_NAME


def test_the_same_name_of_two_registries_is_two_repositories() -> None:
    assert Repository.parse("docker.io", "a") != Repository.parse("quay.io", "a")


@pytest.mark.parametrize("text", GOOD_TAGS)
def test_a_tag_of_the_grammar_is_taken_as_it_is(text: str) -> None:
    assert str(Tag.parse(text)) == text
    assert parse_reference(text) == Tag(text)


@pytest.mark.parametrize("text", BAD_TAGS)
def test_a_tag_outside_the_grammar_is_refused(text: str) -> None:
    for parse in (Tag.parse, parse_reference):
        with pytest.raises(OciError) as caught:
            parse(text)
        assert caught.value.problem is Problem.TAG_INVALID


def test_a_reference_with_a_colon_is_a_digest() -> None:
    digest = Digest.of(b"")
    assert parse_reference(str(digest)) == digest


@pytest.mark.parametrize("text", ["a:b", ":", "latest:", "sha256:short", "md5:" + "a" * 32])
def test_a_reference_with_a_colon_is_never_taken_for_a_tag(text: str) -> None:
    with pytest.raises(OciError) as caught:
        parse_reference(text)
    assert caught.value.problem is Problem.DIGEST_INVALID


@given(ANY_TEXT | st.text("aA0._-:", max_size=140))
def test_an_accepted_reference_reads_back_as_itself(text: str) -> None:
    result = attempt(parse_reference, text)
    assert result in {Problem.TAG_INVALID, Problem.DIGEST_INVALID} or str(result) == text


def test_there_is_no_way_around_the_checks() -> None:
    with pytest.raises(OciError):
        Repository("docker.io", "../a")
    with pytest.raises(OciError):
        Tag("../a")
