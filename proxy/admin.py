"""The operator's listener, apart from the registry's: metrics."""

from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from proxy.files import hop

PAGE = "Entrepot, the operator's side.\n\n/metrics   for Prometheus\n"


class Admin:
    """Answers the operator. `shared` is the directory in which several workers keep their metrics."""

    def __init__(self, registry: CollectorRegistry, shared: Path | None = None) -> None:
        self._registry = registry
        self._shared = shared

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        if request.method not in {"GET", "HEAD"}:
            return web.Response(status=405, text="only GET here\n", headers={"Allow": "GET, HEAD"})
        match request.path:
            case "/metrics":
                return web.Response(body=await hop(self._metrics), headers={"Content-Type": CONTENT_TYPE_LATEST})
            case "/":
                return web.Response(text=PAGE)
            case _:
                return web.Response(status=404, text="no such page; see /\n")

    def _metrics(self) -> bytes:
        if self._shared is None:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self._shared))  # type: ignore[no-untyped-call]
        return generate_latest(registry)
