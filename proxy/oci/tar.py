"""Tar archives (POSIX.1-2001), as far as bundles need them: files and directories, and nothing else. Blocks, no I/O.

The standard library knows the header. Its reader is not used: it takes a broken archive for one that has ended, and
reads extended headers of any length into memory.
"""

import tarfile
from dataclasses import dataclass

BLOCK = 512
END = bytes(2 * BLOCK)
MAX_EXTENDED = 64 * 1024  # bytes of a header that says what did not fit into the one behind it ...
MOST_EXTENDED = 8  # ... and how many of those one file may have

_FILES = {tarfile.REGTYPE, tarfile.AREGTYPE}
_EXTENDED = {tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME}
_STRANGERS = {
    tarfile.LNKTYPE: "a link", tarfile.SYMTYPE: "a link", tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe", tarfile.GNUTYPE_SPARSE: "a sparse file",
}  # fmt: skip


class TarInvalid(ValueError):
    """The bytes are no tar archive that is understood here; the message says why."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file (or a directory) of an archive: a relative path without dots, and how many bytes follow."""

    path: str
    size: int
    is_file: bool = True


@dataclass(frozen=True, slots=True)
class Header:
    """One header block: of a member, or (`extends`) of so many bytes that say more of the member behind them."""

    kind: bytes
    name: str
    size: int

    @property
    def extends(self) -> bool:
        """Whether what follows belongs to the next header."""
        return self.kind in _EXTENDED or self.kind == tarfile.XGLTYPE


def padding(size: int) -> int:
    """How many bytes there are between the end of a content and the next header."""
    return -size % BLOCK


def header(path: str, size: int) -> bytes:
    """The header of a file: the same whoever makes it, and when."""
    entry = tarfile.TarInfo(path)
    entry.size = size
    return entry.tobuf(tarfile.PAX_FORMAT)


def parse(block: bytes) -> Header | None:
    """Read one block; None for the zeros at the end. Raises TarInvalid."""
    if not block.strip(b"\0"):
        return None
    try:
        entry = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except (tarfile.TarError, ValueError):
        raise TarInvalid("it is no tar archive, or damaged") from None
    found = Header(entry.type, entry.name, entry.size)
    if found.size < 0:
        raise TarInvalid(f"{found.name!a} has fewer than no bytes")
    if found.extends and found.size > MAX_EXTENDED:
        raise TarInvalid(f"it has an extended header of {found.size} bytes")
    return found


def extended(head: Header, body: bytes) -> dict[str, str]:
    """What an extended header says of the member behind it, by pax's names. Raises TarInvalid."""
    if head.kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": body.rstrip(b"\0").decode("utf-8", "backslashreplace")}
    said: dict[str, str] = {}
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 8)
        length = body[at:space] if space > at else b""
        end = at + int(length) if length.isdigit() else 0
        keyword, equals, value = body[space + 1 : end - 1].partition(b"=")
        if end <= space or not equals or body[end - 1 : end] != b"\n":
            raise TarInvalid("it has an extended header that is none")
        said[keyword.decode("utf-8", "backslashreplace")] = value.decode("utf-8", "backslashreplace")
        at = end
    return {} if head.kind == tarfile.XGLTYPE else said


def member(head: Header, said: dict[str, str]) -> Member:
    """What a header is of, with what extended headers said. Raises TarInvalid for what is no plain file."""
    name, size = said.get("path", head.name), head.size
    if head.kind in _STRANGERS or any(key.startswith("GNU.sparse") for key in said):
        raise TarInvalid(f"{name!a} is {_STRANGERS.get(head.kind, 'a sparse file')}: a bundle has files alone")
    if head.kind not in {*_FILES, tarfile.DIRTYPE}:
        raise TarInvalid(f"{name!a} is of a kind that is not known ({ascii(head.kind)[2:-1]})")
    if "size" in said:
        if not (said["size"].isascii() and said["size"].isdigit() and len(said["size"]) < 20):
            raise TarInvalid(f"{name!a} has {said['size']!a} bytes")
        size = int(said["size"])
    is_file = head.kind != tarfile.DIRTYPE
    if not is_file and size:
        raise TarInvalid(f"{name!a} is a directory with bytes of its own")
    return Member(_checked(name, is_file), size, is_file)


def _checked(name: str, is_file: bool) -> str:
    parts = [part for part in name.rstrip("/").split("/") if part != "."]  # `tar -C layout -c .` writes "./index.json"
    if name.startswith("/") or {"", ".."} & set(parts) or "\0" in name or (is_file and not parts):
        raise TarInvalid(f"{name!a} is no path below the bundle's own directory")
    return "/".join(parts)
