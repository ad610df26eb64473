"""Files on their way into a bucket: nothing of one is visible there before all of it is."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from proxy.files import outlast
from proxy.stores.payloads import Payload
from proxy.stores.s3_access import Access, getting_on
from proxy.stores.s3_errors import explained, of_payload, payload_apart

if TYPE_CHECKING:
    from types_aiobotocore_s3.type_defs import CompletedPartTypeDef

PART = 16 * 1024 * 1024  # bytes of a part of an upload; S3 wants 5 MiB at least, and ten thousand of them at most
PARTS_AT_ONCE = 4  # of all uploads together: as much memory as so many parts
PATIENCE = 2.0  # seconds for what is done on the way out


class Uploader:
    """All uploads of one process, which share so much memory. Every method raises BucketError."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._in_memory = asyncio.Semaphore(PARTS_AT_ONCE)

    async def upload(self, key: str, payload: Payload, sent: Callable[[int], None]) -> None:
        """Put a file in place; what is there already is replaced.

        Without a condition, since who writes a key of a digest writes the same, and parts know none on every store.
        `sent` is told of bytes that have got there. Raises OSError where the file cannot be read, Vanished.
        """
        if payload.size <= PART:
            async with self._in_memory:
                await payload.there(payload.size)
                body = await payload.read(0, payload.size)
                with explained():
                    await self._access.put(key, body)
            sent(payload.size)
            return
        with payload_apart(), explained():
            await self._in_parts(key, payload, sent)

    async def _in_parts(self, key: str, payload: Payload, sent: Callable[[int], None]) -> None:
        client, where = self._access.client, self._access.object(key)
        begun = await client.create_multipart_upload(**where, **self._access.keeping(payload.size))
        upload = begun["UploadId"]
        try:
            parts = await self._parts(key, upload, payload, sent)
            done = await client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
            _ = done["ETag"]
        except BaseException:
            await self._given_up(key, upload)
            raise

    async def _parts(
        self, key: str, upload: str, payload: Payload, sent: Callable[[int], None]
    ) -> "list[CompletedPartTypeDef]":
        size = max(PART, -(-payload.size // 9_000))  # ten thousand at most
        client, where = self._access.client, self._access.object(key)
        tasks = []

        async def one(number: int, offset: int) -> "CompletedPartTypeDef":
            async with self._in_memory:
                body = await of_payload(payload.read(offset, size))
                async with getting_on(len(body)):
                    done = await client.upload_part(**where, UploadId=upload, PartNumber=number, Body=body)
            sent(len(body))
            return {"PartNumber": number, "ETag": done["ETag"]}

        async with asyncio.TaskGroup() as group:
            for number, offset in enumerate(range(0, payload.size, size), start=1):
                await of_payload(payload.there(min(payload.size, offset + size)))  # which takes no memory yet
                tasks.append(group.create_task(one(number, offset)))
        return [task.result() for task in tasks]

    async def _given_up(self, key: str, upload: str) -> None:
        """Give up an upload, if that can be done soon, also for who is cancelled: it is done once more some day."""

        async def abort() -> None:
            with contextlib.suppress(BotoCoreError, ClientError, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._access.client.abort_multipart_upload(**self._access.object(key), UploadId=upload)

        await outlast(asyncio.create_task(abort()))

    async def abandon(self, before: float) -> int:
        """Give up uploads that somebody began before then (seconds since the epoch) and never ended; how many."""
        count, client, where = 0, self._access.client, self._access.bucket
        with explained():
            pages = client.get_paginator("list_multipart_uploads").paginate(**self._access.below(""))
            async for page in pages:
                for one in page.get("Uploads", ()):
                    if one["Initiated"].timestamp() < before:
                        await client.abort_multipart_upload(**where, Key=one["Key"], UploadId=one["UploadId"])
                        count += 1
        return count
