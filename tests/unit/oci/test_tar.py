"""Tar headers: what is written is read again, by others too; what is no plain file below here is refused."""

import contextlib
import io
import tarfile
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci import tar
from proxy.oci.tar import Header, Member, TarInvalid

PATHS = st.lists(st.text("abcdef0123456789.-", min_size=1, max_size=150), min_size=1, max_size=4).map("/".join)


def entry(
    name: str, change: Callable[[tarfile.TarInfo], None] = lambda _: None, kind: Literal[0, 1, 2] = tarfile.USTAR_FORMAT
) -> bytes:
    """The header of a file, with something changed."""
    info = tarfile.TarInfo(name)
    change(info)
    return info.tobuf(kind)


def says(**said: str) -> Callable[[tarfile.TarInfo], None]:
    """Have an extended header say that."""
    return lambda info: setattr(info, "pax_headers", said)


def read(blocks: bytes) -> Member:
    """The member whose headers these are."""
    said: dict[str, str] = {}
    while True:
        head = tar.parse(blocks[: tar.BLOCK])
        assert head is not None
        blocks = blocks[tar.BLOCK :]
        if not head.extends:
            return tar.member(head, said)
        said |= tar.extended(head, blocks[: head.size])
        blocks = blocks[head.size + tar.padding(head.size) :]


@given(PATHS.filter(lambda path: not {".", ".."} & set(path.split("/"))), st.integers(0, 2**62))
def test_what_is_written_is_read_again(path: str, size: int) -> None:
    assert read(tar.header(path, size)) == Member(path, size)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["index.json", "blobs/sha256/" + 64 * "a", "./" + "x/" * 60 + "y"])
def test_every_dialect_is_read(kind: Literal[0, 1, 2], name: str) -> None:
    assert read(entry(name, kind=kind)) == Member(name.removeprefix("./"), 0)


def test_other_readers_read_what_is_written() -> None:
    content = b"content"
    blocks = (
        tar.header("blobs/sha512/" + 128 * "a", len(content)) + content + bytes(tar.padding(len(content))) + tar.END
    )
    with tarfile.open(fileobj=io.BytesIO(blocks)) as archive:
        (member,) = archive.getmembers()
        assert (member.name, member.size, member.mtime) == ("blobs/sha512/" + 128 * "a", 7, 0)


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../b", "a//b", "..", "./..", "."])
def test_a_path_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(TarInvalid, match="no path below"):
        read(entry("x" * 200, says(path=name), tarfile.PAX_FORMAT))
    with pytest.raises(TarInvalid, match="no path below"):
        tar.member(Header(tarfile.REGTYPE, name, 0), {})


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.SYMTYPE, "a link"), (tarfile.LNKTYPE, "a link"), (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"), (tarfile.FIFOTYPE, "a pipe"), (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"V", "not known"), (tarfile.CONTTYPE, "not known"),
    ],
)  # fmt: skip
def test_what_is_no_plain_file_is_refused(kind: bytes, word: str) -> None:
    with pytest.raises(TarInvalid, match=word):
        read(entry("blobs/x", lambda info: setattr(info, "type", kind)))


def test_a_sparse_file_of_pax_is_refused() -> None:
    with pytest.raises(TarInvalid, match="sparse"):
        read(entry("x", says(**{"GNU.sparse.major": "1"}), tarfile.PAX_FORMAT))


@pytest.mark.parametrize("text", ["-1", "1e9", "9" * 30, ""])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(TarInvalid):
        read(entry("x", says(size=text), tarfile.PAX_FORMAT))


def test_a_size_below_zero_is_refused() -> None:
    with pytest.raises(TarInvalid, match="fewer than no bytes"):
        tar.parse(entry("x", lambda info: setattr(info, "size", -5), tarfile.GNU_FORMAT))


def test_a_long_extended_header_is_refused_before_it_is_read() -> None:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.size = tarfile.XHDTYPE, tar.MAX_EXTENDED + 1

    with pytest.raises(TarInvalid, match="extended header of 65537 bytes"):
        tar.parse(entry("x", change))


@pytest.mark.parametrize(
    "body", [b"5 a=b", b"7 a=b\n", b"x a=b\n", b"4 a=b\n", b"6 ab\n ", b" a=b\n", b"0 a=b\n", b"9999999999 a=b\n"]
)
def test_an_extended_header_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(TarInvalid, match="extended header that is none"):
        tar.extended(Header(tarfile.XHDTYPE, "", len(body)), body)
    assert tar.extended(Header(tarfile.XHDTYPE, "", 6), b"6 a=b\n" * 2) == {"a": "b"}


def test_zeros_are_the_end() -> None:
    assert tar.parse(bytes(tar.BLOCK)) is None


@given(st.binary(min_size=512, max_size=512))
def test_any_block_is_read_or_refused(block: bytes) -> None:
    with contextlib.suppress(TarInvalid):
        head = tar.parse(block)
        if head is not None and not head.extends:
            tar.member(head, {})


@given(st.binary(max_size=200))
def test_any_extended_header_is_read_or_refused(body: bytes) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
        with contextlib.suppress(TarInvalid):
            said = tar.extended(Header(kind, "", len(body)), body)
            assert all(isinstance(text, str) for text in said.values())
