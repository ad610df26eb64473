"""Having a running server write down what its clients ask for, and reading that when it is over."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

from proxy.catalog import read_manifest
from proxy.files import Tree, hop
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError
from proxy.oci.imagelist import Wish, split
from proxy.oci.manifest import INDEXES
from proxy.oci.platform import of_index
from proxy.oci.reference import Repository, Tag
from proxy.recorder import BY, CLIENTS, END, FULL, LOCK, OVER, WORKER
from proxy.stores.records import read_link

LOOK = 0.05  # seconds
PATIENCE = 15.0  # seconds that the processes of a server have to begin, and to end
LIMIT = 64 * 1024 * 1024  # bytes of what one of them writes


class NotRecorded(Exception):
    """There is no recording; the message says why."""


class Recording:
    """One recording over a store."""

    def __init__(self, tree: Tree, clients: Sequence[str]) -> None:
        self._tree = tree
        self._clients = clients
        self._name = secrets.token_hex(8)
        self.is_full = False  # there was more than a server writes down

    @contextlib.asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        """In the block every process of the server records, until result() is asked. Raises NotRecorded, OSError."""
        await hop(sweep, self._tree)
        with contextlib.ExitStack() as stack:
            lock = f"recordings/{self._name}{LOCK}"
            await hop(stack.enter_context, self._tree.locked(lock))
            if await hop(self._tree.size, lock) is None:
                raise NotRecorded("another recording began or ended at this very moment: try again")
            await self._tree.write(f"recordings/{self._name}{CLIENTS}", json.dumps(list(self._clients)).encode())
            if not await hop(self._workers):
                raise NotRecorded("no server is running on this directory")
            await self._until(self._have_begun, "begin to record")
            yield
        await hop(sweep, self._tree)

    async def result(self) -> set[Wish]:
        """It is over: what was asked for. Raises NotRecorded, OSError."""
        await self._tree.write(f"recordings/{self._name}{OVER}", b"")
        await self._until(self._have_ended, "tell what they recorded")
        found = await hop(lambda: set(self._read()))
        tagged = {_untagged(one) for one in found if one != _untagged(one)}
        return found - tagged  # who asks by a tag asks for the digest as well

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while not await hop(condition):  # noqa: ASYNC110  what other processes write has no event
                    await asyncio.sleep(LOOK)
                return
        raise NotRecorded(f"not all processes of the server {what}")

    def _workers(self) -> set[str]:
        """The processes of the server that live."""
        prefix = f"recordings/{WORKER}"
        return {
            entry.key.removeprefix(prefix)
            for entry in self._tree.scan("recordings")
            if entry.key.startswith(prefix) and not self._tree.is_free(entry.key)
        }

    def _key(self, worker: str) -> str:
        return f"recordings/{self._name}{BY}{worker}"

    def _have_begun(self) -> bool:
        return all(self._tree.size(self._key(worker)) is not None for worker in self._workers())

    def _have_ended(self) -> bool:
        bodies = (self._tree.read_now(self._key(worker), LIMIT) for worker in self._workers())
        return all(body is None or body.endswith(f"{END}\n".encode()) for body in bodies)

    def _read(self) -> Iterator[Wish]:
        for entry in self._tree.scan("recordings"):
            if entry.key.startswith(self._key("")):
                body = self._tree.read_now(entry.key, LIMIT) or b""
                for line in body.decode("utf-8", "replace").splitlines():
                    self.is_full = self.is_full or line == FULL
                    wish = _parsed(line)
                    if wish is not None:
                        yield wish


def _parsed(line: str) -> Wish | None:
    """A line as the server writes it; None for what is none, such as one that a kill cut short."""
    words = line.split(" ")
    if len(words) != 4 or words[0] not in {"manifest", "blob"}:
        return None
    registry, _, name = words[1].partition("/")
    try:
        repository, digest = Repository.parse(registry, name), Digest.parse(words[3])
        tag = None if words[2] == "-" else Tag.parse(words[2])
    except OciError:
        return None
    return Wish(
        f"{repository}{'' if tag is None else f':{tag}'}@{digest}", "blob" if words[0] == "blob" else "manifest"
    )


def notes(tree: Tree, found: Iterable[Wish]) -> dict[str, str]:
    """What is to be said of the manifests among those: that one is an index, or of which platform it is; blocking."""
    said: dict[str, str] = {}
    for wish in found:
        repository, digest = _named(wish)
        link = read_link(tree, repository, digest)
        if link is not None and link.media_type in INDEXES:
            index = read_manifest(tree, digest, link.media_type)
            listed = [] if index is None else of_index(index.body)
            said |= {str(digest): "index", **{str(one): str(platform) for one, platform in listed if platform}}
    return said


def _named(wish: Wish) -> tuple[Repository, Digest]:
    """What is recorded has its full name: it means the same whatever registries are configured here."""
    path, _, digest = split(wish.name)
    registry, _, name = path.partition("/")
    return Repository.parse(registry, name), Digest.parse(digest or "")


def _untagged(wish: Wish) -> Wish:
    path, _, digest = split(wish.name)
    return Wish(f"{path}@{digest}", wish.part)


def sweep(tree: Tree) -> None:
    """Drop what is left of recordings that are over, and of processes that are gone; blocking."""
    keys = [entry.key for entry in tree.scan("recordings")]
    live = {key.removesuffix(LOCK) for key in keys if key.endswith(LOCK) and not tree.is_free(key)}
    for key in keys:
        if key.partition(".")[0] not in live:
            tree.evict(key)  # not what is locked: a process that lives
