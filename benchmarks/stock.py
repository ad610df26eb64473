"""A cache directory with many blobs in it: sparse files, which take inodes and hardly any space."""

import hashlib
import json
import os
import time
from pathlib import Path

BLOB = 128 * 1024  # bytes that each says it has
SHARDS = 256
IMAGE = 20  # blobs of one repository


def fill(folder: Path, count: int) -> None:
    """A cache with so many blobs, of names that are digests of nothing, and repositories that have them."""
    blobs(folder, count)
    links(folder, count)


def blobs(folder: Path, count: int) -> None:
    """Blobs alone."""
    for shard in range(SHARDS):
        directory = folder / "blobs" / "sha256" / f"{shard:02x}"
        directory.mkdir(parents=True, mode=0o700)
        for number in range(shard, count, SHARDS):
            fd = os.open(directory / encoded(number), os.O_WRONLY | os.O_CREAT, 0o400)
            os.truncate(fd, BLOB)
            os.close(fd)
    for path in (folder, folder / "blobs", folder / "blobs" / "sha256"):
        path.chmod(0o700)


def encoded(number: int) -> str:
    """The digest of a blob, without its algorithm: evenly spread."""
    return f"{number % SHARDS:02x}{hashlib.sha256(b'%d' % number).hexdigest()[2:]}"


def links(folder: Path, count: int) -> None:
    """Repositories that contain these blobs, twenty each, with a tag each that leads to one of them."""
    record = json.dumps({"size": BLOB, "mediaType": "application/octet-stream", "cached": time.time()})
    for first in range(0, count, IMAGE):
        repository = folder / "repositories" / "docker.io" / "library" / f"app-{first // IMAGE}"
        for name in ("_links/sha256", "_tags"):
            (repository / name).mkdir(parents=True, mode=0o700)
        for number in range(first, min(first + IMAGE, count)):
            (repository / "_links" / "sha256" / encoded(number)).write_text(record)
        tag = {"digest": f"sha256:{encoded(first)}", "checked": time.time()}
        (repository / "_tags" / "latest").write_text(json.dumps(tag))
