"""The desk of a running server, by its admin listener."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import aiohttp
from yarl import URL

from proxy.desk import Answer
from proxy.oci.errors import OciError, Problem
from proxy.oci.ratelimit import as_utc

TOKEN = "ENTREPOT_TOKEN"  # noqa: S105  the variable's name
PATIENCE = 120.0  # seconds: a large cache takes a while to list


class Unanswered(Exception):
    """No answer, or one that is none of an admin listener's."""


class Remote:
    """As a desk; every method raises OciError for what cannot be answered, and Unanswered."""

    def __init__(self, server: str) -> None:
        """`server` is the URL of its admin listener, or host:port."""
        wrong = Unanswered(f'--server: {server!r} is no address: write "127.0.0.1:5001" or a URL')
        try:
            self._url = URL(server if "://" in server else f"http://{server}")
        except ValueError:
            raise wrong from None
        if self._url.scheme not in {"http", "https"} or not self._url.host:
            raise wrong

    def images(self, patterns: Sequence[str]) -> list[Answer]:
        """The images that are cached."""
        found: list[Answer] = self._get("/api/images", [("repository", one) for one in patterns])["images"]
        return found

    def usage(self) -> Answer:
        """Where the bytes are."""
        return self._get("/api/usage", [])

    def show(self, name: str) -> Answer:
        """Everything that is known of one image."""
        return self._get("/api/image", [("name", name)])

    def remove(self, names: Sequence[str], *, dry_run: bool) -> list[Answer]:
        """Take images out, or say what would go."""
        return self._post("/api/remove", names, dry_run=dry_run)

    def pin(self, names: Sequence[str], seconds: float | None) -> list[Answer]:
        """Keep images."""
        return self._post("/api/pin", names, **({} if seconds is None else {"for": f"{seconds:.0f}s"}))

    def unpin(self, names: Sequence[str]) -> list[Answer]:
        """Let images go again."""
        return self._post("/api/unpin", names)

    def moves(self, patterns: Sequence[str], since: float) -> list[Answer]:
        """Which tags have moved since then."""
        query = [("since", as_utc(since)), *(("repository", one) for one in patterns)]
        found: list[Answer] = self._get("/api/moves", query)["moves"]
        return found

    def preview(self, patterns: Sequence[str], policy: str | None = None) -> Answer:
        """What would go now by lifecycle policies, or by this one."""
        if policy is None:
            return self._get("/api/lifecycle", [("repository", one) for one in patterns])
        return self._order("/api/lifecycle/preview", {"repositories": list(patterns), "policy": policy})

    def apply(self, patterns: Sequence[str]) -> Answer:
        """Have go what lifecycle policies say."""
        return self._order("/api/lifecycle/apply", {"repositories": list(patterns)})

    def freeze(self, names: Sequence[str], when: float | None) -> list[Answer]:
        """Have tags stand for what they do, or did then."""
        return self._post("/api/freeze", names, **({} if when is None else {"as_of": as_utc(when)}))

    def unfreeze(self, names: Sequence[str]) -> list[Answer]:
        """Have upstream asked again."""
        return self._post("/api/unfreeze", names)

    def refresh(self, names: Sequence[str]) -> list[Answer]:
        """Ask upstream now."""
        return self._post("/api/refresh", names)

    def _get(self, path: str, query: Sequence[tuple[str, str]]) -> Answer:
        return asyncio.run(self._ask("GET", self._url.with_path(path).with_query(list(query)), None))

    def _post(self, path: str, names: Sequence[str], **more: Any) -> list[Answer]:
        answers: list[Answer] = self._order(path, {"images": list(names), **more})["images"]
        return answers

    def _order(self, path: str, order: Answer) -> Answer:
        return asyncio.run(self._ask("POST", self._url.with_path(path), order))

    async def _ask(self, method: str, url: URL, order: Answer | None) -> Answer:
        token = os.environ.get(TOKEN)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
                session.request(method, url, json=order, headers=headers, allow_redirects=False) as answer,
            ):
                body = await answer.json()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Unanswered(f"no answer from {self._url}: {str(error) or type(error).__name__}") from None
        if not isinstance(body, dict) or (answer.status != 200 and "error" not in body):
            raise Unanswered(f"{self._url} is no admin listener of Entrepot's")
        if answer.status != 200:
            problem = Problem.NOT_FOUND if answer.status == 404 else Problem.BAD_REQUEST
            raise OciError(problem, str(body["error"]))
        return body
