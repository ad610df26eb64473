"""What an operator relies on: start, stop, TLS, workers, probes, metrics, logs, descriptors."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization as to
from prometheus_client.parser import text_string_to_metric_families

from proxy.certificates import Certificate
from proxy.config import ConfigError
from proxy.files.scratch import sweep
from proxy.supervisor import COUNTERS
from proxy.telemetry import quiet
from tests.buckets import KEYS, REGION

from .harness import DEADLINE, Process, Proxy, open_blobs, running, serving, toml, until
from .raw_client import RawAnswer, ask, connect
from .upstream import FakeRegistry, Gate, Image, digest_of

REPO = "library/app"
DATA = bytes(range(256)) * 4096  # 1 MiB
KEY_MARK = "BEGIN"


async def ended(*arguments: str, **environ: str) -> tuple[int, str]:
    """Run `entrepot` to its end: its exit status, and what it said on standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "ENTREPOT_SERVER_LISTEN": "127.0.0.1:0", "ENTREPOT_ADMIN_LISTEN": "127.0.0.1:0", **environ},
        start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(DEADLINE):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    assert process.returncode is not None
    return process.returncode, said.decode()


def events(process: Process, name: str) -> list[dict[str, object]]:
    """The records of one kind that a process has logged so far."""
    return [line for line in process.lines if line["event"] == name]


