"""The proxy under test: a process with a configuration, a store and a log of its own."""

import contextlib
import hashlib
import http.client
import json
import signal
import ssl
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from .processes import Daemon, free_port, run, show, tail, wait_until

# tag_ttl 0: every pull of a tag asks upstream, or finds that it is down.
CONFIG = """\
[server]
listen = "127.0.0.1:{port}"
lb_delay = "0s"
drain_timeout = "5s"
{tls}
[admin]
listen = "127.0.0.1:{admin_port}"

[store]
path = "{store}"

[log]
format = "json"
"""
TLS = """\
tls_certificate = "{certificate}"
tls_key = "{key}"
"""
UPSTREAM = """
[[upstream]]
registry = "{name}"
url = "{url}"
tag_ttl = "0s"
"""


@dataclass(frozen=True)
class Request:
    """A line of the access log."""

    kind: str
    upstream: str
    repository: str
    reference: str
    status: int
    outcome: str
    agent: str


class Entrepot:
    """The proxy, and what it says it did; with an authority to certify it, it speaks TLS.

    `more` goes into the table of each upstream, `tables` are further ones.
    """

    def __init__(
        self,
        directory: Path,
        upstreams: Mapping[str, str],
        authority: trustme.CA | None = None,
        *,
        more: str = "",
        tables: str = "",
    ) -> None:
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self.url = f"http://{self.address}" if authority is None else f"https://{self.address}"
        self.log = directory / "entrepot.log"
        self._store = directory / "store"
        self._config = directory / "proxy.toml"
        self._authority = authority
        self._daemon: Daemon | None = None
        self._is_killed = False
        tls = "" if authority is None else _certified(authority, directory)
        text = CONFIG.format(port=self._port, admin_port=free_port(), store=self._store, tls=tls)
        text += tables + "".join(UPSTREAM.format(name=name, url=url) + more for name, url in upstreams.items())
        self._config.write_text(text)

    @contextlib.contextmanager
    def running(self, bears: Collection[str] = ()) -> Iterator[None]:
        """Serve for as long as the block lasts, then stop as an operator would: nothing wrong may be left or logged.

        `bears`: errors that belong to the scene, by the log's names for them.
        """
        command = [sys.executable, "-m", "proxy", "serve", "--config", str(self._config)]
        self._daemon, self._is_killed = Daemon(command, self.log), False
        try:
            self._daemon.wait_until(self._is_ready)
            yield
        finally:
            status = self._daemon.stop()
            show(tail(self.log))
        expected = -signal.SIGKILL if self._is_killed else 0
        assert status == expected, f"the proxy ended with status {status}\n{tail(self.log)}"
        complaints = self._complaints(bears)
        assert not complaints, complaints
        assert self._filled() <= self._published(), "not all that was downloaded has been kept"

    def kill(self) -> None:
        """End it at once, in the middle of whatever it does."""
        assert self._daemon is not None, "it does not run"
        self._is_killed = True
        self._daemon.kill()

    def command(self, name: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        """Run one of the operator's commands over its store; returns what it prints."""
        return run([sys.executable, "-m", "proxy", name, "--config", str(self._config), *arguments], env)

    def requests(self) -> list[Request]:
        """The requests that it answered so far, in the order of their ends."""
        fields = Request.__dataclass_fields__
        lines = [entry for entry in self._entries() if entry["event"] == "request"]
        return [Request(**{name: line[name] for name in fields}) for line in lines]

    @contextlib.contextmanager
    def serves(self, blobs: frozenset[str], agent: str) -> Iterator[None]:
        """Assert that within the block a client of this User-Agent got all these blobs, and that no request failed."""
        before = len(self.requests())

        def missing() -> frozenset[str]:
            served = {request.reference for request in self.requests()[before:] if _is_served_blob(request, agent)}
            return blobs - served

        yield
        # A request's line is written after its last byte, which is when the client goes on.
        wait_until(lambda: not missing(), f"{agent} got {len(blobs)} blobs from the proxy")
        failed = [request for request in self.requests()[before:] if request.status >= 400]
        assert not failed, failed

    def waiting(self) -> list[Path]:
        """What has yet to get into its bucket: clients may have all of a blob that is still on its way in here."""
        places = [self._store / name for name in ("spool", "uploads")]  # in the order in which a blob is in them
        return [path for place in places for path in place.glob("**/*") if path.is_file()]

    def spooled(self, digest: str) -> int:
        """How many bytes of a blob have come that is on its way in; 0 for none."""
        path = self._store / "spool" / digest.replace(":", "-")
        return path.stat().st_size if path.exists() else 0

    def has_said(self, event: str) -> bool:
        """Whether the log has a line of this name."""
        return any(entry["event"] == event for entry in self._entries())

    def _entries(self) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError), contextlib.closing(self._connection()) as connection:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        return False

    def _connection(self) -> http.client.HTTPConnection:
        if self._authority is None:
            return http.client.HTTPConnection(self.address, timeout=5)
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        return http.client.HTTPSConnection(self.address, timeout=5, context=context)

    def _complaints(self, bears: Collection[str]) -> list[str]:
        """Lines of the log that report a defect."""
        lines = self.log.read_text().splitlines()
        loud = {
            json.dumps(entry)
            for entry in self._entries()
            if entry.get("level") in {"error", "critical"} and entry["event"] not in bears
        }
        return [line for line in lines if not line.startswith("{")] + sorted(loud)

    def _filled(self) -> set[str]:
        """The digests of the blobs that it downloaded."""
        return {entry.reference for entry in self.requests() if entry.kind == "blob" and entry.outcome == "fill"}

    def _published(self) -> set[str]:
        """The digests of what is in its store, each of which must be that of the file's content."""
        published = [path for path in self._store.glob("blobs/sha256/*/*") if path.is_file()]
        corrupt = [path for path in published if path.name != _sha256(path)]
        assert not corrupt, f"published under a digest that is not theirs: {corrupt}"
        return {f"sha256:{path.name}" for path in published}


def _certified(authority: trustme.CA, directory: Path) -> str:
    """The keys of a configuration with a certificate for 127.0.0.1."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    issued = authority.issue_cert("127.0.0.1")
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    return TLS.format(certificate=certificate, key=key)


def _is_served_blob(request: Request, agent: str) -> bool:
    return request.kind == "blob" and request.status in {200, 206} and request.agent.startswith(agent)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
