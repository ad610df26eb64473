"""An object store behind the registry: signed URLs that must come back byte for byte."""

import hashlib
import hmac
import ssl

from .ranges import ranged
from .reply import Reply
from .server import FakeServer
from .wire import Request

_SIGNATURE = "&X-Amz-Signature="


class Storage(FakeServer):
    """Serves objects to whoever brings the signed URL, unchanged, with the method it was signed for."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, name: str = "127.0.0.1") -> None:
        super().__init__(tls=tls, name=name)
        self._objects: dict[str, bytes] = {}
        self._expired: set[str] = set()
        self._signed = 0
        self._expired_until = 0

    @property
    def targets(self) -> list[str]:
        """Every request target, byte for byte."""
        return [request.target for request in self.requests]

    def put(self, path: str, data: bytes) -> str:
        """Store an object under a raw path (percent-escapes and dots are kept) and return a URL signed for GET."""
        self._objects[path] = data
        return self.sign(path)

    def sign(self, path: str, method: str = "GET") -> str:
        """A new absolute URL for an object, good for one method."""
        return self.url + self.sign_target(path, method)

    def sign_target(self, path: str, method: str = "GET") -> str:
        """The same, without scheme and host."""
        self._signed += 1
        query = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=k%2Fd&X-Amz-Date={self._signed}"
        return f"{path}?{query}{_SIGNATURE}{_signature(method, f'{path}?{query}')}"

    def expire(self, url: str) -> None:
        """Answer 403 to one URL from now on."""
        self._expired.add(url.removeprefix(self.url))

    def expire_all(self) -> None:
        """Answer 403 to every URL signed so far."""
        self._expired_until = self._signed

    def refusal(self, request: Request) -> Reply | None:
        """What object stores refuse: a second authentication, another method, a changed URL, a late one."""
        if request.header("Authorization") is not None:
            return _error(400, "InvalidArgument", "Only one auth mechanism allowed")
        signed, _, signature = request.target.rpartition(_SIGNATURE)
        if not hmac.compare_digest(signature.encode("latin-1"), _signature(request.method, signed).encode()):
            return _error(403, "SignatureDoesNotMatch", "The request signature does not match")
        if self._is_expired(request):
            return _error(403, "AccessDenied", "Request has expired")
        return None

    def answer(self, request: Request) -> Reply:
        """The object, or a part of it."""
        data = self._objects.get(request.path)
        if data is None:
            return _error(404, "NoSuchKey", "The specified key does not exist")
        headers = (("Content-Type", "binary/octet-stream"), ("ETag", f'"{hashlib.sha256(data).hexdigest()[:32]}"'))
        return ranged(Reply(200, headers, data), request)

    def _is_expired(self, request: Request) -> bool:
        serial = int(dict(request.query)["X-Amz-Date"])
        return serial <= self._expired_until or request.target in self._expired


def _signature(method: str, signed: str) -> str:
    return hmac.new(b"storage key", f"{method} {signed}".encode("latin-1"), hashlib.sha256).hexdigest()


def _error(status: int, code: str, message: str) -> Reply:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Reply(status, (("Content-Type", "application/xml"),), body.encode())