async def is_refused(host: str) -> bool:
    """Whether nobody listens any more."""
    try:
        async with connect(host):
            return False
    except ConnectionRefusedError:
        return True


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something that has to be asked for is so."""
    async with asyncio.timeout(DEADLINE):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


async def until_refused(host: str) -> None:
    """Wait until nobody listens."""
    await eventually(lambda: is_refused(host))


@contextlib.asynccontextmanager
async def transfer_in_flight(process: Process, upstream: FakeRegistry) -> AsyncIterator[tuple[asyncio.Task[str], Gate]]:
    """A blob half of which has come; yields how it will end, and the gate that holds it."""
    digest = upstream.add_blob(REPO, DATA)
    gate = upstream.on("GET", blob=digest).gate(after=500_000)
    async with connect(process.host) as client:
        await client.send("GET", f"/v2/{REPO}/blobs/{digest}", {"Host": process.host})

        async def outcome() -> str:
            answer = await client.answer()
            return "whole" if digest_of(answer.body) == digest else answer.ended

        pull = asyncio.create_task(outcome())
        await gate.reached.wait()
        yield pull, gate


def open_to_all(directory: Path) -> None:
    """Make a directory that everybody may write."""
    directory.mkdir()
    directory.chmod(0o777)


class TestStart:
    """It starts with nothing at all, or says in a line why it does not."""

    async def test_without_a_configuration_it_knows_the_public_registries(self, tmp_path: Path) -> None:
        environ = {"HOME": str(tmp_path), "XDG_CACHE_HOME": "", "ENTREPOT_CONFIG": ""}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "proxy", "serve", stderr=asyncio.subprocess.PIPE, cwd=tmp_path,
            env={
                **os.environ, "PYTHONPATH": os.getcwd(), **environ,
                "ENTREPOT_SERVER_LISTEN": "127.0.0.1:0", "ENTREPOT_ADMIN_LISTEN": "127.0.0.1:0",
            },
        )  # fmt: skip
        assert process.stderr is not None
        try:
            served = json.loads(await process.stderr.readline())
            assert served["event"] == "serving"
            assert served["store"] == f"{tmp_path}/.cache/entrepot"
            assert served["upstreams"] == [
                "docker.io", "ghcr.io", "quay.io", "gcr.io", "registry.k8s.io", "mcr.microsoft.com",
                "public.ecr.aws", "registry.gitlab.com", "nvcr.io",
            ]  # fmt: skip
            answer = await ask(served["listen"], "GET", "/v2/")
            assert (answer.status, answer.body) == (200, b"{}")
            assert answer.header("Docker-Distribution-Api-Version") == "registry/2.0"
        finally:
            process.terminate()
            process.send_signal(signal.SIGINT)
            said = await process.stderr.read()
            assert await process.wait() == 0
        assert b"Traceback" not in said

    @pytest.mark.parametrize("has_bucket", [False, True])
    async def test_only_who_has_a_bucket_waits_for_its_libraries(
        self, upstream: FakeRegistry, store: Path, has_bucket: bool
    ) -> None:
        bucket = f'[store.s3]\nbucket = "images"\nregion = "{REGION}"\nendpoint_url = "{upstream.url}"\n'
        environ = {"PYTHONPROFILEIMPORTTIME": "1", **KEYS}
        async with serving(toml(upstream.url, more=bucket * has_bucket), store, environ=environ) as process:
            assert (await process.get("/readyz")).status == 200
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in process.noise}
        assert {"proxy", "aiohttp"} < imported
        assert ("aiobotocore" in imported) is has_bucket
        assert imported.isdisjoint({"azure", "google", "requests", "jwt"})  # which are for accounts at clouds

    @pytest.mark.parametrize(("key", "workers"), [("server.listen", "1"), ("admin.listen", "2")])
    async def test_an_address_in_use_is_one_clear_line(self, tmp_path: Path, key: str, workers: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            variable = f"ENTREPOT_{key.upper().replace('.', '_')}"
            environ = {variable: address, "ENTREPOT_STORE_PATH": str(tmp_path), "ENTREPOT_SERVER_WORKERS": workers}
            code, said = await ended("serve", **environ)
        assert (code, said) == (
            2,
            f"entrepot: {key}: cannot listen on {address} (Address already in use); choose another address\n",
        )

    @pytest.mark.parametrize(
        ("workers", "environ", "key"),
        [
            ("1", {"ENTREPOT_CONFIG": "/nowhere/proxy.toml"}, "/nowhere/proxy.toml: cannot be read"),
            ("1", {"ENTREPOT_LOG_LEVEL": "loud"}, "log.level: "),
            ("1", {"ENTREPOT_STORE_PATH": "/dev/null"}, "store.path: "),
            ("2", {"ENTREPOT_STORE_PATH": "/dev/null/cache"}, "store.path: "),
            ("1", {"ENTREPOT_STORE_PATH": "/proc/cache"}, "store.path: "),
            (
                "2",
                {"ENTREPOT_SERVER_TLS_CERTIFICATE": "/nowhere.crt", "ENTREPOT_SERVER_TLS_KEY": "/nowhere.key"},
                "server.tls_certificate, server.tls_key: ",
            ),
        ],
    )
    async def test_what_keeps_it_from_starting_is_one_line_and_no_traceback(
        self, tmp_path: Path, environ: dict[str, str], key: str, workers: str
    ) -> None:
        everything = {"ENTREPOT_STORE_PATH": str(tmp_path), "ENTREPOT_SERVER_WORKERS": workers, **environ}
        code, said = await ended("serve", **everything)
        assert code == 2, said
        (line,) = said.splitlines()
        assert line.startswith(f"entrepot: {key}")

    @pytest.mark.parametrize("workers", ["1", "2"])
    async def test_a_store_that_everybody_may_write_is_refused(self, store: Path, workers: str) -> None:
        open_to_all(store)
        code, said = await ended("serve", ENTREPOT_STORE_PATH=str(store), ENTREPOT_SERVER_WORKERS=workers)
        assert code == 2
        assert said.startswith("entrepot: ")
        assert f"{store} may be written by everybody: chmod o-w it" in said
        assert len(said.splitlines()) == 1


class TestStop:
    """SIGTERM finishes what is being sent; a second one does not."""

    @pytest.mark.parametrize(
        ("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 1), (signal.SIGINT, 2)]
    )
    async def test_a_transfer_in_flight_completes_and_the_port_is_closed(
        self, upstream: FakeRegistry, store: Path, workers: int, number: signal.Signals
    ) -> None:
        async with (
            serving(toml(upstream.url, server=f"workers = {workers}"), store) as process,
            transfer_in_flight(process, upstream) as (pull, gate),
        ):
            process.process.send_signal(number)
            await until_refused(process.host)
            assert process.process.returncode is None
            gate.open()
            assert await pull == "whole"
            async with asyncio.timeout(DEADLINE):
                assert await process.process.wait() == 0
        assert events(process, "stopping")[-1]["requests"] == 0

    @pytest.mark.parametrize("workers", [1, 2])
    async def test_a_second_signal_stops_at_once(self, upstream: FakeRegistry, store: Path, workers: int) -> None:
        async with (
            serving(toml(upstream.url, server=f"workers = {workers}"), store) as process,
            transfer_in_flight(process, upstream) as (pull, _),
        ):
            await until(lambda: len(events(process, "serving")) == workers)
            process.process.send_signal(signal.SIGTERM)
            await until(lambda: len(events(process, "draining")) == workers)
            assert await process.stop() == 0
            assert await pull in {"short", "reset"}

    async def test_what_a_slow_client_has_not_taken_yet_is_not_cut_off(
        self, upstream: FakeRegistry, store: Path
    ) -> None:
        data = DATA * 12
        digest = upstream.add_blob(REPO, data)
        async with serving(toml(upstream.url), store) as process, connect(process.host) as client:
            await client.send("GET", f"/v2/{REPO}/blobs/{digest}", {"Host": process.host})
            await client.head()
            body = bytearray()
            while not events(process, "request"):  # until all has been handed to the connection
                body += await client.reader.read(65536)
                await asyncio.sleep(0.005)  # the pace of a slow client, and no wait for anything
            process.process.send_signal(signal.SIGTERM)
            await until_refused(process.host)
            while data_read := await client.reader.read(65536):
                body += data_read
                await asyncio.sleep(0.005)
            assert digest_of(bytes(body)) == digest
            await until(lambda: bool(events(process, "stopping")))
            async with asyncio.timeout(DEADLINE):
                assert await process.process.wait() == 0

    async def test_the_drain_has_an_end(self, upstream: FakeRegistry, store: Path) -> None:
        async with (
            serving(toml(upstream.url, server='drain_timeout = "100ms"'), store) as process,
            transfer_in_flight(process, upstream) as (pull, _),
        ):
            assert await process.stop() == 0
            assert await pull in {"short", "reset"}
        assert events(process, "stopping")[-1]["requests"] == 1

    async def test_until_the_load_balancer_has_noticed_new_requests_are_served(
        self, upstream: FakeRegistry, store: Path
    ) -> None:
        digest = upstream.add_blob(REPO, b"small")
        text = toml(upstream.url).replace('lb_delay = "0s"', 'lb_delay = "1h"')
        async with serving(text, store) as process:
            assert (await process.get("/readyz")).status == 200
            process.process.send_signal(signal.SIGTERM)
            await until(lambda: bool(events(process, "draining")))
            ready = await process.get("/readyz")
            assert (ready.status, ready.body) == (503, b"draining\n")
            assert (await process.get("/healthz")).status == 200
            assert (await process.get(f"/v2/{REPO}/blobs/{digest}")).body == b"small"
            assert await process.stop() == 0

    async def test_at_a_terminal_nobody_waits_for_a_load_balancer(self, upstream: FakeRegistry, store: Path) -> None:
        text = toml(upstream.url).replace('lb_delay = "0s"', 'lb_delay = "1h"')
        async with serving(text, store) as process:
            assert await process.stop(signal.SIGINT) == 0

    async def test_an_outage_upstream_changes_no_probe(self, upstream: FakeRegistry, proxy: Proxy) -> None:
        await upstream.go_down()
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).status >= 500
        assert [(await proxy.get(path)).status for path in ("/readyz", "/healthz")] == [200, 200]


class Authority:
    """A certificate authority, and the files that the server reads."""

    def __init__(self, directory: Path) -> None:
        self.ca = trustme.CA()
        self.certificate, self.key = directory / "tls.crt", directory / "tls.key"
        self.trust = ssl.create_default_context()
        self.ca.configure_trust(self.trust)

    def issue(self) -> trustme.LeafCert:
        """A new pair for 127.0.0.1."""
        return self.ca.issue_cert("127.0.0.1")

    def write(self, certificate: trustme.LeafCert, key: trustme.LeafCert) -> None:
        """Put files in place as a renewal does: each at once, one after the other."""
        for blob, path in ((certificate.cert_chain_pems[0], self.certificate), (key.private_key_pem, self.key)):
            blob.write_to_path(path.with_suffix(".new"))
            path.with_suffix(".new").rename(path)

    @property
    def server(self) -> str:
        """The keys of [server]."""
        return f'tls_certificate = "{self.certificate}"\ntls_key = "{self.key}"'


def serial_of(pair: trustme.LeafCert) -> int:
    """The serial number of a certificate."""
    return x509.load_pem_x509_certificate(pair.cert_chain_pems[0].bytes()).serial_number


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority, with a first pair in place."""
    return Authority(tmp_path)


