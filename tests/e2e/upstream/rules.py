"""`upstream.on(...)`: which requests are answered wrongly, how, and how many times."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from . import behaviours as b
from .gates import Gate, Steps
from .reply import BEFORE_HEAD, PIECE, Ending, Framing, Reply
from .wire import Header, Request


@dataclass(frozen=True, slots=True)
class Match:
    """Which requests a rule is for; what is left out matches all."""

    method: str | None = None
    path: str | None = None
    path_contains: str | None = None
    repo: str | None = None
    blob: str | None = None
    manifest: str | None = None
    where: Callable[[Request], bool] | None = None
    unauthorized: bool = False

    def fits(self, request: Request, *, refused: bool) -> bool:
        """Whether the rule is for this request."""
        path = request.decoded_path
        return (
            self.method in (None, request.method)
            and (self.unauthorized or not refused)
            and (self.path is None or self.path in (path, request.path))
            and (self.path_contains is None or self.path_contains in path)
            and (self.repo is None or path.startswith(f"/v2/{self.repo}/"))
            and (self.blob is None or path.endswith(f"/blobs/{self.blob}"))
            and (self.manifest is None or path.endswith(f"/manifests/{self.manifest}"))
            and (self.where is None or self.where(request))
        )


@dataclass(slots=True)
class Rule:
    """One line of a test's script. Each call adds a behaviour; those that give a handle come last."""

    match: Match
    times: int | None = None
    skip: int = 0
    applied: int = 0
    """How many answers it has changed."""
    behaviours: list[b.Behaviour] = field(default_factory=list)

    def takes(self, request: Request, *, refused: bool) -> bool:
        """Whether the rule has this request; counts it if so."""
        if (self.times is not None and self.applied >= self.times) or not self.match.fits(request, refused=refused):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.applied += 1
        return True

    def apply(self, reply: Reply, asked: b.Asked) -> Reply:
        """The answer as the rule wants it."""
        for behaviour in self.behaviours:
            reply = behaviour(reply, asked)
        return reply

    def stop(self) -> None:
        """Change no further answer."""
        self.times = self.applied

    def then(self, behaviour: b.Behaviour) -> Self:
        """Add any behaviour, one of your own included."""
        self.behaviours.append(behaviour)
        return self

    # What is said.

    def status(self, code: int, headers: tuple[Header, ...] | list[Header] = (), body: bytes | None = None) -> Self:
        """Answer with a status, an OCI error by default."""
        return self.then(b.Status(code, tuple(headers), body))

    def body(self, data: bytes) -> Self:
        """Send another body, correctly framed."""
        return self.then(b.Body(data))

    def wrong_bytes(self, at: int | None = None) -> Self:
        """Flip one byte; the length stays."""
        return self.then(b.WrongBytes(at))

    def resized(self, by: int) -> Self:
        """Send so many bytes more or less than there are, with a Content-Length that agrees."""
        return self.then(b.Resized(by))

    def longer(self, by: int = 1) -> Self:
        """Send more than Content-Length says."""
        return self.then(b.Misdeclared(by))

    def shorter(self, by: int = 1) -> Self:
        """Send less than Content-Length says, then FIN."""
        return self.then(b.Misdeclared(-by))

    def ignore_range(self) -> Self:
        """Answer 200 with everything to a Range."""
        return self.then(b.IgnoresRange())

    def wrong_content_range(self, value: str | None = None) -> Self:
        """Give a 206 a false Content-Range, one byte off unless told."""
        return self.then(b.WrongContentRange(value))

    def different_body_on_range(self) -> Self:
        """Answer a Range with as many, but other, bytes."""
        return self.then(b.OtherBodyOnRange())

    def redirect(self, location: str | Callable[[Request], str], status: int = 307) -> Self:
        """Redirect; the Location is sent byte for byte."""
        return self.then(b.Redirected(location, status))

    def lying_digest(self, digest: str = "sha256:" + "0" * 64) -> Self:
        """Claim another Docker-Content-Digest."""
        return self.then(b.HeaderSet("Docker-Content-Digest", digest))

    def no_digest(self) -> Self:
        """Leave Docker-Content-Digest out."""
        return self.then(b.HeaderDropped(("Docker-Content-Digest",)))

    def no_content_type(self) -> Self:
        """Leave Content-Type out."""
        return self.then(b.HeaderDropped(("Content-Type",)))

    def content_type(self, value: str) -> Self:
        """Claim another Content-Type."""
        return self.then(b.HeaderSet("Content-Type", value))

    def content_encoding_gzip(self) -> Self:
        """Gzip the body and say so, asked for or not."""
        return self.then(b.Gzipped())

    def set_cookie(self, value: str = "session=hostile; Path=/") -> Self:
        """Set a cookie."""
        return self.then(b.HeaderAdded((("Set-Cookie", value),)))

    def extra_headers(self, *pairs: Header) -> Self:
        """Add header lines as they are: control characters and repeats included."""
        return self.then(b.HeaderAdded(pairs))

    def set_header(self, name: str, value: str) -> Self:
        """Give a header another value."""
        return self.then(b.HeaderSet(name, value))

    def drop_headers(self, *names: str) -> Self:
        """Leave headers out."""
        return self.then(b.HeaderDropped(names))

    # How it is framed.

    def no_content_length(self) -> Self:
        """End the body by closing the connection."""
        return self.then(b.Framed(Framing.CLOSE))

    def chunked(self, size: int = PIECE) -> Self:
        """Send the body in chunks."""
        return self.then(b.Framed(Framing.CHUNKED, size))

    def chunked_truncated(self, after: int, size: int = PIECE) -> Self:
        """Send chunks, stop after so many body bytes (inside a chunk unless on its end), then FIN."""
        return self.chunked(size).truncate(after)

    def raw(self, data: bytes) -> Self:
        """Send exactly these bytes as the whole answer, and keep the connection."""
        return self.then(b.Raw(data))

    def trailing(self, data: bytes) -> Self:
        """Send bytes nobody asked for right behind the answer."""
        return self.then(b.Trailed(data))

    # How it ends.

    def truncate(self, after: int) -> Self:
        """Send so many bytes of the body, then FIN."""
        return self.then(b.Cut(after, Ending.FIN))

    def reset(self, after: int = BEFORE_HEAD) -> Self:
        """Send so many bytes of the body (by default not even the head), then RST."""
        return self.then(b.Cut(after, Ending.RESET))

    def close_without_answer(self) -> Self:
        """Close with FIN before the first byte."""
        return self.then(b.Cut(BEFORE_HEAD, Ending.FIN))

    # How it is held: these give the handle that lets it go on.

    def gate(self, after: int = 0) -> Gate:
        """Stop after so many bytes of the body until the gate is opened."""
        return self._held(after)

    def stall(self, after: int = 0) -> Gate:
        """Stop after so many bytes of the body, for good unless released."""
        return self._held(after)

    def hang(self) -> Gate:
        """Take the request and answer nothing, not even a head, for good unless released."""
        return self._held(BEFORE_HEAD)

    def drip(self, bytes_per_step: int = 1, every: float | None = None) -> Steps:
        """Send the body so many bytes per step: a step() of the test, or one every so many seconds."""
        steps = Steps(every)
        self.then(b.Dripped(bytes_per_step, steps))
        return steps

    def slow_headers(self, bytes_per_step: int = 1, every: float | None = None) -> Steps:
        """Send the head so many bytes per step."""
        steps = Steps(every)
        self.then(b.SlowHead(bytes_per_step, steps))
        return steps

    def second_response(self, body: bytes = b"unsolicited", *headers: Header, status: int = 200) -> Gate:
        """Once the gate is opened, send a whole second response on the then idle connection."""
        gate, extra = Gate(), Reply(status, headers, body)
        self.then(b.Trailed(extra.head() + extra.body, gate))
        return gate

    def _held(self, after: int) -> Gate:
        gate = Gate()
        self.then(b.Held(after, gate))
        return gate
