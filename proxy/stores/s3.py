"""A bucket of S3, or of what speaks as it does (Ceph, MinIO, R2): objects by key, whole or in part.

The only module that knows S3. What comes out of a bucket is believed by nobody before it was held against a digest.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import SecretStr

from proxy import sections
from proxy.blob_stream import Interrupted, Watch
from proxy.files import hop, outlast
from proxy.stores.s3_errors import BucketError, Taken, Unconditional, code_of, explained, of_source, source_apart
from proxy.stores.sources import Source

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import CompletedPartTypeDef, HeadObjectOutputTypeDef

    from proxy.stores.s3_clients import Clients
    from proxy.stores.s3_urls import SignedUrls

PART = 16 * 1024 * 1024  # bytes of a part of an upload; S3 wants 5 MiB at least, and ten thousand of them at most
PARTS_AT_ONCE = 4  # of all uploads together: as much memory as so many parts
STALL = 30.0  # seconds without a byte
PATIENCE = 2.0  # seconds for what is done on the way out
SLOWEST = 64 * 1024  # bytes a second at which an upload has to get on
_MISSING = {"NoSuchKey", "404", "NotFound"}


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as a listing tells of it: its key, its size in bytes, when it was written (seconds since the epoch)."""

    key: str
    size: int
    modified: float


