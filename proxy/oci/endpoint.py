"""The paths of the distribution spec ("Endpoints"), read from the right because names may contain their keywords."""

import re
from dataclasses import dataclass
from enum import Enum

from proxy.oci.errors import OciError, Problem


class Kind(Enum):
    """What a path asks for."""

    PING = "ping"
    MANIFEST = "manifest"
    BLOB = "blob"
    TAGS = "tags"
    REFERRERS = "referrers"
    UPLOAD = "upload"
    CATALOG = "catalog"


_NOUNS = {"manifests": Kind.MANIFEST, "blobs": Kind.BLOB, "referrers": Kind.REFERRERS}
_UPLOADS = "/blobs/uploads/"
_MIRROR = re.compile(r"[A-Za-z0-9.:-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path taken apart; name and argument are as the client wrote them and not validated yet."""

    kind: Kind
    mirror: str | None = None
    name: str = ""
    argument: str = ""


def parse(path: str) -> Endpoint:
    """Take apart a path that was percent-decoded once; OciError(NOT_FOUND) for what is no registry path."""
    if not path.isascii():
        raise OciError(Problem.NAME_INVALID, "the path is not ASCII", detail=path)
    mirror, rest = _split_mirror(path)
    if rest in ([], [""]):
        return Endpoint(Kind.PING, mirror)
    _check_components(path, rest)
    match rest:
        case ["_catalog"]:
            return Endpoint(Kind.CATALOG, mirror)
        case [_, *_, "tags", "list"]:
            return Endpoint(Kind.TAGS, mirror, "/".join(rest[:-2]))
        case [_, *_, "manifests" | "blobs" | "referrers" as noun, argument]:
            return Endpoint(_NOUNS[noun], mirror, "/".join(rest[:-2]), argument)
        case _:
            return _upload(path, mirror, rest)


def _split_mirror(path: str) -> tuple[str | None, list[str]]:
    match path.split("/"):
        case ["", "v2", *rest]:
            return None, rest
        case ["", mirror, "v2", *rest] if _MIRROR.fullmatch(mirror) and mirror not in {".", ".."}:
            return mirror, rest
        case _:
            raise _not_found(path)


def _check_components(path: str, components: list[str]) -> None:
    # Only the collection of uploads is written with a slash at its end.
    named = components[:-1] if path.endswith(_UPLOADS) else components
    if not {"", ".", ".."}.isdisjoint(named):
        raise OciError(Problem.NAME_INVALID, "the path has an empty or a dot component", detail=path)


def _upload(path: str, mirror: str | None, rest: list[str]) -> Endpoint:
    # Tried last, as all that follows is a session of our own making: we never made one.
    name, _, _ = "/".join(rest).rpartition(_UPLOADS)
    if not name:
        raise _not_found(path)
    return Endpoint(Kind.UPLOAD, mirror, name)


def _not_found(path: str) -> OciError:
    return OciError(Problem.NOT_FOUND, "not a path of a registry", detail=path)
