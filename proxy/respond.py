"""The only writer of responses: headers, 200/206/304/416, HEAD, and the short close that says "not all of it"."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Mapping
from dataclasses import dataclass
from typing import Self

from aiohttp import hdrs, web
from aiohttp.helpers import rfc822_formatted_time
from pydantic import SecretStr

from proxy.channel import Channel, Piece, caught_up
from proxy.files import Senders
from proxy.lending import HOLDER, Loan
from proxy.listings import Answer
from proxy.oci import byterange, conditional
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError, Problem
from proxy.reading import Blob
from proxy.revalidation import Served

API_VERSION = {
    "Docker-Distribution-Api-Version": "registry/2.0",
    "Server": "entrepot",
    "X-Content-Type-Options": "nosniff",
}
OCTETS = "application/octet-stream"
SMALL = 32 * 1024  # bytes of a body that aiohttp takes without waiting for the client


class Broken(Exception):
    """A body could not be completed: the connection has been closed short, with a FIN."""


@dataclass(frozen=True, slots=True)
class Print:
    """The head of an answer as it went out, up to its date, to go out again on another one."""

    before: bytes

    @classmethod
    def of(cls, request: web.BaseRequest, response: web.StreamResponse) -> Self:
        """The print of an answer that has gone out."""
        version = request.version
        lines = [f"HTTP/{version.major}.{version.minor} {response.status} {response.reason}"]
        lines += [f"{name}: {value}" for name, value in response.headers.items() if name != hdrs.DATE]
        return cls("\r\n".join([*lines, f"{hdrs.DATE}: "]).encode())

    def dated(self, body: bytes) -> bytes:
        """The answer of now, with this body."""
        return b"".join((self.before, rfc822_formatted_time().encode(), b"\r\n\r\n", body))


class Responder:
    """Answers one request. `sent` counts the bytes of the body that were handed to the connection."""

    def __init__(self, request: web.BaseRequest, senders: Senders, stall_timeout: float) -> None:
        self._request = request
        self._senders = senders
        self._stall_timeout = stall_timeout
        self._extra: dict[str, str] = dict(API_VERSION)
        self.status = 0
        self.sent = 0
        self._length: int | None = None  # of the body, if that was said

    @property
    def is_whole(self) -> bool:
        """Whether the client has been sent all that it was promised."""
        return bool(self.status) and self._length == self.sent

    async def caught_up(self) -> None:
        """Wait for a client that asks on without reading: what it does not read is not to pile up here."""
        await caught_up(self._request, self._stall_timeout)

    def echo_namespace(self, namespace: str | None) -> None:
        """The `ns` that was used, for OCI-Namespace (distribution-spec, "Registry Proxying")."""
        if namespace is not None:
            self._extra["OCI-Namespace"] = namespace

    async def error(self, error: OciError) -> web.StreamResponse:
        """An OCI error body."""
        headers = {}
        if error.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(error.retry_after)))
        if error.problem is Problem.UNSUPPORTED:
            headers["Allow"] = "GET, HEAD"
        return await self._whole(error.problem.status, error.body(), "application/json", headers)

    async def document(self, answer: Answer) -> web.StreamResponse:
        """A listing, or any other whole body."""
        return await self._whole(200, answer.body, answer.media_type, answer.headers)

    async def manifest(self, served: Served) -> web.StreamResponse:
        """A manifest, byte for byte."""
        digest = served.manifest.digest
        headers = {"Docker-Content-Digest": str(digest), "ETag": conditional.etag(digest)}
        if served.warning is not None:
            headers["Warning"] = f'299 - "{served.warning}"'
        if self._is_unmodified(digest):
            return await self._whole(304, b"", None, headers)
        return await self._whole(200, served.manifest.body, served.manifest.media_type, headers)

    async def blob_head(self, digest: Digest, size: int | None) -> web.StreamResponse:
        """The headers of a blob."""
        if self._is_unmodified(digest):
            return await self._whole(304, b"", None, _blob_headers(digest))
        return await self._begin(200, size, OCTETS, _blob_headers(digest))

    async def blob(self, digest: Digest, blob: Blob) -> web.StreamResponse:
        """A blob, or the part of it that was asked for. Raises Broken."""
        headers = _blob_headers(digest)
        if self._is_unmodified(digest):
            return await self._whole(304, b"", None, headers)
        asked = byterange.parse(self._request.headers.getall("Range", ()))
        if (
            asked is None
            or blob.size is None
            or not conditional.if_range(self._request.headers.get("If-Range"), digest)
        ):
            if blob.body is not None:
                return await self._whole(200, blob.body, OCTETS, headers)
            return await self._stream(await self._begin(200, blob.size, OCTETS, headers), blob.read(None))
        span = asked.resolve(blob.size)
        if span is None:
            return await self._whole(416, b"", None, {**headers, "Content-Range": byterange.unsatisfied(blob.size)})
        headers["Content-Range"] = byterange.content_range(span, blob.size)
        if blob.body is not None:
            return await self._whole(206, blob.body[span.start : span.stop], OCTETS, headers)
        return await self._stream(await self._begin(206, span.length, OCTETS, headers), blob.read(span))

    async def loan(self, digest: Digest, holder: str, loan: Loan) -> web.StreamResponse:
        """A blob from an offset on, for another replica. Raises Broken."""
        headers = {"Docker-Content-Digest": str(digest), HOLDER: holder, "Cache-Control": "no-store"}
        return await self._stream(await self._begin(200, loan.length, OCTETS, headers), loan.read())

    async def redirect(self, digest: Digest, url: SecretStr) -> web.StreamResponse:
        """To where the blob is. Whoever has the URL can read it: it is for this client, and for now."""
        headers = {
            "Docker-Content-Digest": str(digest), "Location": url.get_secret_value(), "Cache-Control": "no-store",
        }  # fmt: skip
        return await self._whole(307, b"", None, headers)

    def _is_unmodified(self, digest: Digest) -> bool:
        return conditional.none_match(self._request.headers.getall("If-None-Match", ()), digest)

    async def _whole(
        self, status: int, body: bytes, media_type: str | None, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        length = None if status == 304 else len(body)
        response = await self._begin(status, length, media_type, headers, kind=_Whole)
        if not body or self._request.method == "HEAD":
            return response
        if len(body) <= SMALL:
            await response.write(body)
            self.sent += len(body)
        else:
            channel = Channel(self._request, response, self._senders, self._stall_timeout)
            await channel.put(body)
            self.sent += channel.sent
        return response

    async def _begin(
        self,
        status: int,
        length: int | None,
        media_type: str | None,
        headers: Mapping[str, str],
        *,
        kind: type[web.StreamResponse] = web.StreamResponse,
    ) -> web.StreamResponse:
        response = kind(status=status, headers={**self._extra, **headers})
        if media_type is not None:
            response.headers["Content-Type"] = media_type  # set as it is: aiohttp would add a charset
        if length is not None:
            response.content_length = length
        elif status == 200 and self._request.method != "HEAD" and self._request.version >= (1, 1):
            response.enable_chunked_encoding()
        elif status == 200:
            response.force_close()
        self.status, self._length = status, length
        await response.prepare(self._request)
        return response

    async def _stream(self, response: web.StreamResponse, body: AsyncGenerator[Piece]) -> web.StreamResponse:
        """Send what comes. After the status line the only honest error is a body that ends too soon."""
        channel = Channel(self._request, response, self._senders, self._stall_timeout)
        try:
            async with contextlib.aclosing(body) as pieces:
                async for piece in pieces:
                    await _told(pieces, channel.put(piece))
        except (OciError, OSError) as error:
            self._close_short(response)
            if isinstance(error, ConnectionError):
                raise  # it is the client that left
            raise Broken(error.message if isinstance(error, OciError) else str(error.strerror)) from None
        finally:
            channel.close()
            self.sent += channel.sent
        return response

    def _close_short(self, response: web.StreamResponse) -> None:
        response.force_close()
        if self._request.transport is not None:
            self._request.transport.close()  # what is buffered goes out, then a FIN: containerd resumes after that


class _Whole(web.StreamResponse):
    """A response whose head goes out with its body, in one write."""

    _send_headers_immediately = False  # aiohttp's; one that does not look at it sends the head by itself


def _blob_headers(digest: Digest) -> dict[str, str]:
    return {
        "Docker-Content-Digest": str(digest),
        "ETag": conditional.etag(digest),
        "Accept-Ranges": "bytes",
        "Cache-Control": "max-age=31536000, immutable",
    }


async def _told(pieces: AsyncGenerator[Piece], put: Awaitable[None]) -> None:
    """Send a piece; where its file cannot be read, tell whose it is, who knows what to do. Raises what that raises."""
    try:
        await put
    except ConnectionError:
        raise
    except OSError as error:
        await pieces.athrow(error)
        raise
