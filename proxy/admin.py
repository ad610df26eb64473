"""The operator's listener, apart from the registry's: metrics, and the desk over HTTP, for whoever may."""

import contextlib
import hmac
import ipaddress
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from proxy.desk import Desk
from proxy.files import hop
from proxy.frontdoor import Closed
from proxy.oci.errors import OciError
from proxy.oci.ratelimit import Budget, State, as_utc
from proxy.sections.server import Admin as AdminSection
from proxy.stores.base import LimitStore
from proxy.values import duration, moment

_PORT = re.compile(r":[0-9]+\Z")
KEYS: Mapping[str, Sequence[str]] = {  # of each order
    "/api/refresh": ("images",),
    "/api/pin": ("images", "for"),
    "/api/unpin": ("images",),
    "/api/freeze": ("images", "as_of"),
    "/api/unfreeze": ("images",),
    "/api/remove": ("images", "dry_run"),
    "/api/lifecycle/apply": ("repositories",),
    "/api/lifecycle/preview": ("repositories", "policy"),
}
MAX_BODY = 64 * 1024  # bytes of a question
PAGE = """Entrepot, the operator's side.

/metrics                          for Prometheus

/api/upstreams                    what upstreams still allow each account
/api/images?repository=PATTERN    the images that are cached
/api/image?name=IMAGE             everything that is known of one
/api/usage                        where the bytes are
/api/moves?since=TIME             which tags have moved since then (and repository=PATTERN)
/api/scrub                        how the search for damage gets on, and what the last one found
/api/lifecycle                    what would go by the lifecycle policies (and repository=PATTERN)

By POST, with {"images": [...]} as application/json:
/api/refresh                      ask upstream now
/api/pin, /api/unpin              keep images ("for": "30d"), let them go again
/api/freeze, /api/unfreeze        have tags stand for what they do ("as_of": TIME), or follow upstream again
/api/remove                       take images out ("dry_run": true)

By POST, with {"repositories": [PATTERN]} as application/json, or {} for all:
/api/lifecycle/apply              take out now what would go
/api/lifecycle/preview            what would go by another policy ("policy": its JSON, as text)
"""


class Refused(Exception):
    """A question that is not answered: the status, and why."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Admin:
    """Answers the operator. `shared` is the directory in which several workers keep their metrics."""

    def __init__(
        self,
        settings: AdminSection,
        registry: CollectorRegistry,
        limits: LimitStore,
        desk: Desk,
        shared: Path | None = None,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._limits = limits
        self._desk = desk
        self._shared = shared
        self._questions: Mapping[str, Callable[[web.BaseRequest], Awaitable[object]]] = {
            "/api/upstreams": self._upstreams,
            "/api/images": self._images,
            "/api/image": self._image,
            "/api/usage": self._usage,
            "/api/moves": self._moves,
            "/api/scrub": self._scrub,
            "/api/lifecycle": self._lifecycle,
        }
        self._orders: Mapping[str, Callable[[Mapping[str, Any]], Awaitable[object]]] = {
            "/api/refresh": self._refresh,
            "/api/pin": self._pin,
            "/api/unpin": self._unpin,
            "/api/freeze": self._freeze,
            "/api/unfreeze": self._unfreeze,
            "/api/remove": self._remove,
            "/api/lifecycle/apply": self._apply,
            "/api/lifecycle/preview": self._preview,
        }

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        try:
            return await self._answered(request)
        except Refused as refused:
            return web.json_response({"error": refused.message}, status=refused.status)
        except OciError as error:
            return web.json_response({"error": error.message}, status=error.problem.status)
        except Closed as error:
            return web.json_response({"error": f"the registry's own listener does not answer: {error}"}, status=503)
        except OSError as error:
            return web.json_response({"error": f"the store cannot be read or written ({error.strerror})"}, status=503)

    async def _answered(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        allowed = "POST" if path in self._orders else "GET, HEAD"
        if request.method not in allowed.split(", "):
            return web.Response(status=405, text=f"only {allowed} here\n", headers={"Allow": allowed})
        if path == "/":
            return web.Response(text=PAGE)
        if path == "/metrics":
            return web.Response(body=await hop(self._metrics), headers={"Content-Type": CONTENT_TYPE_LATEST})
        if path in self._questions:
            self._admit(request)
            return web.json_response(await self._questions[path](request))
        if path in self._orders:
            self._admit(request)
            return web.json_response(await self._orders[path](await _read(request)))
        return web.Response(status=404, text="no such page; see /\n")

    # Who may ask

    def _admit(self, request: web.BaseRequest) -> None:
        """Whoever has the token; without one, whoever is on this machine and no web page in its browser."""
        token = self._settings.token
        if token is not None:
            said = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(said.encode("utf-8", "surrogateescape"), token.get_secret_value().encode()):
                raise Refused(HTTPStatus.UNAUTHORIZED, "say the admin token: Authorization: Bearer ...")
        elif not _is_loopback(self._settings.listen.host):
            raise Refused(
                HTTPStatus.FORBIDDEN,
                "admin.listen is no loopback address: set admin.token_env or admin.token_file, and say the token",
            )
        elif not _is_loopback(_PORT.sub("", request.headers.get("Host", ""))):
            raise Refused(HTTPStatus.FORBIDDEN, "ask by 127.0.0.1 or localhost: other names may be a web page's doing")

    # Questions

    async def _images(self, request: web.BaseRequest) -> object:
        return {"images": await hop(self._desk.images, request.query.getall("repository", []))}

    async def _image(self, request: web.BaseRequest) -> object:
        return await hop(self._desk.show, request.query.get("name", ""))

    async def _usage(self, _request: web.BaseRequest) -> object:
        return await hop(self._desk.usage)

    async def _scrub(self, _request: web.BaseRequest) -> object:
        return await hop(self._desk.scrub)

    async def _moves(self, request: web.BaseRequest) -> object:
        since = _moment(request.query.get("since"), "since")
        patterns = request.query.getall("repository", [])
        return {"moves": await hop(self._desk.moves, patterns, 0.0 if since is None else since)}

    async def _lifecycle(self, request: web.BaseRequest) -> object:
        return await hop(self._desk.preview, request.query.getall("repository", []))

    async def _upstreams(self, _request: web.BaseRequest) -> object:
        """From the files that the processes write every few seconds: whichever of them has asked, it is known here."""
        known, now = await self._limits.all(), time.time()
        return {"upstreams": [_told(registry, account, state, now) for registry, account, state in known]}

    # Orders

    async def _refresh(self, order: Mapping[str, Any]) -> object:
        return {"images": await self._desk.refresh(_names(order))}

    async def _pin(self, order: Mapping[str, Any]) -> object:
        span = order.get("for")
        try:
            seconds = None if span is None else duration(span)
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, f"for: {error}") from None
        return {"images": await hop(self._desk.pin, _names(order), seconds)}

    async def _unpin(self, order: Mapping[str, Any]) -> object:
        return {"images": await hop(self._desk.unpin, _names(order))}

    async def _freeze(self, order: Mapping[str, Any]) -> object:
        when = _moment(order.get("as_of"), "as_of")
        return {"images": await hop(self._desk.freeze, _names(order), when)}

    async def _unfreeze(self, order: Mapping[str, Any]) -> object:
        return {"images": await hop(self._desk.unfreeze, _names(order))}

    async def _remove(self, order: Mapping[str, Any]) -> object:
        dry_run = order.get("dry_run", False)
        if not isinstance(dry_run, bool):
            raise Refused(HTTPStatus.BAD_REQUEST, "dry_run: must be true or false")
        return {"images": await hop(self._desk.remove, _names(order), dry_run=dry_run)}

    async def _apply(self, order: Mapping[str, Any]) -> object:
        return await hop(self._desk.apply, _texts(order, "repositories", "docker.io/*"))

    async def _preview(self, order: Mapping[str, Any]) -> object:
        policy = order.get("policy")
        if not isinstance(policy, str):
            raise Refused(HTTPStatus.BAD_REQUEST, "policy: must be the JSON of a policy, as text")
        return await hop(self._desk.preview, _texts(order, "repositories", "docker.io/*"), policy)

    def _metrics(self) -> bytes:
        if self._shared is None:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        registry.register(_Workers(self._shared))
        return generate_latest(registry)


class _Workers(Collector):
    """What all workers have counted, by the files that each of them has in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        """Add it up. The library fails at a file that a starting worker has made and put nothing into yet."""
        begun = []
        for path in self._directory.glob("*.db"):
            with contextlib.suppress(FileNotFoundError):  # of a worker that has died
                if path.stat().st_size:
                    begun.append(str(path))
        merged: Iterable[Metric] = MultiProcessCollector.merge(begun)  # type: ignore[no-untyped-call]
        return merged


