"""The fake registry: content, authentication, faults, all on one port."""

import asyncio
import ssl
from collections.abc import Collection, Mapping

from .auth import TOKEN_PATH, Basic, Bearer, BearerTerms, Guard, Open, TokenRequest
from .content import Content
from .distribution import Distribution, address_of
from .reply import Reply
from .server import FakeServer
from .storage import Storage
from .wire import Request


class FakeRegistry(FakeServer, Content):
    """An upstream registry that is right by default and wrong on demand."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, name: str = "127.0.0.1") -> None:
        FakeServer.__init__(self, tls=tls, name=name)
        Content.__init__(self)
        self._distribution = Distribution(self)
        self._guard: Guard = Open()
        self._bearer: Bearer | None = None
        self._elsewhere: tuple[Storage, int] | None = None

    @property
    def token_requests(self) -> list[TokenRequest]:
        """What the token endpoint was asked, in order."""
        return [] if self._bearer is None else self._bearer.requests

    def require_bearer(
        self,
        *,
        realm: str | None = None,
        service: str | None = "fake",
        scope_placeholder: bool = False,
        users: Mapping[str, str] | None = None,
        expires_in: int | None = 300,
        token_key: str = "token",  # noqa: S107 - a JSON key
        anonymous: bool = True,
        grants: Mapping[str | None, Collection[str]] | None = None,
        post: bool = False,
    ) -> None:
        """Ask for a token bound to the repository; `grants` limits users (None: anonymous) to repositories."""
        own = realm if realm is not None else self.url + TOKEN_PATH
        terms = BearerTerms(
            own, service, scope_placeholder, users or {}, expires_in, token_key, anonymous, grants, post
        )
        self._bearer = Bearer(terms, asyncio.get_running_loop().time)
        self._guard = self._bearer

    def require_basic(self, users: Mapping[str, str], realm: str = "fake") -> None:
        """Ask for a user and a password with every request."""
        self._guard = Basic(users, realm)

    def require_nothing(self) -> None:
        """Let everyone in again."""
        self._guard = Open()

    def revoke_all(self) -> None:
        """Make every token handed out so far invalid."""
        if self._bearer is not None:
            self._bearer.tokens.clear()

    def require_accept(self) -> None:
        """Answer 404 to a manifest request whose Accept does not list the stored type, as ghcr.io does."""
        self._distribution.strict_accept = True

    def redirect_blobs_to(self, storage: Storage, *, status: int = 307) -> None:
        """Redirect each GET of a blob that is here to the storage, with a freshly signed URL; not a HEAD."""
        self._elsewhere = (storage, status)

    def refusal(self, request: Request) -> Reply | None:
        """What authentication says."""
        return None if request.path == TOKEN_PATH else self._guard.refusal(request)

    def answer(self, request: Request) -> Reply:
        """The right answer."""
        if request.path == TOKEN_PATH and self._bearer is not None:
            return self._bearer.token(request)
        reply = self._distribution.answer(request)
        return reply if self._elsewhere is None else self._redirected(request, reply, *self._elsewhere)

    def _redirected(self, request: Request, reply: Reply, storage: Storage, status: int) -> Reply:
        address = address_of(request.decoded_path)
        if request.method != "GET" or address is None or address.kind != "blobs" or reply.status == 404:
            return reply
        data = self.repositories[address.repo].blobs[address.reference]
        return Reply(status, (("Location", storage.put(f"/bucket{request.path}", data)),))