async def serial_shown(host: str, trust: ssl.SSLContext) -> int:
    """The serial number of the certificate that a new connection gets, over which a request is answered."""
    async with connect(host, trust) as client:
        assert (await client.ask("GET", "/v2/", {"Host": host})).status == 200
        der = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(der).serial_number


class TestTLS:
    """TLS by certificate and key, read again when they change."""

    async def test_blobs_are_served_over_tls(self, upstream: FakeRegistry, store: Path, authority: Authority) -> None:
        pair = authority.issue()
        authority.write(pair, pair)
        digest = upstream.add_blob(REPO, DATA)
        async with serving(toml(upstream.url, server=authority.server), store) as process:
            assert events(process, "serving")[0]["tls"] is True
            async with connect(process.host, authority.trust) as client:
                for _ in range(2):
                    answer = await client.ask("GET", f"/v2/{REPO}/blobs/{digest}", {"Host": process.host})
                    assert digest_of(answer.body) == digest
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await process.get("/v2/")
            assert "entrepot_requests_total" in await process.metrics(), "the operator's side stays plain"
            assert await process.stop() == 0

    async def test_new_connections_get_the_renewed_certificate_and_old_ones_go_on(
        self, upstream: FakeRegistry, store: Path, authority: Authority
    ) -> None:
        old, new = authority.issue(), authority.issue()
        authority.write(old, old)
        certificate = await asyncio.to_thread(Certificate, authority.certificate, authority.key)
        async with running(toml(upstream.url), store, tls=certificate.context) as proxy:
            assert await serial_shown(proxy.host, authority.trust) == serial_of(old)
            async with connect(proxy.host, authority.trust) as kept:
                for wrong in ((new, old), (old, new)):  # half of a renewal: they do not fit each other
                    authority.write(*wrong)
                    await certificate.refresh(quiet())
                    assert await serial_shown(proxy.host, authority.trust) == serial_of(old)
                for broken in (b"", b"-----" + KEY_MARK.encode() + b" CERTIFICATE-----\nno\n"):
                    authority.certificate.write_bytes(broken)
                    await certificate.refresh(quiet())
                    assert await serial_shown(proxy.host, authority.trust) == serial_of(old)
                authority.certificate.unlink()
                await certificate.refresh(quiet())
                assert await serial_shown(proxy.host, authority.trust) == serial_of(old)
                authority.write(new, new)
                await certificate.refresh(quiet())
                assert await serial_shown(proxy.host, authority.trust) == serial_of(new)
                assert (await kept.ask("GET", "/v2/", {"Host": proxy.host})).status == 200

    async def test_a_running_server_notices_a_renewal_by_itself(
        self, upstream: FakeRegistry, store: Path, authority: Authority
    ) -> None:
        old, new = authority.issue(), authority.issue()
        authority.write(old, old)
        async with serving(toml(upstream.url, server=authority.server), store) as process:
            assert await serial_shown(process.host, authority.trust) == serial_of(old)
            authority.write(new, new)
            await until(lambda: bool(events(process, "TLS certificate renewed")))
            assert await serial_shown(process.host, authority.trust) == serial_of(new)

    def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(self, authority: Authority) -> None:
        pair = authority.issue()
        authority.write(pair, pair)
        key = to.load_pem_private_key(pair.private_key_pem.bytes(), None)
        authority.key.write_bytes(
            key.private_bytes(to.Encoding.PEM, to.PrivateFormat.PKCS8, to.BestAvailableEncryption(b"secret"))
        )
        with pytest.raises(ConfigError, match=r"server\.tls_certificate, server\.tls_key: cannot be used together"):
            Certificate(authority.certificate, authority.key)


