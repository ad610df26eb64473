"""Which upstream and which repository a request means; the names are a closed list, and nothing falls through."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from proxy.oci.digest import Digest
from proxy.oci.endpoint import Endpoint
from proxy.oci.errors import OciError, Problem
from proxy.oci.reference import Reference, Repository, Tag

HUB = "docker.io"

_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[0-9]{1,5})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Routes:
    """The names that lead to each upstream: `names` in `ns` or in the path, `hosts` in the Host header."""

    names: Mapping[str, str]
    hosts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request leads. `namespace`: the `ns` to echo; `visible`: the repository's name as the client knows it."""

    repository: Repository
    visible: str
    namespace: str | None


def resolve(routes: Routes, endpoint: Endpoint, namespaces: Sequence[str], host: str) -> Route:
    """Find the repository that a request means.

    In this order: `ns`, a path component on either side of /v2/, the Host header, the default upstream.
    Raises OciError.
    """
    namespace = _namespace(namespaces)
    name = endpoint.name
    if namespace is not None:
        registry = _known(routes, namespace)
        name = _without_prefix(routes, registry, name)
    elif endpoint.mirror is not None:
        registry = _known(routes, endpoint.mirror.lower())
    else:
        registry, name = _by_name(routes, name, host.lower())
    if registry == HUB and "/" not in name:
        name = f"library/{name}"
    return Route(Repository.parse(registry, name), endpoint.name, namespace)


def image(routes: Routes, text: str) -> tuple[Repository, Reference]:
    """What people call an image, as a pull of it would be routed: "nginx", "ghcr.io/acme/app:v1", "app@sha256:...".

    Raises OciError.
    """
    name, at, digest = text.partition("@")
    head, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # the colon of a port
        head, tag = name, "latest"
    registry, path = _by_name(routes, head, "")
    if registry == HUB and "/" not in path:
        path = f"library/{path}"
    return Repository.parse(registry, path), Digest.parse(digest) if at else Tag.parse(tag)


def _namespace(values: Sequence[str]) -> str | None:
    if not values:
        return None
    value = values[0].lower()
    if len(values) > 1:
        raise OciError(Problem.BAD_REQUEST, "ns is given more than once")
    if not value.isascii() or len(value) > 255 or not _HOST.fullmatch(value):
        raise OciError(Problem.BAD_REQUEST, "ns is no registry host")
    return value


def _known(routes: Routes, name: str) -> str:
    registry = routes.names.get(name)
    if registry is None:
        raise OciError(Problem.NAME_UNKNOWN, f"the registry {name} is not configured here")
    return registry


def _without_prefix(routes: Routes, registry: str, name: str) -> str:
    """containerd with override_path names the registry in the path, and in `ns` all the same."""
    first, slash, rest = name.partition("/")
    return rest if slash and routes.names.get(first.lower()) == registry else name


def _by_name(routes: Routes, name: str, host: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and first.lower() in routes.names:
        return routes.names[first.lower()], rest
    registry = routes.hosts.get(host) or routes.hosts.get(host.partition(":")[0])
    if registry is not None:
        return registry, name
    if slash and ("." in first or ":" in first or first == "localhost"):
        # By every client's rule this is a registry; Docker Hub must not be asked for it in its place.
        return _known(routes, first.lower()), rest
    if routes.default is None:
        raise OciError(Problem.NAME_UNKNOWN, f"no upstream is the default: write the registry in front of {name}")
    return routes.default, name
