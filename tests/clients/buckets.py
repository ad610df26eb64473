"""An S3 server that holds signatures against what they were made for: a method, a path, a moment."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from .processes import Daemon, accepts, built, free_port

PACKAGE, VERSION = "github.com/versity/versitygw/cmd/versitygw", "v1.8.0"
USER, SECRET, BUCKET = "made-up", "made-up-secret", "images"


def what_is_missing() -> str | None:
    """Why there can be none on this machine, in a sentence."""
    if shutil.which("go") is None:
        return "there is no Go to build an S3 server with"
    try:
        built(PACKAGE, VERSION)
    except AssertionError as error:
        return f"an S3 server cannot be built: {error}"
    return None


class Bucket:
    """One bucket, on a server of its own; clients find it at `door`, if that is not its own port."""

    def __init__(self, directory: Path, door: int | None = None) -> None:
        self.port = free_port()
        self._door = self.port if door is None else door
        self._root = directory / "buckets"
        self._log = directory / "buckets.log"
        (self._root / BUCKET).mkdir(parents=True)

    @property
    def driver(self) -> str:
        """How docker-registry's configuration names it."""
        return (
            f"s3: {{accesskey: {USER}, secretkey: {SECRET}, region: us-east-1, bucket: {BUCKET}, secure: false, "
            f'encrypt: false, regionendpoint: "http://127.0.0.1:{self._door}"}}'
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Serve for as long as the block lasts."""
        listen = ["--port", f"127.0.0.1:{self.port}", "--access", USER, "--secret", SECRET]
        daemon = Daemon([str(built(PACKAGE, VERSION)), *listen, "posix", str(self._root)], self._log)
        try:
            daemon.wait_until(lambda: accepts(self.port))
            yield
        finally:
            daemon.stop()

    def forget(self) -> None:
        """Empty the log."""
        os.truncate(self._log, 0)

    def asked(self, digest: str) -> list[tuple[str, int]]:
        """Method and status of the requests for a blob that came with a signed URL."""
        encoded = digest.rpartition(":")[2]
        line = rf"\| vgw \| (\d+) \|[^|]*\|[^|]*\| ([A-Z]+) \| \S*/{encoded}/data \|[^|]*\| \S*X-Amz-Signature="
        return [(method, int(status)) for status, method in re.findall(line, self._log.read_text())]

    def served(self, digest: str) -> list[int]:
        """The statuses of the requests for a blob of Entrepot's that came with a signed URL."""
        encoded = digest.rpartition(":")[2]
        line = rf"\| vgw \| (\d+) \|[^|]*\|[^|]*\| GET \| \S*/{encoded} \|[^|]*\| \S*X-Amz-Signature="
        return [int(status) for status in re.findall(line, self._log.read_text())]
