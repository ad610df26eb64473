"""Request -> use case: the one error boundary, and the one line of log that every request leaves."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from pydantic import SecretStr

from proxy import files, repeats
from proxy.accesslog import AccessLog, Record
from proxy.blobs import Blobs
from proxy.encore import LARGEST, Encore, Standing
from proxy.files import Senders
from proxy.lending import PREFIX, Lending
from proxy.listings import Answer, Listings
from proxy.manifests import Manifests
from proxy.oci import endpoint, reference
from proxy.oci.digest import Digest
from proxy.oci.endpoint import Endpoint, Kind
from proxy.oci.errors import OciError, Problem
from proxy.recorder import Recorder
from proxy.redirects import Client, Redirects
from proxy.respond import Broken, Print, Responder
from proxy.routing import Route, Routes, resolve
from proxy.telemetry import Logger, Metrics, Outcome
from proxy.values import moment

ANSWER = 25.0  # seconds until there must be one: containerd gives up at 30, and the work goes on without its client
AS_OF = "Entrepot-As-Of"  # the header in which a client says of when it wants a tag
LONGEST_NUMBER = 19  # digits
READING = frozenset({"GET", "HEAD"})


class Handlers:
    """The registry's side that clients see."""

    def __init__(  # noqa: PLR0913  the composition root hands over what a request may need
        self,
        routes: Routes,
        manifests: Manifests,
        blobs: Blobs,
        listings: Listings,
        *,
        metrics: Metrics,
        log: Logger,
        senders: Senders,
        client_stall_timeout: float,
        recorder: Recorder,
        lending: Lending | None = None,
        redirects: Redirects | None = None,
    ) -> None:
        self._routes = routes
        self._manifests = manifests
        self._blobs = blobs
        self._listings = listings
        self._access_log = AccessLog(metrics, log)
        self._log = log
        self._senders = senders
        self._stall_timeout = client_stall_timeout
        self._recorder = recorder
        self._lending = lending
        self._redirects = redirects
        self.is_ready = False
        self.active = 0  # requests that are being answered
        self._quiet = asyncio.Event()
        self._use_cases: Mapping[
            Kind, Callable[[web.BaseRequest, Responder, Record, Endpoint, Route], Awaitable[web.StreamResponse]]
        ] = {
            Kind.MANIFEST: self._manifest,
            Kind.BLOB: self._blob,
            Kind.TAGS: self._tags,
            Kind.REFERRERS: self._referrers,
        }

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, whatever it is, and leave its line in the log."""
        if request.path in {"/healthz", "/readyz"}:
            return await self._probe(request)
        began = time.monotonic()
        self.active += 1
        responder, record = Responder(request, self._senders, self._stall_timeout), Record()
        try:
            return await self._answered(request, responder, record)
        except asyncio.CancelledError:
            if not responder.is_whole:  # else it had all that it wanted, and was quicker than we
                record.error = "the client left"
            raise
        except ConnectionError:
            record.error = record.error or "the client left"
            if request.transport is not None:
                request.transport.close()
            return web.Response()  # never sent: raised further, aiohttp would log a traceback
        finally:
            self.active -= 1
            self._quiet.set()
            record.status, record.sent = responder.status or record.status, responder.sent
            self._access_log.write(request, record, time.monotonic() - began)

    async def idle(self) -> None:
        """Wait until no request is being answered."""
        while self.active:
            self._quiet.clear()
            await self._quiet.wait()

    async def _answered(self, request: web.BaseRequest, responder: Responder, record: Record) -> web.StreamResponse:
        """The error boundary: whatever is raised becomes an OCI error, or a short body once the headers are out."""
        try:
            await responder.caught_up()
            return await self._dispatch(request, responder, record)
        except OciError as error:
            problem = error
        except Broken as broken:
            record.error = str(broken)
            return web.Response()  # never sent: the connection is closed
        except ConnectionError:
            raise
        except TimeoutError:
            problem = OciError(Problem.UPSTREAM_TIMEOUT, f"{record.upstream} took too long", retry_after=1)
        except OSError as error:
            exhausted = files.is_exhausted(error)
            problem = OciError(
                Problem.OVERLOADED,
                "out of file descriptors" if exhausted else f"the cache's disk fails: {error.strerror}",
                retry_after=2,
            )
        except Exception:
            self._log.exception("a defect: please report it", kind=record.kind)
            problem = OciError(Problem.OVERLOADED, "an error of the cache's own", retry_after=5)
        record.outcome, record.error = Outcome.ERROR, problem.message
        if responder.status:
            raise ConnectionResetError("the answer had begun")
        return await responder.error(problem)

    async def _dispatch(self, request: web.BaseRequest, responder: Responder, record: Record) -> web.StreamResponse:
        if not request.path.startswith("/") or not request.path.isprintable():
            raise OciError(Problem.NAME_INVALID, "the path is no path of a registry")
        if request.path.startswith(PREFIX) and self._lending is not None:
            return await self._lend(request, responder, record, self._lending)
        asked = endpoint.parse(request.path)
        record.kind = asked.kind.value
        if request.method not in READING or asked.kind is Kind.UPLOAD:
            raise OciError(Problem.UNSUPPORTED, "this is a pull-through cache: push to the registry itself")
        if asked.kind is Kind.PING:
            record.outcome = Outcome.LOCAL
            return await responder.document(Answer(b"{}", "application/json"))
        if asked.kind is Kind.CATALOG:
            raise OciError(Problem.NOT_FOUND, "there is no catalog here: a cache does not know all that upstream has")
        route = resolve(self._routes, asked, request.query.getall("ns", []), request.headers.get("Host", ""))
        record.upstream, record.repository = route.repository.registry, route.repository.name
        responder.echo_namespace(route.namespace)
        return await self._use_cases[asked.kind](request, responder, record, asked, route)

    async def _manifest(
        self, request: web.BaseRequest, responder: Responder, record: Record, asked: Endpoint, route: Route
    ) -> web.StreamResponse:
        wanted = reference.parse_reference(asked.argument)
        record.reference = str(wanted)
        anew = "no-cache" in request.headers.get("Cache-Control", "").lower()
        as_of = _as_of(request)
        served = None if anew or as_of is not None else self._manifests.get_again(route.repository, wanted)
        if served is None:
            async with asyncio.timeout(ANSWER):
                served = await self._manifests.get(route.repository, wanted, anew=anew, as_of=as_of)
        record.outcome = served.outcome
        if self._recorder.is_on:
            self._recorder.note(request.remote, "manifest", route.repository, wanted, served.manifest.digest)
        response = await responder.manifest(served)
        if not anew and as_of is None and served.outcome is Outcome.HIT:
            record.status, record.sent = responder.status, responder.sent
            self._offer(
                request, response, record, served.manifest.body,
                lambda: self._manifests.get_again(route.repository, wanted) == served,
            )  # fmt: skip
        return response

    def _offer(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        record: Record,
        body: bytes,
        holds: Callable[[], bool],
    ) -> None:
        """Have a request that has just been answered answered the same when it comes again, as long as that holds."""

        def encore() -> Encore:
            tally = self._access_log.tally(request, record)
            return Encore(Standing(holds), self._recorder, Print.of(request, response), body, tally)

        if len(body) <= LARGEST:
            repeats.offer(request, response, encore)

    async def _blob(
        self, request: web.BaseRequest, responder: Responder, record: Record, asked: Endpoint, route: Route
    ) -> web.StreamResponse:
        digest = Digest.parse(asked.argument)
        record.reference = str(digest)
        if request.method == "HEAD":
            async with asyncio.timeout(ANSWER):
                size = await self._blobs.head(route.repository, digest)
            record.outcome = Outcome.LOCAL
            return await responder.blob_head(digest, size)
        async with asyncio.timeout(ANSWER):
            found = await self._elsewhere(request, route, digest) or await self._blobs.open(
                route.repository, digest, in_part="Range" in request.headers
            )
        if self._recorder.is_on:
            self._recorder.note(request.remote, "blob", route.repository, digest, digest)
        if isinstance(found, SecretStr):
            record.outcome = Outcome.REDIRECT
            return await responder.redirect(digest, found)
        with contextlib.closing(found) as blob:
            record.outcome = blob.outcome
            response = await responder.blob(digest, blob)
            if blob.body is not None and responder.sent == blob.size and self._redirects is None:
                record.status, record.sent = responder.status, responder.sent
                self._offer(
                    request, response, record, blob.body,
                    lambda: self._blobs.is_at_hand(route.repository, digest),
                )  # fmt: skip
            return response

    async def _elsewhere(self, request: web.BaseRequest, route: Route, digest: Digest) -> SecretStr | None:
        """Where the client is to get a blob, if that is not here."""
        if self._redirects is None:
            return None
        client = Client(request.remote, (request.version.major, request.version.minor), request.secure, request.headers)
        return await self._redirects.find(client, route.repository, digest)

    async def _lend(
        self, request: web.BaseRequest, responder: Responder, record: Record, lending: Lending
    ) -> web.StreamResponse:
        """For another replica on the same bucket: what it asks for is no client's business."""
        digest = Digest.parse(request.path.removeprefix(PREFIX))
        record.kind, record.reference, start = "lease", str(digest), request.query.get("start", "0")
        if request.method != "GET" or not (start.isascii() and start.isdigit() and len(start) < LONGEST_NUMBER):
            raise OciError(Problem.BAD_REQUEST, "this is for other replicas: GET, with an offset")
        loan = await lending.open(digest, int(start), request.headers.get("Authorization", ""))
        with contextlib.closing(loan):
            record.outcome = Outcome.LENT
            return await responder.loan(digest, lending.holder, loan)

    async def _tags(
        self, request: web.BaseRequest, responder: Responder, record: Record, _asked: Endpoint, route: Route
    ) -> web.StreamResponse:
        record.outcome = Outcome.RELAY
        async with asyncio.timeout(ANSWER):
            answer = await self._listings.tags(route, list(request.query.items()), request.rel_url.raw_path)
        return await responder.document(answer)

    async def _referrers(
        self, request: web.BaseRequest, responder: Responder, record: Record, asked: Endpoint, route: Route
    ) -> web.StreamResponse:
        digest = Digest.parse(asked.argument)
        record.reference, record.outcome = str(digest), Outcome.RELAY
        async with asyncio.timeout(ANSWER):
            answer = await self._listings.referrers(
                route, digest, list(request.query.items()), request.rel_url.raw_path
            )
        return await responder.document(answer)

    async def _probe(self, request: web.BaseRequest) -> web.StreamResponse:
        """/healthz: the loop answers. /readyz: and new requests are welcome; an outage upstream changes neither."""
        ready = request.path == "/healthz" or self.is_ready
        return web.Response(status=200 if ready else 503, text="ok\n" if ready else "draining\n")


def _as_of(request: web.BaseRequest) -> float | None:
    """Whether a client wants a tag as it was, by a header (containerd can be told to send one) or in the query."""
    text = request.headers.get(AS_OF, request.query.get("as-of"))
    try:
        return None if text is None else moment(text)
    except ValueError as error:
        raise OciError(Problem.BAD_REQUEST, f"{AS_OF}: {error}") from None
