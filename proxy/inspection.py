"""Looking at what is stored, one thing after the other: is it what its name says?

What is not is moved into the quarantine at once, while it is certain that it is still the same file.
"""

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from proxy import files
from proxy.files import Handle, Tree, hop
from proxy.healing import Damage, Kind
from proxy.oci.digest import Digest
from proxy.stores.keys import blob_digest, is_another_versions, is_directory_of_ours, parse_key
from proxy.stores.quarantine import set_aside
from proxy.stores.records import HISTORY_LIMIT, is_known_record

ROOTS = ("blobs", "pins", "repositories")

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """How far a walk has come: it has been at `name` in a directory, and at all that comes before."""

    directory: str = ""
    name: str = ""

    @property
    def key(self) -> str:
        """Of what it has been at last."""
        return f"{self.directory}/{self.name}"

    @property
    def path(self) -> list[str]:
        """The components of the directory's key."""
        return self.directory.split("/")


class _Unreadable(Exception):
    """The disk would not say what is there, twice. `is_damage`: it is sure to be no good, and not only busy or away."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.reason = str(error.strerror)
        self.is_damage = files.is_damage(error)


class Inspection:
    """`read` is told of the bytes that were read, as they are, and may take its time."""

    def __init__(self, tree: Tree, read: Callable[[int], Awaitable[None]]) -> None:
        self._tree = tree
        self._read = read

    async def walk(self, after: Place) -> AsyncGenerator[tuple[Place, Damage | None]]:
        """Every place after that one, in order: a directory's own files, then what is in its directories.

        The names of one directory at a time are held, and of those above it. What cannot be listed comes with the
        damage that it is.
        """
        folders = sorted(ROOTS, reverse=True)
        while folders:
            folder = folders.pop()
            if folder.split("/") < after.path[: folder.count("/") + 1]:
                continue
            try:
                names, inner = await _twice(self._list, folder)
            except _Unreadable as failure:
                yield Place(folder), Damage(Kind.UNREADABLE, folder, 0, None, failure.reason)
                continue
            for name in names:
                if (folder.split("/"), name) > (after.path, after.name):
                    yield Place(folder, name), None
            folders += reversed(inner)

    def _list(self, folder: str) -> tuple[list[str], list[str]]:
        """The names in a directory of ours that are to be looked at, and the keys of the directories to go into."""
        names, inner = [], []
        for name, is_directory in self._tree.entries(folder):
            key = f"{folder}/{name}"
            if is_directory and is_another_versions(key):
                continue
            if is_directory and is_directory_of_ours(key):
                inner.append(key)
            else:
                names.append(name)
        return names, inner

    async def look(self, key: str) -> Damage | None:
        """Look at what is at a key; nothing, or a file that is evicted or replaced meanwhile, is no damage.

        Raises OSError where there are no descriptors or no memory, which says nothing of the file.
        """
        try:
            found = await _twice(self._tree.examine, key)
        except _Unreadable as failure:
            return Damage(Kind.UNREADABLE, key, 0, None, failure.reason)
        if found is None:
            return None
        status, handle = found
        if handle is None:
            return await self._set_aside(Kind.STRANGER, key, status)
        try:  # as long as the file is open no other one can be taken for it
            fault = await self._fault(key, handle)
            return None if fault is None else await self._set_aside(fault, key, status)
        except _Unreadable as failure:
            if failure.is_damage:
                return await self._set_aside(Kind.UNREADABLE, key, status)
            return Damage(Kind.UNREADABLE, key, status.st_size, None, failure.reason)
        finally:
            handle.close()

    async def _fault(self, key: str, handle: Handle) -> Kind | None:
        if key.startswith("blobs/"):
            digest = blob_digest(key)
            if digest is None:
                return Kind.STRANGER
            return None if await self._holds(digest, handle) else Kind.ROT
        if parse_key(key) is None:
            return Kind.STRANGER
        body = await _twice(os.pread, handle.fd, HISTORY_LIMIT + 1, 0)
        return None if is_known_record(key, body) else Kind.RECORD

    async def _holds(self, digest: Digest, handle: Handle) -> bool:
        hasher, offset = digest.hasher(), 0
        while offset < handle.size and (count := await _twice(files.hash_piece, handle.fd, offset, hasher)):
            offset += count
            await self._read(count)
        return digest.matches(hasher)

    async def _set_aside(self, kind: Kind, key: str, status: os.stat_result) -> Damage | None:
        try:
            moved = await hop(set_aside, self._tree, key, status)
        except OSError as error:
            if files.is_exhausted(error):
                raise
            return Damage(kind, key, status.st_size, None, str(error.strerror))
        return None if moved is None else Damage(kind, key, status.st_size, moved)


async def _twice(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """One call in a thread, and once more if it fails: only what does so again means anything. Raises _Unreadable.

    Raises OSError where there are no descriptors, or no memory.
    """
    try:
        return await hop(call, *args, **kwargs)
    except OSError as error:
        if files.is_exhausted(error):
            raise
    try:
        return await hop(call, *args, **kwargs)
    except OSError as error:
        if files.is_exhausted(error):
            raise
        raise _Unreadable(error) from None
