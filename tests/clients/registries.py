"""Upstream: Debian's docker-registry, filled over its HTTP API, that can be stopped and started again."""

import contextlib
import http.client
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from .images import Content, Image
from .processes import Daemon, accepts, free_port

CONFIG = """\
version: 0.1
log: {{level: warn}}
storage:
  {storage}
http:
  addr: 127.0.0.1:{port}
  secret: made-up
{more}
"""


class Registry:
    """One registry that clients know as `name`; `storage` and `more` are of its configuration."""

    def __init__(self, name: str, directory: Path, *, storage: str | None = None, more: str = "") -> None:
        self.name = name
        self.port = free_port()
        self.log = directory / f"{name}.log"
        self._config = directory / f"{name}.yml"
        storage = f"filesystem: {{rootdirectory: {directory / name}}}" if storage is None else storage
        self._config.write_text(CONFIG.format(storage=storage, port=self.port, more=more))
        self._daemon: Daemon | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serve, on the same port and with the same content as before."""
        # With a bundle of authorities in the environment the driver for S3 does not start.
        command = ["docker-registry", "serve", str(self._config)]
        self._daemon = Daemon(command, self.log, {"AWS_CA_BUNDLE": ""})
        self._daemon.wait_until(lambda: accepts(self.port))

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._daemon is not None:
            self._daemon.stop()
        self._daemon = None

    def downloads(self, image: Image) -> Counter[str]:
        """How often each of an image's blobs was asked for since the log was last emptied."""
        return Counter(re.findall(rf'"GET /v2/{image.repository}/blobs/(\S+) HTTP', self.log.read_text()))

    def asked(self, image: Image, digest: str) -> list[tuple[str, int]]:
        """Method and status of the requests for a blob since the log was last emptied."""
        line = rf'"([A-Z]+) /v2/{image.repository}/blobs/{digest} HTTP/1\.\d" (\d+)'
        return [(method, int(status)) for method, status in re.findall(line, self.log.read_text())]

    def push(self, image: Image, tags: Sequence[str] = ("latest",)) -> None:
        """Store an image: blobs first, then manifests by digest, then the tags."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            for manifest in image.manifests:
                for blob in manifest.blobs:
                    self._push_blob(connection, image.repository, blob)
                self._push_manifest(connection, image.repository, manifest.content, manifest.content.digest)
            for tag in tags:
                self._push_manifest(connection, image.repository, image.top, tag)

    def _push_blob(self, connection: http.client.HTTPConnection, repository: str, blob: Content) -> None:
        location = _ask(connection, "POST", f"/v2/{repository}/blobs/uploads/", 202)
        upload = urlsplit(location)
        target = f"{upload.path}?{upload.query}&digest={blob.digest}"
        _ask(connection, "PUT", target, 201, Content("application/octet-stream", blob.body))

    def _push_manifest(
        self, connection: http.client.HTTPConnection, repository: str, manifest: Content, reference: str
    ) -> None:
        _ask(connection, "PUT", f"/v2/{repository}/manifests/{reference}", 201, manifest)


def _ask(
    connection: http.client.HTTPConnection, method: str, target: str, expected: int, content: Content | None = None
) -> str:
    """Send one request and return the Location of the answer."""
    body = content.body if content is not None else b""
    headers = {"Content-Type": content.media_type} if content is not None else {}
    connection.request(method, target, body, headers)
    answer = connection.getresponse()
    said = answer.read()
    assert answer.status == expected, f"{method} {target}: {answer.status} {said[:500]!r}"
    return answer.headers.get("Location", "")


class Upstreams:
    """The registries behind the proxy."""

    def __init__(self, directory: Path, images: dict[str, Image]) -> None:
        self.images = images
        names = sorted({image.registry for image in images.values()})
        self._registries = {name: self._made(name, directory) for name in names}

    def _made(self, name: str, directory: Path) -> Registry:
        return Registry(name, directory)

    @property
    def urls(self) -> dict[str, str]:
        return {name: registry.url for name, registry in self._registries.items()}

    def of(self, image: Image) -> Registry:
        """The registry that holds an image."""
        return self._registries[image.registry]

    def forget(self) -> None:
        """Empty the access logs: from now on `downloads` counts anew."""
        for registry in self._registries.values():
            os.truncate(registry.log, 0)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Serve the images for as long as the block lasts."""
        with self.started():
            for image in self.images.values():
                self.of(image).push(image)
            yield

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Be down for as long as the block lasts."""
        try:
            self._stop()
            assert not any(accepts(registry.port) for registry in self._registries.values())
            yield
        finally:
            self._start()

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """Be up for as long as the block lasts."""
        try:
            self._start()
            yield
        finally:
            self._stop()

    def _start(self) -> None:
        for registry in self._registries.values():
            registry.start()

    def _stop(self) -> None:
        for registry in self._registries.values():
            registry.stop()


class Stored(Upstreams):
    """Registries whose content is on S3."""

    def __init__(self, directory: Path, images: dict[str, Image], driver: str) -> None:
        self._driver = driver
        super().__init__(directory, images)

    def _made(self, name: str, directory: Path) -> Registry:
        return Registry(name, directory, storage=self._driver)


class Mirrors(Upstreams):
    """docker-registry as a pull-through cache, in front of other registries.

    It is what is counted: by itself it takes a blob twice from behind, to send it and to keep it.
    """

    def __init__(self, directory: Path, behind: Upstreams) -> None:
        self._behind = behind
        super().__init__(directory, behind.images)

    def _made(self, name: str, directory: Path) -> Registry:
        return Registry(f"mirror-{name}", directory, more=f"proxy: {{remoteurl: {self._behind.urls[name]}}}")
