"""Tags and referrers: relayed, since only upstream knows; a failure is never turned into an empty list."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from proxy.manifests import Manifests
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError, Problem
from proxy.oci.manifest import OCI_INDEX
from proxy.oci.pagination import Page, cut, next_link, parse_query, query_of
from proxy.oci.reference import Tag
from proxy.routing import Route
from proxy.upstream import Listing, Upstream

FILTERS = "OCI-Filters-Applied"
LONGEST_ERROR = 64 * 1024  # bytes of an error's body that are worth parsing


@dataclass(frozen=True, slots=True)
class Answer:
    """A listing to send: its body, media type, and headers."""

    body: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Listings:
    """The use case: the tags of a repository, the referrers of a digest. Raises OciError."""

    def __init__(self, upstreams: Mapping[str, Upstream], manifests: Manifests) -> None:
        self._upstreams = upstreams
        self._manifests = manifests

    async def tags(self, route: Route, query: Sequence[tuple[str, str]], path: str) -> Answer:
        """One page of tags; the link to the next one leads to `path`, here."""
        page = parse_query(query)
        if page.n == 0:
            return _tag_list(route, [], None)
        upstream = self._upstreams[route.repository.registry]
        listing = await upstream.listing(route.repository, "tags/list", _asked(page), "application/json")
        if listing.status == 404:
            raise OciError(Problem.NAME_UNKNOWN, f"{upstream.registry} has no repository {route.repository.name}")
        shown, more = cut(await asyncio.to_thread(_tags, upstream, listing), page)
        following = next_link(listing.links)
        rest: list[tuple[str, str]] = []
        if more:
            rest = [("last", shown[-1]), ("n", str(page.n))]
        elif following:
            rest = [(key, value) for key, value in query_of(following) if key != "ns"]
        if rest and route.namespace is not None:
            rest.append(("ns", route.namespace))
        return _tag_list(route, shown, f"{path}?{urlencode(rest)}" if rest else None)

    async def referrers(self, route: Route, digest: Digest, query: Sequence[tuple[str, str]], path: str) -> Answer:
        """What refers to a digest, as upstream says; for one without that API, what its fallback tag says."""
        upstream = self._upstreams[route.repository.registry]
        asked = [(key, value) for key, value in query if key != "ns"]
        parse_query(asked)  # the same rules for what may be passed on
        listing = await upstream.listing(route.repository, f"referrers/{digest}", asked, OCI_INDEX)
        if listing.status == 404:
            return await self._by_fallback_tag(route, upstream, digest, listing)
        answer = await asyncio.to_thread(_object, upstream, listing)
        if not isinstance(answer.get("manifests"), list):
            raise _nonsense(upstream)
        headers = {}
        filters = listing.headers.get(FILTERS)
        if filters is not None and filters.isascii() and filters.isprintable():
            headers[FILTERS] = filters
        following = next_link(listing.links)
        if following:
            rest = [(key, value) for key, value in query_of(following) if key != "ns"]
            if rest and route.namespace is not None:
                rest.append(("ns", route.namespace))
            if rest:  # without a cursor it would lead to where the client is
                headers["Link"] = f'<{path}?{urlencode(rest)}>; rel="next"'
        return Answer(listing.body, OCI_INDEX, headers)

    async def _by_fallback_tag(self, route: Route, upstream: Upstream, digest: Digest, listing: Listing) -> Answer:
        """A 404 means no such repository, or no such API (distribution-spec, "Referrers Tag Schema")."""
        if _says_name_unknown(listing):
            raise OciError(Problem.NAME_UNKNOWN, f"{upstream.registry} has no repository {route.repository.name}")
        tag = Tag.parse(f"{digest.algorithm[:32]}-{digest.encoded[:64]}")
        try:
            served = await self._manifests.get(route.repository, tag)
        except OciError as error:
            if error.problem is not Problem.MANIFEST_UNKNOWN:
                raise
            empty = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
            return Answer(json.dumps(empty).encode(), OCI_INDEX)
        if served.manifest.media_type != OCI_INDEX:
            raise _nonsense(upstream)
        return Answer(served.manifest.body, OCI_INDEX)


def _asked(page: Page) -> list[tuple[str, str]]:
    asked = [] if page.n is None else [("n", str(page.n))]
    return asked + ([] if page.last is None else [("last", page.last)]) + list(page.rest)


def _tag_list(route: Route, tags: Sequence[str], following: str | None) -> Answer:
    body = json.dumps({"name": route.visible, "tags": tags}).encode()
    return Answer(body, "application/json", {} if following is None else {"Link": f'<{following}>; rel="next"'})


def _tags(upstream: Upstream, listing: Listing) -> list[str]:
    answer = _object(upstream, listing)
    found = answer.get("tags")
    if found is None and "tags" in answer:
        return []  # null is what some registries send for it
    if not isinstance(found, list) or not all(isinstance(tag, str) and tag.isprintable() for tag in found):
        raise _nonsense(upstream)
    return found


def _object(upstream: Upstream, listing: Listing) -> Mapping[str, Any]:
    try:
        answer = json.loads(listing.body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise _nonsense(upstream)
    return answer


def _says_name_unknown(listing: Listing) -> bool:
    if len(listing.body) > LONGEST_ERROR:
        return False
    try:
        return bool(json.loads(listing.body)["errors"][0]["code"] == "NAME_UNKNOWN")
    except (ValueError, RecursionError, LookupError, TypeError):
        return False


def _nonsense(upstream: Upstream) -> OciError:
    return OciError(Problem.UPSTREAM_INVALID, f"{upstream.registry} answered a listing that is none")
