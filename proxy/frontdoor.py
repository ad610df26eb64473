"""The cache's own front door, for an operator who wants what any client gets: with its log, limits and workers."""

import json
from dataclasses import dataclass
from typing import Any

import aiohttp

from proxy.oci.reference import Reference, Repository
from proxy.sections.server import Server
from proxy.values import Listen

PATIENCE = 30.0  # seconds; the server itself takes no longer
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  where a server listens, and where it is then found


class Closed(Exception):
    """Nobody answers at the configured address."""


@dataclass(frozen=True, slots=True)
class Told:
    """The server's word on a tag: which digest it stands for, what it warns of; or why there is no answer."""

    digest: str | None = None
    warning: str | None = None
    error: str | None = None


class FrontDoor:
    """The registry's listener of the server that this configuration is for."""

    def __init__(self, server: Server) -> None:
        host = _EVERYWHERE.get(server.listen.host, server.listen.host)
        scheme = "http" if server.tls_certificate is None else "https"
        self.url = f"{scheme}://{Listen(host=host, port=server.listen.port)}"

    async def ask(self, repository: Repository, reference: Reference) -> Told:
        """Have upstream asked what a tag stands for now. Raises Closed."""
        url = f"{self.url}/v2/{repository.name}/manifests/{reference}?ns={repository.registry}"
        # Unverified, for the certificate is made out to the name that clients use; nothing secret is said.
        connector = aiohttp.TCPConnector(ssl=False)
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session,
                session.get(url, headers={"Cache-Control": "no-cache"}, allow_redirects=False) as answer,
            ):
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Closed(f"{self.url} ({type(error).__name__})") from None
        if answer.status == 200:
            return Told(answer.headers.get("Docker-Content-Digest"), answer.headers.get("Warning"))
        return Told(error=_message(body, answer.status))


def _message(body: bytes, status: int) -> str:
    try:
        answer: Any = json.loads(body)
        return str(answer["errors"][0]["message"])
    except (ValueError, KeyError, IndexError, TypeError):
        return f"the server answered {status}"
