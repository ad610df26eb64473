"""What goes wrong with a bucket, in words that say what to do; and what it is not to blame for."""

import contextlib
from collections.abc import Awaitable, Iterator, Mapping
from typing import TypeVar

import aiohttp
from botocore.exceptions import (
    ClientError,
    ConnectionError,  # noqa: A004  of botocore's own
    HTTPClientError,
    SSLError,
)

from proxy.blob_stream import Interrupted
from proxy.stores.payloads import Vanished

T = TypeVar("T")

_TAKEN = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
_DENIED = {"AccessDenied", "403"}
_UNKNOWN = {"NotImplemented", "501"}
_BUSY = {"SlowDown", "RequestTimeout", "503"}
_PASSING = (HTTPClientError, ConnectionError, aiohttp.ClientError, Interrupted, TimeoutError, OSError)


# By S3's own codes, and by the names of botocore's exceptions and of their bases.
_REASONS: Mapping[str, str] = {
    "NoSuchBucket": "there is no such bucket: create it, or check store.s3.bucket",
    "AccessDenied": "the credentials of this machine do not allow it, or the bucket belongs to somebody else: see "
    "docs/s3.md for the policy, and check store.s3.expected_bucket_owner",
    "403": "the credentials of this machine do not allow it, its clock is wrong, or the bucket is somebody else's",
    "InvalidAccessKeyId": "it does not know the access key of this machine",
    "SignatureDoesNotMatch": "the secret of the access key is wrong",
    "ExpiredToken": "the AWS credentials of this machine have expired",
    "RequestTimeTooSkewed": "the clock of this machine is wrong by more than it bears: set it",
    "PermanentRedirect": "the bucket is in another region: check store.s3.region",
    "AuthorizationHeaderMalformed": "the bucket is in another region: check store.s3.region",
    "IllegalLocationConstraintException": "the bucket is in another region: check store.s3.region",
    "301": "the bucket is in another region: check store.s3.region",
    "SlowDown": "it wants fewer requests for a while",
    "503": "it wants fewer requests for a while",
    "MissingContentLength": 'it takes no checksums as trailers: set store.s3.checksums = "when_required"',
    "InvalidArgument": "it does not take how objects are to be kept: check store.s3.encryption, kms_key_id and "
    "storage_class",
    "InvalidStorageClass": "it does not know store.s3.storage_class",
    "KMS.NotFoundException": "there is no such key: check store.s3.kms_key_id",
    "InvalidDigest": "the bytes changed on the way",
    "BadDigest": "the bytes changed on the way",
    "NoCredentialsError": "this machine has no AWS credentials: give it a role, set store.s3.profile, or set "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "PartialCredentialsError": "half of the AWS credentials is missing",
    "ProfileNotFound": "there is no such profile in the AWS configuration: check store.s3.profile",
    "NoRegionError": "its region is not known: set store.s3.region",
    "SSLError": "its certificate could not be verified: check store.s3.ca_file",
    "ConnectTimeoutError": "it does not answer",
    "ReadTimeoutError": "it does not answer",
    "TimeoutError": "it does not answer",
    "Interrupted": "it breaks off in the middle of an object",
    "ConnectionError": "it cannot be reached: check store.s3.endpoint_url",
    "HTTPClientError": "it cannot be reached: check store.s3.endpoint_url",
}


class BucketError(Exception):
    """A bucket has not done what was asked; `reason` says why in half a sentence, without anything secret.

    `passes`: it may be over in a while, and asking again may help.
    """

    def __init__(self, reason: str, *, passes: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.passes = passes


class Taken(BucketError):
    """There is an object of that key already."""


class Unconditional(BucketError):
    """The store knows no conditional writes."""


class _OfPayload(Exception):
    """What was to be uploaded cannot be had: that is no failure of the bucket's."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


async def of_payload(wanted: Awaitable[T]) -> T:
    """What the payload of an upload gives; see payload_apart()."""
    try:
        return await wanted
    except (OSError, Vanished) as error:
        raise _OfPayload(error) from None


@contextlib.contextmanager
def payload_apart() -> Iterator[None]:
    """Around an upload: what its payload fails with is raised as such."""
    failure: BaseException | None = None
    try:
        yield
    except* _OfPayload as group:
        failure = _first(group)
    if isinstance(failure, _OfPayload):
        raise failure.error


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Around what a store may refuse: as BucketError, in words."""
    try:
        yield
    except* _OfPayload:
        raise
    except* Exception as group:  # a library may trip in any way over what a server says
        error = _first(group)
    else:
        return
    raise _error(error) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _error(error: BaseException) -> BucketError:
    if isinstance(error, ClientError):
        code = code_of(error)
        if code in _TAKEN and error.operation_name == "PutObject":
            return Taken("there is an object of that key already")
        if code in _UNKNOWN:
            return Unconditional("it knows no conditional writes")
        asked = f" ({error.operation_name})" if code in _DENIED else ""
        reason = _REASONS.get(code, f"it answered {_plain(code)}") + asked
        return BucketError(reason, passes=_is_passing(error, code))
    if isinstance(error, LookupError):
        return BucketError("it answered with something else: check store.s3.endpoint_url")
    names = (kind.__name__ for kind in type(error).__mro__)
    known = next((_REASONS[name] for name in names if name in _REASONS), None)
    passes = isinstance(error, _PASSING) and not isinstance(error, SSLError)
    return BucketError(known or f"the request failed ({type(error).__name__})", passes=passes)


def _is_passing(error: ClientError, code: str) -> bool:
    """Whether a refusal says that it is too much just now, or that something is broken for a while."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status >= 500 or status == 429 or code in _BUSY


def code_of(error: ClientError) -> str:
    """A store's own word for what is wrong."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _plain(code: str) -> str:
    """A store's own word, if it can be repeated: it may be anybody's."""
    return code if code.isascii() and code.isalnum() and len(code) <= 64 else "with an error of its own"