async def samples(process: Process) -> dict[tuple[str, ...], float]:
    """What Prometheus would read, by metric and label values."""
    families = text_string_to_metric_families(await process.metrics())
    return {
        (sample.name, *(f"{key}={value}" for key, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def total(found: dict[tuple[str, ...], float], name: str, *labels: str) -> float:
    """The sum over the series of a metric that have these labels."""
    return sum(value for key, value in found.items() if key[0] == name and set(labels) <= set(key[1:]))


async def is_counted(process: Process) -> bool:
    """Whether the size of the cache is known by now; manifests count only from the next scan of the store on."""
    counted = total(await samples(process), "entrepot_cache_bytes")
    return on_disk(process.store) - 4096 <= counted <= on_disk(process.store)


def with_admin(process: Process) -> None:
    """Find the operator's port of a supervisor: its workers, who say that they serve, have none."""
    for line in events(process, "supervising"):
        process.admin = str(line["admin"])


def on_disk(store: Path) -> int:
    """The bytes that stored blobs take, in whole blocks."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in (store / "blobs").glob("*/*/*"))


async def pulled(process: Process, image: Image) -> list[RawAnswer]:
    """What all requests of a pull are answered; its blobs are stored by then."""
    targets = ["manifests/v1", *(f"blobs/{digest}" for digest in image.blob_digests)]
    answers = [await process.get(f"/v2/{REPO}/{target}") for target in targets]
    await process.published(*image.blob_digests)
    return answers


@pytest.mark.parametrize("workers", [1, 3])
async def test_metrics_add_up_whatever_the_number_of_workers(upstream: FakeRegistry, store: Path, workers: int) -> None:
    image = upstream.add_image(REPO, "v1", [DATA, DATA[1:]])
    async with serving(toml(upstream.url, server=f"workers = {workers}"), store) as process:
        with_admin(process)
        answers = [answer for _ in range(8) for answer in await pulled(process, image)]
        answers += [await process.get(f"/v2/{REPO}/manifests/none-{number}") for number in range(3)]
        answers.append(await process.get("/v2/"))
        assert (await process.get("/healthz")).status == 200
        await until(lambda: len(events(process, "request")) == len(answers))
        found = await samples(process)
        await eventually(lambda: is_counted(process))
        assert await process.stop() == 0

    requests = partial(total, found, "entrepot_requests_total")
    blobs = len(image.blob_digests)
    assert requests() == len(answers), "probes are not counted"
    assert requests("kind=blob", "outcome=fill", "status=200") == blobs
    assert requests("kind=blob", "outcome=hit", "status=200") == 7 * blobs
    assert requests("kind=manifest", "outcome=fill", "status=200") == 1
    assert requests("kind=manifest", "outcome=hit", "status=200") == 7
    assert requests("kind=manifest", "outcome=error", "status=404") == 3
    assert requests("kind=ping", "outcome=local", "upstream=") == 1
    assert total(found, "entrepot_request_seconds_count") == len(answers)
    sent = sum(len(answer.body) for answer in answers)
    assert total(found, "entrepot_client_bytes_total") == sent
    assert total(found, "entrepot_client_bytes_total", "upstream=") == len(b"{}")
    assert total(found, "entrepot_upstream_bytes_total", "upstream=docker.io") == sum(image.sizes.values())
    assert total(found, "entrepot_fills_total") == total(found, "entrepot_fills_total", "outcome=verified") == blobs
    assert total(found, "entrepot_fills_active") == 0
    assert total(found, "entrepot_upstream_answers_total", "upstream=docker.io", "status=200") == blobs + 1
    assert total(found, "entrepot_upstream_answers_total", "upstream=docker.io", "status=404") == 3
    assert total(found, "entrepot_upstream_answers_total") == len(upstream.requests)


async def test_no_client_can_make_a_new_series(upstream: FakeRegistry, proxy: Proxy) -> None:
    image = upstream.add_image(REPO, "v1")

    def series() -> int:
        return sum(len(family.samples) for family in proxy.metrics.registry.collect())

    async def round_(number: int) -> None:
        word = f"x{number}"
        digest = digest_of(word.encode())
        for target in (
            f"/v2/{word}/manifests/latest", f"/v2/{REPO}/manifests/{word}", f"/v2/{REPO}/manifests/{digest}",
            f"/v2/{word}/blobs/{digest}", f"/v2/{REPO}/blobs/{digest}", f"/v2/{REPO}/blobs/{word}",
            f"/v2/{word}/tags/list", f"/v2/{REPO}/referrers/{digest}", f"/v2/{word.upper()}/manifests/v1",
            f"/v2/{REPO}/manifests/v1?ns={word}.example", f"/{word}.example/v2/{REPO}/manifests/v1",
            f"/v2/{word}.example/app/manifests/v1", f"/{word}", f"/v2/{word}", f"/v2/{REPO}/blobs/uploads/{word}",
            f"/v2/{REPO}/blobs/{image.config_digest}?{word}={word}",
        ):  # fmt: skip
            await proxy.get(target, {"User-Agent": word, "Host": f"{word}.example", f"X-{word}": word})
        for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
            await proxy.ask(method, f"/v2/{REPO}/manifests/{word}")

    await round_(0)
    await round_(1)  # what is cached by now is answered otherwise
    known = series()
    for number in range(2, 17):
        await round_(number)
    assert series() == known
    assert len(proxy.requests) == 17 * 20


async def test_the_registry_and_the_operator_have_ports_of_their_own(upstream: FakeRegistry, store: Path) -> None:
    async with serving(toml(upstream.url), store) as process:
        for path in ("/metrics", "/metrics/", "//metrics", "/v2/../metrics", "/api", "/"):
            answer = await process.get(path)
            assert (answer.status, b"entrepot_" in answer.body) in {(404, False), (400, False)}, path
        for path in ("/v2/", "/v2/library/app/manifests/v1", "/healthz"):
            assert (await ask(process.admin, "GET", path)).status == 404
        assert (await ask(process.admin, "GET", "/")).status == 200
        refused = await ask(process.admin, "POST", "/metrics", {"Content-Length": "0"})
        assert (refused.status, refused.header("Allow")) == (405, "GET, HEAD")
        assert upstream.requests == []


class TestTheLog:
    """One line a request, whoever asks for whatever."""

    async def test_a_request_leaves_one_line_that_tells_all(self, upstream: FakeRegistry, proxy: Proxy) -> None:
        image = upstream.add_image(REPO, "v1", [DATA])
        (layer,) = image.layer_digests
        await proxy.get("/v2/app/manifests/v1", {"User-Agent": "docker/27"})
        for _ in range(2):
            await proxy.get(f"/v2/docker.io/{REPO}/blobs/{layer}")
        await proxy.head(f"/v2/{REPO}/blobs/{layer}")
        await proxy.get(f"/v2/{REPO}/blobs/{layer}", {"Range": "bytes=0-9"})
        await proxy.get(f"/v2/{REPO}/manifests/none")
        await proxy.get("/v2/")
        lines = proxy.requests
        assert [(line["kind"], line["status"], line["outcome"], line["bytes"]) for line in lines[:5]] == [
            ("manifest", 200, "fill", len(image.body)),
            ("blob", 200, "fill", len(DATA)),
            ("blob", 200, "hit", len(DATA)),
            ("blob", 200, "local", 0),
            ("blob", 206, "hit", 10),
        ]
        assert (lines[5]["status"], lines[5]["outcome"]) == (404, "error")
        assert lines[5]["error"]
        assert (lines[6]["kind"], lines[6]["status"], lines[6]["outcome"]) == ("ping", 200, "local")
        for line in lines[:6]:
            assert (line["upstream"], line["repository"]) == ("docker.io", REPO)
            assert line["client"] == "127.0.0.1"
            assert line["seconds"] >= 0
        assert (lines[0]["reference"], lines[1]["reference"], lines[0]["agent"]) == ("v1", layer, "docker/27")
        assert len(lines) == 7

    async def test_what_a_client_writes_stays_within_its_line(self, upstream: FakeRegistry, proxy: Proxy) -> None:
        upstream.add_image(REPO, "v1")
        hostile = [
            "%0a{%22event%22:%22forged%22}", "%0d%0a", "%1b[31m", "%1b]0;x%07", "%22", "'", "\\", "%00", "%ff",
            "%c2%9b31m", "%e2%80%a8", "%e2%80%ae", "{0}", "%25s", "%{x}", "${x}", "a" * 2000,
        ]  # fmt: skip
        sent = 0
        for word in hostile:
            for target in (
                f"/v2/{REPO}/manifests/{word}", f"/v2/{word}/manifests/v1", f"/{word}", f"/{word}/v2/app/manifests/v1",
                f"/v2/{word}/app/manifests/v1", f"/v2/{REPO}/blobs/{word}", f"/v2/{REPO}/manifests/v1?ns={word}",
                f"/v2/{word}/tags/list?n={word}&last={word}", f"/v2/{REPO}/referrers/sha256:{word}",
            ):  # fmt: skip
                answer = await proxy.get(target)
                assert answer.status in {200, 400, 404}, target
                sent += 1
        for agent in ('"}\t{"event": "forged"', "\x9b31m", "\xff\xfe", "a" * 5000, "{0} %s"):
            assert (await proxy.get(f"/v2/{REPO}/manifests/v1", {"User-Agent": agent})).status == 200
            sent += 1
        raw = proxy.log_stream.getvalue()
        assert raw.isascii()
        assert raw.count("\n") == len(proxy.log)
        assert "forged" not in {record["event"] for record in proxy.log}
        assert len(proxy.requests) == sent
        assert all(len(line) < 1500 for line in raw.splitlines())

    @pytest.mark.parametrize(
        "line", [b"GET /\r", b"GET /a\nX-Forged: 1 HTTP/1.1", b"\x16\x03\x01", b"GET \x1b[31m HTTP/1.1"]
    )
    async def test_what_is_no_http_leaves_no_forged_line(
        self, proxy: Proxy, line: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with connect(proxy.host) as client:
            client.writer.write(line + b"\r\nHost: x\r\n\r\n")
            client.writer.write_eof()
            await client.reader.read()
        assert len(proxy.requests) <= 1
        assert (await proxy.get("/v2/")).status == 200
        assert "X-Forged" not in proxy.log_stream.getvalue()
        assert [record for record in caplog.records if record.levelname == "ERROR"] == [], "no traceback for a scanner"

    async def test_a_client_that_leaves_is_a_line_and_no_traceback(
        self, upstream: FakeRegistry, proxy: Proxy, caplog: pytest.LogCaptureFixture
    ) -> None:
        digest = upstream.add_blob(REPO, DATA)
        gate = upstream.on("GET", blob=digest).gate(after=500_000)
        for linger in (False, True):  # before the headers are out, and amid the body
            async with connect(proxy.host) as client:
                await client.send("GET", f"/v2/{REPO}/blobs/{digest}", {"Host": proxy.host})
                await (client.head() if linger else gate.reached.wait())
        gate.open()
        await proxy.settled()
        await until(lambda: len(proxy.requests) == 2)
        assert {line["error"] for line in proxy.requests} == {"the client left"}
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []
        assert proxy.blobs() == [digest], "the fill belongs to the cache"

    async def test_no_secret_is_ever_logged(self, upstream: FakeRegistry, store: Path) -> None:
        upstream.require_bearer(users={"someone": "hunter2"}, anonymous=False)
        digest = upstream.add_blob(REPO, DATA)
        text = toml(upstream.url, more='username = "someone"\npassword_env = "TOKEN"')
        async with serving(text, store, environ={"TOKEN": "hunter2", "ENTREPOT_LOG_LEVEL": "debug"}) as process:
            headers = {"Authorization": "Bearer client-secret", "Cookie": "a=client-secret"}
            target = f"/v2/{REPO}/blobs/{digest}?token=client-secret&_authuser=client-secret"
            assert digest_of((await process.get(target, headers)).body) == digest
            metrics = await process.metrics()
            assert await process.stop() == 0
        tokens = [
            token
            for token in upstream.requests
            if token.header(
                "Authorization",
            )
        ]
        assert tokens
        text = json.dumps(process.lines) + metrics
        for secret in ("hunter2", "client-secret", *(str(one.header("Authorization")).split()[-1] for one in tokens)):
            assert secret not in text


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """A soft limit far below the hard one, for the processes that a test starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class TestDescriptors:
    """As many as the system gives; without one left the answer is 503, never 404."""

    async def test_the_soft_limit_is_raised_to_the_hard_one(
        self, upstream: FakeRegistry, store: Path, few_descriptors: int
    ) -> None:
        async with serving(toml(upstream.url), store) as process:
            await process.get("/v2/")
            async with asyncio.timeout(DEADLINE):
                while not (found := await samples(process))["entrepot_open_descriptors",]:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)  # its first round is not over
            assert found["entrepot_descriptor_limit",] == few_descriptors
            assert resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE)[0] == few_descriptors
            assert 5 < found["entrepot_open_descriptors",] < 100

    async def test_without_a_descriptor_a_stored_blob_is_unavailable_and_not_unknown(
        self, upstream: FakeRegistry, store: Path
    ) -> None:
        digest = upstream.add_blob(REPO, DATA)
        target = f"/v2/{REPO}/blobs/{digest}"
        async with serving(toml(upstream.url), store) as process, connect(process.host) as client:
            headers = {"Host": process.host}
            assert (await client.ask("GET", target, headers)).status == 200
            pid = process.process.pid
            await until(lambda: not open_blobs(pid), "the blob is published, and its file closed")
            _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free(pid), hard))
            answer = await client.ask("GET", target, headers)
            assert (answer.status, answer.header("Retry-After")) == (503, "2")
            assert b"descriptors" in answer.body
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
            answer = await client.ask("GET", target, headers)
            assert (answer.status, digest_of(answer.body)) == (200, digest)
            assert upstream.count("GET", path_contains="/blobs/") == 1
            assert await process.stop() == 0
        assert events(process, "request")[1]["outcome"] == "error"


