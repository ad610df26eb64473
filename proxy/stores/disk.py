"""The store on local disk: the directory is the database.

blobs/<algorithm>/<two digits>/<hex>          verified bytes, 0400, never opened for writing again
repositories/<registry>/<name>/_tags/<tag>    what a tag stood for, and when upstream was asked
repositories/<registry>/<name>/_links/<algorithm>/<hex>
spool/<algorithm>-<hex>                       blobs on their way in
limits/<registry>/<hex>                       what an upstream allows an account, and until when it is not to be asked
tmp/, ledger/                                 small files on their way in; how much space is taken
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cachetools import LRUCache

from proxy.files import Handle, Tree
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError
from proxy.oci.reference import Repository, Tag
from proxy.stores.base import Link, TagRecord

DIRECTORIES = ("blobs", "repositories", "spool", "tmp", "ledger", "limits")
RECORD_LIMIT = 4096  # bytes of a link's or a tag's file
LINKS_IN_MEMORY = 65536
USES_IN_MEMORY = 65536


def open_tree(path: Path) -> Tree:
    """Open the cache directory, making what is missing; blocking. Raises UnsafeDirectory or OSError."""
    tree = Tree(path)
    try:
        tree.open_root(DIRECTORIES)
    except BaseException:
        tree.close()
        raise
    return tree


def blob_key(digest: Digest) -> str:
    """Where a blob is kept."""
    return f"blobs/{digest.algorithm}/{digest.encoded[:2]}/{digest.encoded}"


def spool_key(digest: Digest) -> str:
    """Where a blob grows: the meeting point of all processes that want it."""
    return f"spool/{digest.algorithm}-{digest.encoded}"


class DiskBlobs:
    """Blobs as files named by their digest; the time of last modification is the time of last use."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._uses: LRUCache[Digest, float] = LRUCache(USES_IN_MEMORY)

    async def open(self, digest: Digest) -> Handle | None:
        return await self.tree.open(blob_key(digest))

    async def put(self, digest: Digest, body: bytes) -> None:
        await self.tree.write(blob_key(digest), body, committed=True)

    async def adopt(self, digest: Digest, spool: Handle) -> None:
        await self.tree.commit_spool(spool_key(digest), spool, blob_key(digest))

    async def remove(self, digest: Digest) -> None:
        await self.tree.remove(blob_key(digest))

    def used(self, digest: Digest) -> None:
        self._uses[digest] = time.time()

    async def record_uses(self) -> None:
        """Write down the uses since the last time: once in a while, not once a request."""
        uses = [(blob_key(digest), when) for digest, when in self._uses.items()]
        self._uses.clear()
        if uses:
            await self.tree.touch(uses)


class DiskRepositories:
    """Links and tags as small JSON files, written whole and renamed into place."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._links: LRUCache[tuple[Repository, Digest], Link] = LRUCache(LINKS_IN_MEMORY)

    async def link(self, repository: Repository, digest: Digest) -> Link | None:
        known = self._links.get((repository, digest))
        if known is not None:
            return known
        record = await self._read(_link_key(repository, digest))
        link = None if record is None else _link(record)
        if link is not None:
            self._links[repository, digest] = link
        return link

    async def put_link(self, repository: Repository, digest: Digest, link: Link) -> None:
        if self._links.get((repository, digest)) == link:
            return
        self._links[repository, digest] = link  # first: it is true whether or not the disk has room for it
        await self._write(_link_key(repository, digest), {"size": link.size, "mediaType": link.media_type})

    async def tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        record = await self._read(_tag_key(repository, tag))
        return None if record is None else _tag_record(record)

    async def put_tag(self, repository: Repository, tag: Tag, record: TagRecord) -> None:
        await self._write(_tag_key(repository, tag), {"digest": str(record.digest), "checked": record.checked})

    async def drop_tag(self, repository: Repository, tag: Tag) -> None:
        await self._tree.remove(_tag_key(repository, tag))

    async def _read(self, key: str) -> Mapping[str, Any] | None:
        """A record; None if there is none, or a power cut left no more than its name."""
        body = await self._tree.read(key, RECORD_LIMIT)
        try:
            record = None if body is None else json.loads(body)
        except (ValueError, RecursionError):
            return None
        return record if isinstance(record, Mapping) else None

    async def _write(self, key: str, record: Mapping[str, Any]) -> None:
        await self._tree.write(key, json.dumps(record, separators=(",", ":")).encode())


def _link_key(repository: Repository, digest: Digest) -> str:
    return f"repositories/{repository}/_links/{digest.algorithm}/{digest.encoded}"


def _tag_key(repository: Repository, tag: Tag) -> str:
    return f"repositories/{repository}/_tags/{tag}"


def _link(record: Mapping[str, Any]) -> Link | None:
    size, media_type = record.get("size"), record.get("mediaType")
    if isinstance(size, int | None) and isinstance(media_type, str | None) and not isinstance(size, bool):
        return Link(size, media_type)
    return None


def _tag_record(record: Mapping[str, Any]) -> TagRecord | None:
    digest, checked = record.get("digest"), record.get("checked")
    if not isinstance(digest, str) or not isinstance(checked, int | float) or isinstance(checked, bool):
        return None
    try:
        return TagRecord(Digest.parse(digest), float(checked))
    except OciError:
        return None
