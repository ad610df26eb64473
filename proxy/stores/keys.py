"""Where everything is: the keys of files in the directory and of objects in a bucket, and what a key means; pure.

blobs/<algorithm>/<two digits>/<hex>          verified bytes, 0400, never opened for writing again
repositories/<registry>/<name>/_tags/<tag>    what a tag stood for, and when upstream was asked
repositories/<registry>/<name>/_history/<tag> each digest that a tag has stood for, and since when
repositories/<registry>/<name>/_links/<algorithm>/<hex>   last modified when a manifest was last asked for
pins/<registry>/<name>/_tags/<tag>, .../_links/<algorithm>/<hex>   what is not to go, and until when
spool/<algorithm>-<hex>, spool/taken-<random> blobs on their way in, from upstream or from a bundle
limits/<registry>/<hex>                       what an upstream allows an account, and until when it is not to be asked
replica                                       32 random bytes: what other replicas on a bucket know this directory by
boot                                          the boot of the machine that last wrote here
changes                                       another content each time that an operator changes something
jobs/<name>                                   when some work was last done, locked by the process that is at it
quarantine/<seconds>-<random>-<name>          what was damaged, or has no place here: never served, dropped in time
recordings/                                   what clients ask for, while somebody records (proxy/recorder.py)
uploads/<key>                                 what has yet to get into the bucket (proxy/stores/uploads.py)
tmp/, ledger/                                 small files on their way in; how much space is taken
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from proxy.oci.digest import Digest
from proxy.oci.errors import OciError
from proxy.oci.reference import Repository, Tag

UPLOADS = "uploads"
_SHARD = re.compile(r"blobs(/sha(256|512)(/[0-9a-f]{2})?)?", re.ASCII)
_LONGEST_DIRECTORY = 1024  # characters; a repository's name has 255 at most


def blob_key(digest: Digest) -> str:
    """Where a blob is kept."""
    return f"blobs/{digest.algorithm}/{digest.encoded[:2]}/{digest.encoded}"


def upload_key(key: str) -> str:
    """The file that says that another one has yet to get into the bucket."""
    return f"{UPLOADS}/{key}"


def spool_key(digest: Digest) -> str:
    """Where a blob grows: the meeting point of all processes that want it."""
    return f"spool/{digest.algorithm}-{digest.encoded}"


def link_key(repository: Repository, digest: Digest) -> str:
    """Where the link of a digest is kept."""
    return f"repositories/{repository}/_links/{digest.algorithm}/{digest.encoded}"


def tag_key(repository: Repository, tag: Tag) -> str:
    """Where it is kept what a tag stands for."""
    return f"repositories/{repository}/_tags/{tag}"


def history_key(repository: Repository, tag: Tag) -> str:
    """Where it is kept what a tag has stood for."""
    return f"repositories/{repository}/_history/{tag}"


def pin_key(repository: Repository, name: Tag | Digest) -> str:
    """Where a pin is kept."""
    key = tag_key(repository, name) if isinstance(name, Tag) else link_key(repository, name)
    return key.replace("repositories/", "pins/", 1)


@dataclass(frozen=True, slots=True)
class Record:
    """A small file of a repository: what kind it is of, and of which tag or digest it speaks."""

    kind: Literal["tag", "link", "pin", "history"]
    repository: Repository
    name: Tag | Digest


def parse_key(key: str) -> Record | None:
    """What the file of a key below repositories/ or pins/ is; None for a stranger."""
    root, _, rest = key.partition("/")
    for marker, kind, read in _RECORDS:
        path, found, name = rest.partition(marker)
        registry, slash, repository = path.partition("/")
        if found and slash and registry:
            try:
                return Record("pin" if root == "pins" else kind, Repository(registry, repository), read(name))
            except OciError:
                return None
    return None


def blob_digest(key: str) -> Digest | None:
    """The digest that a key below blobs/ is for; None for a stranger."""
    algorithm, _, rest = key.removeprefix("blobs/").partition("/")
    shard, _, encoded = rest.partition("/")
    try:
        return Digest(algorithm, encoded) if encoded.startswith(shard) else None
    except OciError:
        return None


def is_directory_of_ours(key: str) -> bool:
    """Whether a directory may be at a key below blobs/, repositories/ or pins/."""
    root, *parts = key.split("/")
    if root == "blobs":
        return _SHARD.fullmatch(key) is not None
    marker = next((number for number, part in enumerate(parts) if part.startswith("_")), len(parts))
    inner = parts[marker + 1 :]
    return len(key) < _LONGEST_DIRECTORY and (not inner or (parts[marker] == "_links" and len(inner) == 1))


def is_another_versions(key: str) -> bool:
    """Whether a directory below repositories/ or pins/ has a mark that is none of ours: a newer version's, perhaps."""
    root, *above, name = key.split("/")
    if root == "blobs" or any(part.startswith("_") for part in above):
        return False
    return name.startswith("_") and not any(marker == f"/{name}/" for marker, _, _ in _RECORDS)


def _digest_of_path(path: str) -> Digest:
    return Digest.parse(path.replace("/", ":", 1))


_RECORDS: tuple[tuple[str, Literal["tag", "link", "history"], Callable[[str], Tag | Digest]], ...] = (
    ("/_tags/", "tag", Tag),
    ("/_links/", "link", _digest_of_path),
    ("/_history/", "history", Tag),
)
