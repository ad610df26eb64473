"""A Ceph of three processes with its objects in memory: a monitor, one OSD, and a gateway that speaks S3 over HTTPS."""

import contextlib
import http.client
import secrets
import ssl
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]  # it has no types
import trustme
from botocore.config import Config

from tests.buckets import TestBucket

from .processes import Daemon, free_port, run

USER, SECRET, REGION = "made-up", "made-up-secret", "us-east-1"

# Nobody has keys, and so there is nothing to encrypt messages with. The OSD finds itself ports, from 6800 on.
# One copy of everything in one group will do. Each pool is a decision of the monitor's, which rests between two. A
# gateway with a cache would ask the one that was killed to forget what has changed, and wait half a minute for it.
CONF = """\
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{monitor}/0]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc

mon_data = {root}/mon
osd_data = {root}/osd
rgw_data = {root}/rgw
run_dir = {root}
admin_socket =
pid_file =
log_file =
mon_cluster_log_file =
log_to_stderr = true

osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
paxos_propose_interval = 0.05
rgw_cache_enabled = false

rgw_frontends = beast ssl_endpoint=127.0.0.1:{port} ssl_certificate={root}/both.pem ssl_private_key={root}/both.pem
"""


class Ceph:
    """A cluster that lasts as long as its processes, certified by an authority of its own."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.ca_file = directory / "ca.pem"
        self._root = directory
        self._conf = directory / "ceph.conf"
        self._fsid, self._monitor = uuid.uuid4(), free_port()
        self._gateway: Daemon | None = None
        text = CONF.format(fsid=self._fsid, monitor=self._monitor, port=self.port, root=directory)
        self._conf.write_text(text)
        self._certify(trustme.CA())

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Serve for as long as the block lasts; then everything that was stored is gone."""
        with self._running_monitor(), self._running_osd():
            try:
                self.start_gateway()
                keys = ["--access-key", USER, "--secret-key", SECRET]
                self._run("radosgw-admin", "user", "create", "--uid", "entrepot", "--display-name", "Entrepot", *keys)
                yield
            finally:
                self.kill_gateway()

    def start_gateway(self) -> None:
        """Speak S3, on the same port and with the same content as before."""
        self._gateway = self._daemon("radosgw", "client.gateway")
        self._gateway.wait_until(self._answers)

    def kill_gateway(self) -> None:
        """Refuse connections from now on, and break off those that there are."""
        if self._gateway is not None:
            self._gateway.kill()
        self._gateway = None

    def bucket(self) -> TestBucket:
        """A new bucket."""
        client = boto3.client(
            "s3", endpoint_url=self.url, region_name=REGION, aws_access_key_id=USER, aws_secret_access_key=SECRET,
            verify=str(self.ca_file), config=Config(request_checksum_calculation="when_required"),
        )  # fmt: skip
        name = f"images-{secrets.token_hex(4)}"
        client.create_bucket(Bucket=name)
        return TestBucket(self.url, name, client)

    def table(self, bucket: TestBucket, /, **changed: Any) -> dict[str, Any]:
        """What `[store.s3]` says of a bucket here."""
        settings = {"bucket": bucket.name, "prefix": "cache/", "endpoint_url": self.url, "region": REGION}
        return {**settings, "addressing": "path", "ca_file": str(self.ca_file), **changed}

    def _certify(self, authority: trustme.CA) -> None:
        issued = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(str(self.ca_file))
        issued.private_key_and_cert_chain_pem.write_to_path(str(self._root / "both.pem"))

    @contextlib.contextmanager
    def _running_monitor(self) -> Iterator[None]:
        (self._root / "mon").mkdir()
        monmap = str(self._root / "monmap")
        address = f"[v2:127.0.0.1:{self._monitor}/0]"
        self._run("monmaptool", "--create", "--fsid", str(self._fsid), "--addv", "a", address, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        with self._killed_in_the_end("ceph-mon", "mon.a"):
            yield

    @contextlib.contextmanager
    def _running_osd(self) -> Iterator[None]:
        (self._root / "osd").mkdir()
        identity = str(uuid.uuid4())
        self._run("ceph", "osd", "new", identity, "0")
        self._run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", identity)
        with self._killed_in_the_end("ceph-osd", "osd.0") as daemon:
            daemon.wait_until(lambda: "1 up" in self._run("ceph", "osd", "stat"))
            yield

    @contextlib.contextmanager
    def _killed_in_the_end(self, command: str, name: str) -> Iterator[Daemon]:
        daemon = self._daemon(command, name)
        try:
            yield daemon
        finally:
            daemon.kill()

    def _daemon(self, command: str, name: str) -> Daemon:
        return Daemon([command, "--foreground", "--name", name], self._root / f"{name}.log", self._env)

    def _run(self, *command: str) -> str:
        # Without a monitor that answers, each would wait for five minutes.
        return run(command, self._env, timeout=30)

    @property
    def _env(self) -> dict[str, str]:
        return {"CEPH_CONF": str(self._conf), "CEPH_ARGS": ""}

    def _answers(self) -> bool:
        context = ssl.create_default_context(cafile=self.ca_file)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=5, context=context)
            with contextlib.closing(connection):
                connection.request("GET", "/")
                return connection.getresponse().status == 200
        return False
