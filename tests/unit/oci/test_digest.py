"""Digests: the corpus of T07, and the round trips."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.digest import Digest
from proxy.oci.errors import OciError, Problem
from tests.unit.oci.attempts import attempt

A64 = "a" * 64
EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ALGORITHMS = st.sampled_from(["sha256", "sha512"])

HOSTILE = [
    "",
    ":",
    "sha256",
    "sha256:",
    A64,
    f":{A64}",
    f"md5:{'a' * 32}",
    f"sha1:{'a' * 40}",
    f"sha384:{'a' * 96}",
    f"blake3:{A64}",
    f"SHA256:{A64}",
    f"Sha256:{A64}",
    f"sha256:{'A' * 64}",
    f"sha256:{'a' * 63}",
    f"sha256:{'a' * 65}",
    f"sha256:{'a' * 128}",
    f"sha512:{A64}",
    f"sha512:{'a' * 127}",
    f"sha512:{'a' * 129}",
    f"sha256:{'g' * 64}",
    f"sha256:{A64}\n",
    f"\nsha256:{A64}",
    f"sha256:{A64} ",
    f" sha256:{A64}",
    f"sha256: {'a' * 63}",
    f"sha256:{'a' * 63}\x00",
    "sha256:\x00",
    "sha256:%00",
    f"sha256::{'a' * 63}",
    f"sha256:sha256:{A64}",
    "sha256:../../x",
    f"sha256:{'../' * 21}a",
    f"sha256:{'a' * 60}/../",
    "sha256:" + "\u0661" * 64,  # Arabic-Indic digits, which int() and \d accept
    "sha256:" + "\uff11" * 64,  # full-width digits
    "sha256:" + "\u0430" * 64,  # Cyrillic a
    f"\u017fha256:{A64}",  # a long s
    f"sha256+b64:{A64}",
    f"sha256:{'a' * 63}\udcff",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_not_exactly_a_sha256_or_sha512_digest_is_refused(text: str) -> None:
    with pytest.raises(OciError) as caught:
        Digest.parse(text)
    assert caught.value.problem is Problem.DIGEST_INVALID


@given(st.text(st.characters(exclude_categories=())))
def test_arbitrary_text_is_read_back_or_refused_as_an_invalid_digest(text: str) -> None:
    result = attempt(Digest.parse, text)
    assert result is Problem.DIGEST_INVALID or str(result) == text


@given(st.from_regex(r"sha(256|512):[0-9a-fA-F]{60,130}", fullmatch=True))
def test_only_the_exact_length_in_lower_case_passes(text: str) -> None:
    algorithm, _, encoded = text.partition(":")
    fits = len(encoded) == {"sha256": 64, "sha512": 128}[algorithm] and encoded == encoded.lower()
    assert attempt(Digest.parse, text) == (Digest(algorithm, encoded) if fits else Problem.DIGEST_INVALID)


@given(st.binary(), ALGORITHMS)
def test_a_digest_survives_its_text(body: bytes, algorithm: str) -> None:
    digest = Digest.of(body, algorithm)
    assert Digest.parse(str(digest)) == digest
    assert hash(Digest.parse(str(digest))) == hash(digest)


def test_a_digest_is_sha256_unless_asked_otherwise() -> None:
    assert str(Digest.of(b"")) == EMPTY


def test_a_sha512_digest_is_sha512() -> None:
    assert Digest.of(b"x", "sha512").encoded == hashlib.sha512(b"x").hexdigest()


@given(st.lists(st.binary()), ALGORITHMS)
def test_bytes_in_pieces_match_the_digest_of_the_whole(pieces: list[bytes], algorithm: str) -> None:
    digest = Digest.of(b"".join(pieces), algorithm)
    hasher = digest.hasher()
    for piece in pieces:
        hasher.update(memoryview(piece))
    assert digest.matches(hasher)
    hasher.update(b"!")
    assert not digest.matches(hasher)


def test_a_hasher_of_the_other_algorithm_does_not_match() -> None:
    assert not Digest.of(b"", "sha512").matches(Digest.of(b"").hasher())


def test_a_copied_hasher_goes_its_own_way() -> None:
    hasher = Digest.of(b"ab").hasher()
    hasher.update(b"a")
    fork = hasher.copy()
    hasher.update(b"b")
    fork.update(b"c")
    assert Digest.of(b"ab").matches(hasher)
    assert Digest.of(b"ac").matches(fork)


def test_there_is_no_way_around_the_check() -> None:
    with pytest.raises(OciError):
        Digest("sha256", "../../etc/passwd")
    with pytest.raises(OciError):
        Digest.of(b"", "md5")