class ObjectStream:
    """The bytes of an object as they come: `start` is the offset of the first, `total` the object's size."""

    def __init__(self, body: Any, start: int, total: int) -> None:
        self._body = body
        self._watch = Watch(STALL)
        self.start = start
        self.total = total

    async def read(self) -> bytes:
        """Whatever has come since, at least a byte; empty at the end. Raises Interrupted."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(STALL):
                data = bytes(await self._body.raw_stream.content.readany())
        except TimeoutError:
            raise Interrupted(f"no byte for {STALL:g} s") from None
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise Interrupted(type(error).__name__) from None
        self._watch.saw(len(data), time.monotonic() - began)
        return data


class Bucket:
    """One bucket, below one prefix. Every method raises BucketError for what the store does not do."""

    def __init__(self, settings: sections.S3) -> None:
        self._settings = settings
        self._stack = contextlib.AsyncExitStack()
        self._client: S3Client
        self._urls: SignedUrls | None = None
        self._in_memory = asyncio.Semaphore(PARTS_AT_ONCE)
        owner = settings.expected_bucket_owner
        self._where: dict[str, Any] = {
            "Bucket": settings.bucket, **({} if owner is None else {"ExpectedBucketOwner": owner})
        }  # fmt: skip

    async def __aenter__(self) -> Self:
        with explained():
            clients = await self._stack.enter_async_context(await hop(self._clients))
        self._client, self._urls = clients.own, clients.urls
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _clients(self) -> "contextlib.AbstractAsyncContextManager[Clients]":
        # Slow to import, and wanted only by those who have a bucket.
        from proxy.stores.s3_clients import prepared  # noqa: PLC0415

        return prepared(self._settings, STALL)

    # One object

    async def read(self, key: str, limit: int) -> bytes | None:
        """A small object whole; None if there is none, or it is longer than `limit` bytes."""
        async with self.open(key) as stream:
            if stream is None or stream.total > limit:
                return None
            body = bytearray()
            with explained():
                while data := await stream.read():
                    body += data
        return bytes(body) if len(body) == stream.total else None

    @contextlib.asynccontextmanager
    async def open(self, key: str, start: int = 0) -> AsyncIterator[ObjectStream | None]:
        """An object from an offset on; None if there is none (of that length)."""
        part: dict[str, Any] = {"Range": f"bytes={start}-"} if start else {}
        with explained():
            try:
                answer = await self._client.get_object(**self._where, Key=self._key(key), **part)
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
                length = answer["ContentLength"]
            has_part = "ContentRange" in answer
            yield ObjectStream(body, start if has_part else 0, length + (start if has_part else 0))

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
                return await self._client.head_object(**self._where, Key=self._key(key))
            except ClientError as error:
                if code_of(error) in _MISSING:
                    return None
                raise

    async def keys(self, prefix: str, after: str = "") -> AsyncGenerator[Stored]:
        """The objects whose keys begin so, in the order of their keys, those behind `after`; a page of them is held."""
        is_more = True
        while is_more:
            behind: dict[str, Any] = {"StartAfter": self._key(after)} if after else {}
            with explained():
                page = await self._client.list_objects_v2(**self._where, Prefix=self._key(prefix), **behind)
            found = page.get("Contents", [])
            for one in found:
                after = one["Key"].removeprefix(self._settings.prefix)
                yield Stored(after, one["Size"], one["LastModified"].timestamp())
            is_more = bool(found) and page["IsTruncated"]

    async def write(self, key: str, body: bytes, *, is_new: bool = False) -> None:
        """Put an object in place at once. `is_new`: only if there is none; raises Taken, or Unconditional."""
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if is_new else {}
        with explained():
            async with _getting_on(len(body)):
                done = await self._client.put_object(
                    **self._where, Key=self._key(key), Body=body, **condition, **self._keeping(len(body))
                )
            _ = done["ETag"]  # a 200 of somebody in between has none

    async def remove(self, key: str) -> None:
        """Remove an object, if it is there."""
        with explained():
            await self._client.delete_object(**self._where, Key=self._key(key))

    async def now(self) -> float:
        """The store's own time, in seconds since the epoch: what it says of its objects is by that clock."""
        with explained():
            page = await self._client.list_objects_v2(**self._where, Prefix=self._settings.prefix, MaxKeys=1)
            return parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"].get("date", "")).timestamp()

    # URLs for others

    @property
    def public_endpoint(self) -> str | None:
        """Where its URLs for others lead; None if there are to be none."""
        return None if self._urls is None else self._urls.endpoint

    async def presign(self, key: str) -> SecretStr | None:
        """A URL by which anybody may GET an object, for as long as is configured; None if there are to be none."""
        with explained():
            return None if self._urls is None else await self._urls.sign(self._key(key))

    async def refuses_its_urls(self) -> bool:
        """Whether it turns down who comes with a URL that was just made: by a try of one."""
        key = f"trial/{secrets.token_hex(8)}"
        if self._urls is None:
            return False
        await self.write(key, b"one")
        try:
            with explained():
                return await self._urls.is_refused(self._key(key))
        finally:
            with contextlib.suppress(BucketError):  # which says nothing of URLs
                await self.remove(key)

    # Uploads

    async def upload(self, key: str, source: Source, sent: Callable[[int], None] = lambda _: None) -> None:
        """Put a file in place: nothing of it is visible before all of it is. What is there already is replaced.

        Without a condition, since who writes a key of a digest writes the same, and parts know none on every store.
        `sent` is told of bytes that have got there. Raises OSError where the file cannot be read, Vanished.
        """
        if source.size <= PART:
            async with self._in_memory:
                await source.there(source.size)
                await self.write(key, await source.read(0, source.size))
            sent(source.size)
            return
        where = {**self._where, "Key": self._key(key)}
        with source_apart(), explained():
            begun = await self._client.create_multipart_upload(**where, **self._keeping(source.size))
            upload = begun["UploadId"]
            try:
                parts = await self._parts(where, upload, source, sent)
                done = await self._client.complete_multipart_upload(
                    **where, UploadId=upload, MultipartUpload={"Parts": parts}
                )
                _ = done["ETag"]
            except BaseException:
                await self._given_up(where, upload)
                raise

    async def _given_up(self, where: Mapping[str, Any], upload: str) -> None:
        """Give up an upload, if that can be done soon, also for who is cancelled: it is done once more some day."""

        async def abort() -> None:
            with contextlib.suppress(BotoCoreError, ClientError, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._client.abort_multipart_upload(**where, UploadId=upload)

        await outlast(asyncio.create_task(abort()))

    async def _parts(
        self, where: Mapping[str, Any], upload: str, source: Source, sent: Callable[[int], None]
    ) -> "list[CompletedPartTypeDef]":
        size = max(PART, -(-source.size // 9_000))  # ten thousand at most
        tasks = []

        async def one(number: int, offset: int) -> "CompletedPartTypeDef":
            async with self._in_memory:
                body = await of_source(source.read(offset, size))
                async with _getting_on(len(body)):
                    done = await self._client.upload_part(**where, UploadId=upload, PartNumber=number, Body=body)
            sent(len(body))
            return {"PartNumber": number, "ETag": done["ETag"]}

        async with asyncio.TaskGroup() as group:
            for number, offset in enumerate(range(0, source.size, size), start=1):
                await of_source(source.there(min(source.size, offset + size)))  # which takes no memory yet
                tasks.append(group.create_task(one(number, offset)))
        return [task.result() for task in tasks]

    async def abandon(self, before: float) -> int:
        """Give up uploads that somebody began before then (seconds since the epoch) and never ended; how many."""
        count = 0
        pages = self._client.get_paginator("list_multipart_uploads").paginate(
            **self._where, Prefix=self._settings.prefix
        )
        with explained():
            async for page in pages:
                for one in page.get("Uploads", ()):
                    if one["Initiated"].timestamp() < before:
                        await self._client.abort_multipart_upload(
                            **self._where, Key=one["Key"], UploadId=one["UploadId"]
                        )
                        count += 1
        return count

    # Whether it all works

    async def trial(self) -> bool:
        """Write, read and remove an object; whether the store knows conditional writes. Raises BucketError."""
        async with self._for_a_try() as key:
            is_conditional = await self.prove(key)
            await self.remove(key)
        return is_conditional

    @contextlib.asynccontextmanager
    async def _for_a_try(self) -> AsyncIterator[str]:
        """A key of nothing, which is that of nothing afterwards."""
        key = f"trial/{secrets.token_hex(8)}"
        try:
            yield key
        finally:
            with contextlib.suppress(BucketError):  # if nothing else works: what does not is said already
                await self.remove(key)

    async def prove(self, key: str) -> bool:
        """Write and read an object; whether the store knows conditional writes. Raises BucketError."""
        await self.write(key, b"one")
        is_conditional = await self._refuses_a_second(key)
        if await self.read(key, 16) != (b"one" if is_conditional else b"two"):
            raise BucketError("what was just written reads as something else")
        return is_conditional

    async def _refuses_a_second(self, key: str) -> bool:
        try:
            await self.write(key, b"two", is_new=True)
        except Taken:
            return True
        except Unconditional:
            await self.write(key, b"two")
        return False

    async def unheeded(self) -> list[str]:
        """What the store accepts of what is configured, and does not do: half a sentence each. Raises BucketError."""
        found = []
        if not await self._keeps_as_configured():
            found.append(
                "it takes store.s3.encryption and does not say that it encrypts: mend that there, or leave the key out"
            )
        if self._settings.expected_bucket_owner is not None and await self._is_anybodys():
            found.append("it does not look whose the bucket is: leave store.s3.expected_bucket_owner out")
        return found

    async def _keeps_as_configured(self) -> bool:
        """Put an object into each class of storage, of whatever size it is for; whether it is encrypted as asked."""
        sizes = {0, *(rule.min_size for rule in self._settings.storage_class)}
        ways = [how for how in map(self._keeping, sizes) if how]
        if not ways:
            return True
        async with self._for_a_try() as key:
            with explained():
                where = {**self._where, "Key": self._key(key)}
                answers = [await self._client.put_object(**where, Body=b"", **how) for how in ways]
        return self._settings.encryption is None or all("ServerSideEncryption" in answer for answer in answers)

    async def _is_anybodys(self) -> bool:
        """Whether the bucket is shown to who expects it to be another account's as well."""
        owner = str(self._settings.expected_bucket_owner)
        other = owner[:-1] + ("1" if owner[-1] == "0" else "0")
        with explained():
            try:
                await self._client.head_bucket(Bucket=self._settings.bucket, ExpectedBucketOwner=other)
            except ClientError as error:
                if code_of(error) in {"403", "AccessDenied"}:
                    return False
                raise
        return True

    def _key(self, key: str) -> str:
        return f"{self._settings.prefix}{key}"

    def _keeping(self, size: int) -> dict[str, Any]:
        """How an object of this size is to be kept: encrypted as configured, and in which class of storage."""
        settings, how = self._settings, dict[str, Any]()
        if settings.encryption is not None:
            how["ServerSideEncryption"] = settings.encryption
        if settings.kms_key_id is not None:
            how["SSEKMSKeyId"] = settings.kms_key_id
        rule = next((rule for rule in settings.storage_class if size >= rule.min_size), None)
        return how if rule is None else {**how, "StorageClass": rule.name}


def _getting_on(size: int) -> asyncio.Timeout:
    """Around sending so many bytes: nobody else limits how long a server may take them at."""
    return asyncio.timeout(2 * STALL + size / SLOWEST)