def _is_loopback(host: str) -> bool:
    host = host.removeprefix("[").removesuffix("]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _read(request: web.BaseRequest) -> Mapping[str, Any]:
    """The JSON object of an order. No web page can send one by its type without being asked whether it may."""
    if request.content_type != "application/json":
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, 'send {"images": [...]} as application/json')
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MAX_BODY} bytes")
    try:
        order = json.loads(body)
    except (ValueError, RecursionError):
        order = None
    if not isinstance(order, dict):
        raise Refused(HTTPStatus.BAD_REQUEST, 'no JSON object: send {"images": [...]}')
    keys = KEYS[request.path]
    unknown = sorted(order.keys() - set(keys))
    if unknown:
        raise Refused(HTTPStatus.BAD_REQUEST, f"{unknown[0]}: no such key; the keys here are {', '.join(keys)}")
    return order


def _names(order: Mapping[str, Any]) -> list[str]:
    names = _texts(order, "images", "nginx:1.27")
    if not names:
        raise Refused(HTTPStatus.BAD_REQUEST, 'images: must be a list of images, such as ["nginx:1.27"]')
    return names


def _texts(order: Mapping[str, Any], key: str, example: str) -> list[str]:
    texts = order.get(key, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(HTTPStatus.BAD_REQUEST, f'{key}: must be a list of {key}, such as ["{example}"]')
    return texts


def _moment(value: object, key: str) -> float | None:
    try:
        return None if value is None else moment(str(value))
    except ValueError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, f"{key}: {error}") from None


def _told(registry: str, account: str, state: State, now: float) -> Mapping[str, Any]:
    """One account's budget; what is not known is null. Times are in UTC, the window is in seconds."""
    budget = Budget(state=state)
    known = budget.allowance(now)
    pause = budget.pause(now, is_blob=False)
    return {
        "registry": registry,
        "account": account,
        "limit": None if known is None else known.limit,
        "remaining": None if known is None else known.remaining,
        "window": None if known is None else known.window,
        "source": None if known is None else known.source,
        "seen": as_utc(state.seen) if state.seen else None,
        "paused_until": as_utc(now + pause) if pause else None,
        "empty_at": None if known is None or state.empty_at is None else as_utc(state.empty_at),
    }