def lowest_free(pid: int) -> int:
    """The number that the next file opened by a process will get."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return next(number for number in range(len(taken) + 1) if number not in taken)


def workers_of(process: Process) -> set[int]:
    """The processes that a supervisor has started."""
    pid = process.process.pid
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def metrics_of(pid: int) -> Path:
    """Where a worker keeps its metrics for the supervisor to add up."""
    pairs = (pair.partition(b"=") for pair in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return Path(os.fsdecode({key: value for key, _, value in pairs}[b"PROMETHEUS_MULTIPROC_DIR"]))


def is_gone(pid: int) -> bool:
    """Whether a process has ended (reaped or not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class TestWorkers:
    """Several processes on one port and one cache."""

    async def test_they_take_one_transfer_between_them_and_leave_nothing_behind(
        self, upstream: FakeRegistry, store: Path
    ) -> None:
        digest = upstream.add_blob(REPO, DATA)
        gate = upstream.on("GET", blob=digest).gate(after=1000)
        async with serving(toml(upstream.url, server="workers = 3"), store) as process:
            await until(lambda: len(events(process, "serving")) == 3)
            pulls = [asyncio.create_task(process.get(f"/v2/{REPO}/blobs/{digest}")) for _ in range(24)]
            await gate.reached.wait()
            gate.open()
            assert {digest_of((await pull).body) for pull in pulls} == {digest}
            assert upstream.count("GET", path_contains="/blobs/") == 1
            assert len({line["listen"] for line in events(process, "serving")}) == 1

            workers = workers_of(process)
            shared = metrics_of(next(iter(workers)))
            assert (len(workers), shared.exists()) == (3, True)
            assert await process.stop() == 0
            assert (all(map(is_gone, workers)), shared.exists()) == (True, False), "something is left"

    async def test_one_that_is_killed_is_replaced_and_requests_go_on(self, upstream: FakeRegistry, store: Path) -> None:
        digest = upstream.add_blob(REPO, DATA)
        async with serving(toml(upstream.url, server="workers = 2"), store) as process:
            with_admin(process)
            await until(lambda: len(events(process, "serving")) == 2)
            for victim in workers_of(process):
                os.kill(victim, signal.SIGKILL)
                for _ in range(8):
                    assert digest_of((await process.get(f"/v2/{REPO}/blobs/{digest}")).body) == digest
                await until(lambda gone=victim: len(workers_of(process) - {gone}) == 2)  # type: ignore[misc]
            await until(lambda: len(events(process, "serving")) == 4)
            assert [line["code"] for line in events(process, "a worker died and is replaced")] == [-9, -9]
            found = await samples(process)
            assert total(found, "entrepot_requests_total", "kind=blob") == 16, "what the dead counted is not lost"
            assert await process.stop() == 0

    async def test_they_finish_and_stop_when_the_supervisor_is_killed_and_the_next_removes_what_they_counted(
        self, upstream: FakeRegistry, store: Path
    ) -> None:
        text = toml(upstream.url, server="workers = 2")
        async with serving(text, store) as process:
            await until(lambda: len(events(process, "serving")) == 2)
            workers = workers_of(process)
            shared = metrics_of(next(iter(workers)))
            async with transfer_in_flight(process, upstream) as (pull, gate):
                process.process.kill()
                await until_refused(process.host)
                await asyncio.to_thread(sweep, COUNTERS, shared.parent)  # the next one starts, while they are at it
                assert shared.exists()
                gate.open()
                assert await pull == "whole"
            await until(lambda: all(map(is_gone, workers)), "workers are left")
        async with serving(text, store):
            assert not shared.exists()
