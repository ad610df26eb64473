"""What the tests of proxies and TLS share: an authority, servers with its certificates, an upstream behind them."""

import ssl
from pathlib import Path

import trustme

from proxy.egress import Egress

from .harness import Proxy, toml
from .upstream import FakeRegistry

REPO = "library/app"
TAG = f"/v2/{REPO}/manifests/v1"
LOOPBACK = 'private_networks = ["127.0.0.0/8", "::1"]'


def server_tls(ca: trustme.CA, *names: str, clients: trustme.CA | None = None) -> ssl.SSLContext:
    """The TLS of a server that has a certificate for `names`, and demands one of `clients` where they are given."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(tls)
    if clients is not None:
        clients.configure_trust(tls)
        tls.verify_mode = ssl.CERT_REQUIRED
    return tls


def write_ca(path: Path, *authorities: trustme.CA) -> Path:
    """Write a bundle."""
    path.write_bytes(b"".join(ca.cert_pem.bytes() for ca in authorities))
    return path


def write_pair(ca: trustme.CA, directory: Path) -> str:
    """Write a client's certificate and key, in place of those that are there; the keys that name them."""
    pair = ca.issue_cert("entrepot.test")
    (directory / "client.crt").write_bytes(pair.cert_chain_pems[0].bytes())
    (directory / "client.key").write_bytes(pair.private_key_pem.bytes())
    return f'client_certificate = "{directory}/client.crt"\nclient_key = "{directory}/client.key"'


def at(upstream: FakeRegistry, *lines: str) -> str:
    """A configuration with these lines in the upstream's table; its tags are asked for each time."""
    return toml(upstream.url, more="\n".join(['tag_ttl = "0s"', *lines]))


def egress_of(proxy: Proxy, registry: str = "docker.io") -> Egress:
    """The connections of one upstream of a running proxy."""
    egress = proxy.app.blobs._upstreams[registry].egress
    assert isinstance(egress, Egress)
    return egress
