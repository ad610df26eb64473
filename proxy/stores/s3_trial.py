"""Whether a bucket does what will be asked of it, by a try of each. Everything raises BucketError."""

import contextlib
import secrets
from collections.abc import AsyncIterator

from botocore.exceptions import ClientError

from proxy.stores.s3 import Bucket
from proxy.stores.s3_errors import BucketError, Taken, Unconditional, code_of, explained


async def trial(bucket: Bucket) -> bool:
    """Write, read and remove an object; whether the store knows conditional writes."""
    async with _for_a_try(bucket) as key:
        is_conditional = await prove(bucket, key)
        await bucket.remove(key)
    return is_conditional


async def prove(bucket: Bucket, key: str) -> bool:
    """Write and read an object, which stays there; whether the store knows conditional writes."""
    await bucket.write(key, b"one")
    is_conditional = await _refuses_a_second(bucket, key)
    if await bucket.read(key, 16) != (b"one" if is_conditional else b"two"):
        raise BucketError("what was just written reads as something else")
    return is_conditional


async def _refuses_a_second(bucket: Bucket, key: str) -> bool:
    try:
        await bucket.write(key, b"two", is_new=True)
    except Taken:
        return True
    except Unconditional:
        await bucket.write(key, b"two")
    return False


async def refuses_its_urls(bucket: Bucket) -> bool:
    """Whether it turns down who comes with a URL that was just made."""
    if bucket.urls is None:
        return False
    async with _for_a_try(bucket) as key:
        await bucket.write(key, b"one")
        with explained():
            return await bucket.urls.is_refused(bucket.access.prefixed(key))


async def unheeded(bucket: Bucket) -> list[str]:
    """What the store accepts of what is configured, and does not do: half a sentence each."""
    found = []
    if not await _keeps_as_configured(bucket):
        found.append(
            "it takes store.s3.encryption and does not say that it encrypts: mend that there, or leave the key out"
        )
    if await _is_anybodys(bucket):
        found.append("it does not look whose the bucket is: leave store.s3.expected_bucket_owner out")
    return found


async def _keeps_as_configured(bucket: Bucket) -> bool:
    """Put an object into each class of storage, of whatever size it is for; whether it is encrypted as asked."""
    access = bucket.access
    sizes = {0, *(rule.min_size for rule in access.settings.storage_class)}
    ways = [how for how in map(access.keeping, sizes) if how]
    if not ways:
        return True
    async with _for_a_try(bucket) as key:
        with explained():
            answers = [await access.client.put_object(**access.object(key), Body=b"", **how) for how in ways]
    return access.settings.encryption is None or all("ServerSideEncryption" in answer for answer in answers)


async def _is_anybodys(bucket: Bucket) -> bool:
    """Whether a bucket that is to be somebody's is shown to who expects it to be another account's as well."""
    owner = bucket.access.settings.expected_bucket_owner
    if owner is None:
        return False
    other = owner[:-1] + ("1" if owner[-1] == "0" else "0")
    with explained():
        try:
            await bucket.access.client.head_bucket(Bucket=bucket.access.settings.bucket, ExpectedBucketOwner=other)
        except ClientError as error:
            if code_of(error) in {"403", "AccessDenied"}:
                return False
            raise
    return True


@contextlib.asynccontextmanager
async def _for_a_try(bucket: Bucket) -> AsyncIterator[str]:
    """A key of nothing, which is that of nothing afterwards."""
    key = f"trial/{secrets.token_hex(8)}"
    try:
        yield key
    finally:
        with contextlib.suppress(BucketError):  # if nothing else works: what does not is said already
            await bucket.remove(key)
