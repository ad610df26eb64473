"""The operator's listener, apart from the registry's: metrics, and what upstreams still allow."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from proxy.files import hop
from proxy.oci.ratelimit import Budget, State, as_utc
from proxy.stores.base import LimitStore

PAGE = """Entrepot, the operator's side.

/metrics         for Prometheus
/api/upstreams   what upstreams still allow each account, as JSON
"""


class Admin:
    """Answers the operator. `shared` is the directory in which several workers keep their metrics."""

    def __init__(self, registry: CollectorRegistry, limits: LimitStore, shared: Path | None = None) -> None:
        self._registry = registry
        self._limits = limits
        self._shared = shared

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        if request.method not in {"GET", "HEAD"}:
            return web.Response(status=405, text="only GET here\n", headers={"Allow": "GET, HEAD"})
        match request.path:
            case "/metrics":
                return web.Response(body=await hop(self._metrics), headers={"Content-Type": CONTENT_TYPE_LATEST})
            case "/api/upstreams":
                return await self._upstreams()
            case "/":
                return web.Response(text=PAGE)
            case _:
                return web.Response(status=404, text="no such page; see /\n")

    async def _upstreams(self) -> web.Response:
        """From the files that the processes write every few seconds: whichever of them has asked, it is known here."""
        try:
            known = await self._limits.all()
        except OSError as error:
            return web.json_response({"error": f"the store cannot be read ({error.strerror})"}, status=503)
        now = time.time()
        return web.json_response(
            {"upstreams": [_told(registry, account, state, now) for registry, account, state in known]}
        )

    def _metrics(self) -> bytes:
        if self._shared is None:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self._shared))  # type: ignore[no-untyped-call]
        return generate_latest(registry)


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
