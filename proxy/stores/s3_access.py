"""What every request to a bucket has in common: which bucket, whose, below which prefix, and how objects are kept."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from proxy.sections.store import S3

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import PutObjectOutputTypeDef

STALL = 30.0  # seconds without a byte
SLOWEST = 64 * 1024  # bytes a second at which an upload has to get on


@dataclass(frozen=True, slots=True)
class Access:
    """The client that asks, and what the configuration has it say. What it raises is botocore's."""

    client: "S3Client" = field(repr=False)
    settings: S3

    @property
    def bucket(self) -> dict[str, Any]:
        """The arguments that name the bucket, and whose it is to be."""
        owner = self.settings.expected_bucket_owner
        return {"Bucket": self.settings.bucket, **({} if owner is None else {"ExpectedBucketOwner": owner})}

    def object(self, key: str) -> dict[str, Any]:
        """The arguments that name an object."""
        return {**self.bucket, "Key": self.prefixed(key)}

    def below(self, prefix: str) -> dict[str, Any]:
        """The arguments that name all objects whose keys begin so."""
        return {**self.bucket, "Prefix": self.prefixed(prefix)}

    def prefixed(self, key: str) -> str:
        """The store's key for ours."""
        return f"{self.settings.prefix}{key}"

    def keeping(self, size: int) -> dict[str, Any]:
        """How an object of this size is to be kept: encrypted as configured, and in which class of storage."""
        settings, how = self.settings, dict[str, Any]()
        if settings.encryption is not None:
            how["ServerSideEncryption"] = settings.encryption
        if settings.kms_key_id is not None:
            how["SSEKMSKeyId"] = settings.kms_key_id
        rule = next((rule for rule in settings.storage_class if size >= rule.min_size), None)
        return how if rule is None else {**how, "StorageClass": rule.name}

    async def put(self, key: str, body: bytes, **condition: Any) -> "PutObjectOutputTypeDef":
        """Put an object in place at once."""
        async with getting_on(len(body)):
            done = await self.client.put_object(**self.object(key), Body=body, **condition, **self.keeping(len(body)))
        _ = done["ETag"]  # a 200 of somebody in between has none
        return done


def getting_on(size: int) -> asyncio.Timeout:
    """Around sending so many bytes: nobody else limits how long a server may take them at."""
    return asyncio.timeout(2 * STALL + size / SLOWEST)
