"""The store where a bucket outlives the machine: the disk is its tier in front, and what is written here goes there.

Nobody waits for the bucket: what is wanted of it is given if it answers in time, and what it is to have waits on disk.
"""

import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from cachetools import LRUCache, TTLCache

from proxy.files import Handle, Tree
from proxy.oci.digest import Digest
from proxy.oci.history import Move
from proxy.oci.reference import Repository, Tag
from proxy.stores.base import Link, TagRecord
from proxy.stores.disk import DiskBlobs, DiskRepositories
from proxy.stores.durable import Durable
from proxy.stores.keys import blob_key, history_key, link_key, tag_key
from proxy.stores.records import HISTORY_LIMIT, RECORD_LIMIT, parse_history, parse_link, parse_record, parse_tag
from proxy.stores.uploads import Uploads

LOOK = 5.0  # seconds for which it is remembered that the bucket had nothing, or nothing newer
LOOKS = 65536
SHARE = 600.0  # seconds after which others are told once more that a tag still stands for the same
SHARED = 16384


class TieredBlobs(DiskBlobs):
    """Blobs on disk, which the bucket gets as well."""

    def __init__(self, tree: Tree, durable: Durable, uploads: Uploads) -> None:
        super().__init__(tree)
        self._durable = durable
        self._uploads = uploads

    async def put(self, digest: Digest, body: bytes) -> None:
        await self._uploads.want(blob_key(digest))
        await super().put(digest, body)
        self._uploads.ready(blob_key(digest))

    async def adopt(self, digest: Digest, spool: Handle, key: str | None = None) -> None:
        await self._uploads.want(blob_key(digest))
        await super().adopt(digest, spool, key)
        self._uploads.ready(blob_key(digest))

    async def fetch(self, digest: Digest, limit: int) -> bytes | None:
        body = await self._durable.read(blob_key(digest), limit)
        if body is not None and Digest.of(body, digest.algorithm) != digest:
            await self._durable.disown(blob_key(digest), "its bytes are not the manifest's")
            return None
        return body


class TieredRepositories(DiskRepositories):
    """Links, tags and histories on disk, which replicas share through the bucket."""

    def __init__(self, tree: Tree, durable: Durable, uploads: Uploads) -> None:
        super().__init__(tree)
        self._durable = durable
        self._uploads = uploads
        self._looked: TTLCache[str, bool] = TTLCache(LOOKS, LOOK)
        self._shared: LRUCache[tuple[Repository, Tag], TagRecord] = LRUCache(SHARED)

    async def link(self, repository: Repository, digest: Digest) -> Link | None:
        known = await self._link_here(repository, digest)
        if known is not None:
            return known
        record = await self._remote(link_key(repository, digest), RECORD_LIMIT)
        link = None if record is None else parse_link(record)
        if link is not None:
            with contextlib.suppress(OSError):  # it is remembered, and written once the disk takes it
                await super().put_link(repository, digest, link)
        return link

    async def put_link(self, repository: Repository, digest: Digest, link: Link) -> None:
        try:
            is_known = await self._link_here(repository, digest) == link and (repository, digest) not in self._unwritten
        except OSError:  # it cannot be read: the new one takes its name
            is_known = False
        if not is_known:
            write = partial(super().put_link, repository, digest, link)
            await self._also_there(link_key(repository, digest), write)

    async def tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        known, now = await super().tag(repository, tag), time.time()
        if known is not None and (known.is_frozen or now - known.checked < LOOK):
            return known
        other = await self._others(repository, tag)
        if other is None or (known is not None and not known.checked < other.checked <= now):
            return known  # later than now: the clock of another machine is wrong
        self._shared[repository, tag] = other
        try:
            is_recorded = await super().put_tag(repository, tag, other)
        except OSError:  # a disk that takes nothing: it is asked for again next time
            return other
        return other if is_recorded else await super().tag(repository, tag)  # it has been frozen meanwhile

    async def _others(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """What another replica has recorded; that it is frozen there says nothing of here."""
        record = await self._remote(tag_key(repository, tag), RECORD_LIMIT)
        found = None if record is None else parse_tag(record)
        return None if found is None else replace(found, is_frozen=False)

    async def put_tag(self, repository: Repository, tag: Tag, record: TagRecord, *, thaws: bool = False) -> bool:
        shared = self._shared.get((repository, tag))
        is_known_there = (
            shared is not None
            and (shared.digest, shared.is_frozen) == (record.digest, record.is_frozen)
            and 0 <= record.checked - shared.checked < SHARE
        )
        if is_known_there:
            return await super().put_tag(repository, tag, record, thaws=thaws)
        key = tag_key(repository, tag)
        await self._uploads.want(key)
        is_recorded = await super().put_tag(repository, tag, record, thaws=thaws)
        self._uploads.ready(key)
        if is_recorded:
            self._shared[repository, tag] = record
        return is_recorded

    async def drop_tag(self, repository: Repository, tag: Tag) -> None:
        await super().drop_tag(repository, tag)
        self._shared.pop((repository, tag), None)
        await self._durable.remove(tag_key(repository, tag))

    async def history(self, repository: Repository, tag: Tag) -> Sequence[Move]:
        known = await super().history(repository, tag)
        record = await self._remote(history_key(repository, tag), HISTORY_LIMIT)
        others = () if record is None else parse_history(record)
        return max(known, others, key=lambda moves: moves[-1].at if moves else 0.0)

    async def put_history(self, repository: Repository, tag: Tag, history: Sequence[Move]) -> None:
        await self._also_there(history_key(repository, tag), partial(super().put_history, repository, tag, history))

    async def _also_there(self, key: str, write: Callable[[], Awaitable[None]]) -> None:
        """Write a record here, and have the bucket get it."""
        await self._uploads.want(key)
        await write()
        self._uploads.ready(key)

    async def _remote(self, key: str, limit: int) -> Mapping[str, Any] | None:
        if key in self._looked:
            return None
        self._looked[key] = True
        body = await self._durable.read(key, limit)
        return None if body is None else parse_record(body)
