"""The pull side of the distribution protocol, answered as the spec wants it."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode

from .content import OCI_INDEX, Content, Manifest, Repository, descriptor
from .ranges import ranged
from .reply import Reply, json_reply, oci_error
from .wire import Request

_PATH = re.compile(r"/v2/(?P<repo>.+)/(?P<kind>manifests|blobs|referrers|tags)/(?P<reference>[^/]+)")
_VERSION = ("Docker-Distribution-Api-Version", "registry/2.0")


@dataclass(frozen=True, slots=True)
class Address:
    """What a path names."""

    repo: str
    kind: str
    reference: str


def address_of(path: str) -> Address | None:
    """What a decoded path names, or None."""
    found = _PATH.fullmatch(path)
    return None if found is None else Address(**found.groupdict())


class Distribution:
    """Answers from a registry's content."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self.strict_accept = False
        self._kinds: dict[str, Callable[[Repository, Address, Request], Reply]] = {
            "manifests": self._manifest,
            "blobs": self._blob,
            "referrers": self._referrers,
            "tags": self._tags,
        }

    def answer(self, request: Request) -> Reply:
        """The right answer."""
        return self._answer(request).adding(_VERSION)

    def _answer(self, request: Request) -> Reply:
        if request.method not in {"GET", "HEAD"}:
            return oci_error(405, "UNSUPPORTED", "read only", ("Allow", "GET, HEAD"))
        if request.decoded_path in {"/v2", "/v2/"}:
            return json_reply({})
        address = address_of(request.decoded_path)
        if address is None:
            return oci_error(404, "NAME_UNKNOWN", "no such endpoint")
        repository = self.content.repositories.get(address.repo)
        if repository is None:
            return oci_error(404, "NAME_UNKNOWN", f"no repository {address.repo}")
        return self._kinds[address.kind](repository, address, request)

    def _manifest(self, repository: Repository, address: Address, request: Request) -> Reply:
        found = repository.manifest(address.reference)
        if found is None:
            return oci_error(404, "MANIFEST_UNKNOWN", f"no manifest {address.reference}")
        digest, manifest = found
        if self.strict_accept and manifest.media_type not in (request.header("Accept") or ""):
            return oci_error(404, "MANIFEST_UNKNOWN", "Accept header does not support what was found")
        headers = (("Content-Type", manifest.media_type), ("Docker-Content-Digest", digest))
        return Reply(200, headers, manifest.body)

    def _blob(self, repository: Repository, address: Address, request: Request) -> Reply:
        data = repository.blobs.get(address.reference)
        if data is None:
            return oci_error(404, "BLOB_UNKNOWN", f"no blob {address.reference}")
        headers = (("Content-Type", "application/octet-stream"), ("Docker-Content-Digest", address.reference))
        return ranged(Reply(200, headers, data), request)

    def _tags(self, repository: Repository, address: Address, request: Request) -> Reply:
        asked = dict(request.query)
        names = [tag for tag in sorted(repository.tags) if tag > asked.get("last", "")]
        limit = int(asked.get("n", len(names)))
        page = names[:limit]
        more = bool(page) and len(names) > limit
        following = urlencode({"n": limit, "last": page[-1]}) if more else ""
        link = (("Link", f'</v2/{address.repo}/tags/list?{following}>; rel="next"'),) if more else ()
        return json_reply({"name": address.repo, "tags": page}, *link)

    def _referrers(self, repository: Repository, address: Address, request: Request) -> Reply:
        wanted = dict(request.query).get("artifactType")
        found = [
            entry
            for digest, manifest in repository.manifests.items()
            if (entry := _referrer(digest, manifest, address.reference)) and wanted in (None, entry["artifactType"])
        ]
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}
        applied = (("OCI-Filters-Applied", "artifactType"),) if wanted is not None else ()
        return json_reply(document, *applied, media_type=OCI_INDEX)


def _referrer(digest: str, manifest: Manifest, subject: str) -> dict[str, object] | None:
    """The descriptor of a manifest that refers to the subject, or None."""
    try:
        document = json.loads(manifest.body)
    except ValueError:
        return None
    if not isinstance(document, dict) or (document.get("subject") or {}).get("digest") != subject:
        return None
    kind = document.get("artifactType") or document.get("config", {}).get("mediaType")
    notes = {"annotations": document["annotations"]} if "annotations" in document else {}
    return descriptor(manifest.media_type, digest, len(manifest.body)) | {"artifactType": kind} | notes
