"""A bucket of S3, or of what speaks as it does (Ceph, MinIO, R2): objects by key, whole or in part.

What comes out of a bucket is believed by nobody before it was held against a digest.
"""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import aiohttp
from botocore.exceptions import ClientError
from pydantic import SecretStr

from proxy.blob_stream import BlobStream
from proxy.files import hop
from proxy.sections.store import S3
from proxy.stores import s3_access
from proxy.stores.payloads import Payload
from proxy.stores.s3_access import Access
from proxy.stores.s3_errors import code_of, explained
from proxy.stores.s3_uploads import Uploader

if TYPE_CHECKING:
    from types_aiobotocore_s3.type_defs import HeadObjectOutputTypeDef

    from proxy.stores.s3_clients import Clients
    from proxy.stores.s3_urls import SignedUrls

_MISSING = {"NoSuchKey", "404", "NotFound"}


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as a listing tells of it: its key, its size in bytes, when it was written (seconds since the epoch)."""

    key: str
    size: int
    modified: float


class Bucket:
    """One bucket, below one prefix. Every method raises BucketError for what the store does not do."""

    def __init__(self, settings: S3) -> None:
        self._settings = settings
        self._stack = contextlib.AsyncExitStack()
        self.access: Access
        self.urls: SignedUrls | None = None
        self._uploader: Uploader

    async def __aenter__(self) -> Self:
        with explained():
            clients = await self._stack.enter_async_context(await hop(self._clients))
        self.access, self.urls = Access(clients.own, self._settings), clients.urls
        self._uploader = Uploader(self.access)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _clients(self) -> "contextlib.AbstractAsyncContextManager[Clients]":
        # Slow to import, and wanted only by those who have a bucket.
        from proxy.stores.s3_clients import prepared  # noqa: PLC0415

        return prepared(self._settings, s3_access.STALL)

    # One object

    async def read(self, key: str, limit: int, received: Callable[[int], None] = lambda _: None) -> bytes | None:
        """A small object whole; None if there is none, or it is longer than `limit` bytes. `received`: as of open()."""
        async with self.open(key, received=received) as stream:
            if stream is None or stream.total is None or stream.total > limit:
                return None
            body = bytearray()
            with explained():
                while data := await stream.read():
                    body += data
        return bytes(body) if len(body) == stream.total else None

    @contextlib.asynccontextmanager
    async def open(
        self, key: str, start: int = 0, received: Callable[[int], None] = lambda _: None
    ) -> AsyncIterator[BlobStream | None]:
        """An object from an offset on; None if there is none (of that length). Its `total` is known.

        `received` is told how many bytes come.
        """
        part: dict[str, Any] = {"Range": f"bytes={start}-"} if start else {}
        with explained():
            try:
                answer = await self.access.client.get_object(**self.access.object(key), **part)
            except ClientError as error:
                if code_of(error) in {*_MISSING, "InvalidRange", "416"}:
                    answer = None
                else:
                    raise
        if answer is None:
            yield None
            return
        async with answer["Body"] as body:
            with explained():
                stream = _streamed(body.raw_stream, start, received)
            yield stream

    async def size(self, key: str) -> int | None:
        """How many bytes an object has; None if there is none."""
        found = await self._head(key)
        return None if found is None else found["ContentLength"]

    async def written(self, key: str) -> float | None:
        """When an object was written last, in seconds since the epoch; None if there is none."""
        found = await self._head(key)
        return None if found is None else found["LastModified"].timestamp()

    async def _head(self, key: str) -> "HeadObjectOutputTypeDef | None":
        with explained():
            try:
                return await self.access.client.head_object(**self.access.object(key))
            except ClientError as error:
                if code_of(error) in _MISSING:
                    return None
                raise

    async def keys(self, prefix: str, after: str = "") -> AsyncGenerator[Stored]:
        """The objects whose keys begin so, in the order of their keys, those behind `after`; a page of them is held."""
        is_more = True
        while is_more:
            behind: dict[str, Any] = {"StartAfter": self.access.prefixed(after)} if after else {}
            with explained():
                page = await self.access.client.list_objects_v2(**self.access.below(prefix), **behind)
            found = page.get("Contents", [])
            for one in found:
                after = one["Key"].removeprefix(self.access.settings.prefix)
                yield Stored(after, one["Size"], one["LastModified"].timestamp())
            is_more = bool(found) and page["IsTruncated"]

    async def write(self, key: str, body: bytes, *, is_new: bool = False) -> None:
        """Put an object in place at once. `is_new`: only if there is none; raises Taken, or Unconditional."""
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if is_new else {}
        with explained():
            await self.access.put(key, body, **condition)

    async def remove(self, key: str) -> None:
        """Remove an object, if it is there."""
        with explained():
            await self.access.client.delete_object(**self.access.object(key))

    async def now(self) -> float:
        """The store's own time, in seconds since the epoch: what it says of its objects is by that clock."""
        with explained():
            page = await self.access.client.list_objects_v2(**self.access.below(""), MaxKeys=1)
            return parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"].get("date", "")).timestamp()

    # URLs for others

    @property
    def public_endpoint(self) -> str | None:
        """Where its URLs for others lead; None if there are to be none."""
        return None if self.urls is None else self.urls.endpoint

    async def presign(self, key: str) -> SecretStr | None:
        """A URL by which anybody may GET an object, for as long as is configured; None if there are to be none."""
        with explained():
            return None if self.urls is None else await self.urls.sign(self.access.prefixed(key))

    # Files

    async def upload(self, key: str, payload: Payload, sent: Callable[[int], None] = lambda _: None) -> None:
        """Put a file in place: nothing of it is visible before all of it is. What is there already is replaced.

        `sent` is told of bytes that have got there. Raises OSError where the file cannot be read, Vanished.
        """
        await self._uploader.upload(key, payload, sent)

    async def abandon(self, before: float) -> int:
        """Give up uploads that somebody began before then (seconds since the epoch) and never ended; how many."""
        return await self._uploader.abandon(before)


def _streamed(response: aiohttp.ClientResponse, start: int, received: Callable[[int], None]) -> BlobStream:
    """Raises LookupError where it is not the object from there on, nor all of it, or longer than it says."""
    try:
        stream = BlobStream(response, s3_access.STALL, received)
    except ValueError:
        raise LookupError("a part, and not which") from None
    length = response.content_length
    if length is None or stream.start not in {0, start} or stream.start + length != stream.total:
        raise LookupError("another part, or of unknown size")
    return stream
