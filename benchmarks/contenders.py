"""Who is compared: each is started before an upstream (`host:port`) or an image's files, in a folder of its own."""

import contextlib
import json
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.certificate import Certificate
from benchmarks.contents import MANIFEST, REPOSITORY, TAG, Image
from benchmarks.servers import Place, free_port, process, program
from proxy import nearby

Start = Callable[[str, Path], AbstractAsyncContextManager[Place]]


@dataclass(frozen=True)
class Contender:
    """Something to pull through. `needs`: the program that has to be installed for it; Entrepot needs none."""

    name: str
    start: Start
    needs: str | None = None


@contextlib.asynccontextmanager
async def direct(upstream: str, _folder: Path) -> AsyncIterator[Place]:
    """Nothing in between."""
    yield Place(upstream)


@contextlib.asynccontextmanager
async def entrepot(
    upstream: str, folder: Path, *, more: str = "", keys: str = "", workers: int = 1, tls: Certificate | None = None
) -> AsyncIterator[Place]:
    """Entrepot as a user has it: metrics, and a log of all requests, in a file.

    `more`: tables of configuration; `keys`: lines for the upstream's.
    """
    port, admin = free_port(), free_port()
    config = folder / "proxy.toml"
    pem = "" if tls is None else f'tls_certificate = "{tls.chain}"\ntls_key = "{tls.key}"\n'
    config.write_text(
        f'[server]\nlisten = "127.0.0.1:{port}"\nlb_delay = "0s"\nworkers = {workers}\n{pem}'
        f'[admin]\nlisten = "127.0.0.1:{admin}"\n[log]\nlevel = "info"\n[store]\npath = "{folder / "cache"}"\n{more}\n'
        f'[[upstream]]\nregistry = "docker.io"\nurl = "http://{upstream}"\n{keys}'
    )
    command = [sys.executable, "-m", "proxy", "serve", "--config", str(config)]
    # An installed package has its byte code: it is written at the first start, if that is forbidden here or not.
    async with process(command, port, {"PYTHONDONTWRITEBYTECODE": ""}, log=folder / "entrepot.log") as place:
        yield replace(place, is_tls=tls is not None)


@contextlib.asynccontextmanager
async def docker_registry(upstream: str, folder: Path, *, storage: str | None = None) -> AsyncIterator[Place]:
    """Debian's docker-registry in pull-through mode, with an empty directory or another `storage`."""
    where = f"filesystem: {{ rootdirectory: {folder / 'cache'} }}" if storage is None else storage
    async with _registry(folder, where, f"proxy: {{ remoteurl: 'http://{upstream}' }}\n") as place:
        yield place


@contextlib.asynccontextmanager
async def plain_registry(image: Image, _upstream: str, folder: Path) -> AsyncIterator[Place]:
    """Debian's docker-registry with the image in its own directory, and no upstream."""
    _fill(folder / "content", image)
    async with _registry(folder, f"filesystem: {{ rootdirectory: {folder / 'content'} }}") as place:
        yield place


@contextlib.asynccontextmanager
async def _registry(folder: Path, storage: str, tables: str = "") -> AsyncIterator[Place]:
    """As Debian configures it, with its memory of blobs' sizes; but it writes no log of requests."""
    port = free_port()
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{ level: error, accesslog: {{ disabled: true }} }}\n"
        f"http: {{ addr: '127.0.0.1:{port}', secret: made-up }}\n"
        f"storage: {{ cache: {{ blobdescriptor: inmemory }}, {storage} }}\n{tables}"
    )
    # With a bundle of authorities in the environment its driver for S3 does not start.
    command = [program("docker-registry") or "docker-registry", "serve", str(config)]
    async with process(command, port, {"AWS_CA_BUNDLE": ""}, log=folder / "registry.log") as place:
        yield place


def _fill(root: Path, image: Image) -> None:
    """Lay an image out as docker-registry does; the blobs are hard links to the image's own files."""
    base = root / "docker" / "registry" / "v2"
    files = {blob.encoded: image.file(blob.path) for blob in image.blobs}
    files[image.manifest.encoded] = image.file(image.by_digest)
    for encoded, file in files.items():
        data = base / "blobs" / "sha256" / encoded[:2] / encoded / "data"
        data.parent.mkdir(parents=True)
        os.link(file, data)
    own = base / "repositories" / REPOSITORY
    manifest = f"sha256/{image.manifest.encoded}/link"
    links = {own / "_layers" / "sha256" / blob.encoded / "link": blob.digest for blob in image.blobs}
    links |= {own / "_manifests" / "revisions" / manifest: image.manifest.digest}
    links |= {
        own / "_manifests" / "tags" / TAG / place: image.manifest.digest
        for place in ("current/link", f"index/{manifest}")
    }
    for link, digest in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.write_text(digest)


@contextlib.asynccontextmanager
async def nginx(
    image: Image,
    _upstream: str,
    folder: Path,
    *,
    workers: int = 1,
    tls: Certificate | None = None,
    log: Path | None = None,
    is_unpaced: bool = False,
) -> AsyncIterator[Place]:
    """The image's files, sent by the kernel; `log`: a file with a line of JSON for each request, when it is done.

    `is_unpaced`: its listening sockets are made here as Entrepot makes its own, since nginx has no word for that.
    """
    # What a registry says besides the bytes, so that it can stand in for one. Names of files have no types there.
    locations = f"""
        root {image.root};
        default_type application/octet-stream;
        etag off;
        location = /v2/ {{ return 200 "{{}}"; }}
        location /v2/{REPOSITORY}/manifests/ {{
            default_type {MANIFEST};
            add_header Docker-Content-Digest {image.manifest.digest};
        }}"""
    async with _nginx(folder, locations, workers=workers, tls=tls, log=log, is_unpaced=is_unpaced) as place:
        yield place


@contextlib.asynccontextmanager
async def proxy_cache(upstream: str, folder: Path, *, workers: int = 1) -> AsyncIterator[Place]:
    """nginx as a cache: one request upstream for each file, the others wait for it, nothing is verified."""
    locations = """
        location / {
            proxy_pass http://upstream;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_cache cache;
            proxy_cache_key $uri;
            proxy_cache_valid 200 1h;
            proxy_cache_lock on;
            proxy_cache_lock_timeout 1h;
            proxy_cache_lock_age 1h;
            proxy_max_temp_file_size 0;
        }"""
    outside = f"""
    proxy_cache_path {folder / "cache"} levels=1:2 keys_zone=cache:10m max_size=100g inactive=1d use_temp_path=off;
    upstream upstream {{ server {upstream}; keepalive 32; }}"""
    async with _nginx(folder, locations, outside=outside, workers=workers) as place:
        yield place


@contextlib.asynccontextmanager
async def _nginx(  # noqa: PLR0913  each of them by its name
    folder: Path,
    locations: str,
    *,
    outside: str = "",
    workers: int = 1,
    tls: Certificate | None = None,
    log: Path | None = None,
    is_unpaced: bool = False,
) -> AsyncIterator[Place]:
    port = free_port()
    pem = "" if tls is None else f"ssl_certificate {tls.chain};\n        ssl_certificate_key {tls.key};"
    line = 'log_format bench escape=json \'{"method":"$request_method","path":"$uri","sent":$body_bytes_sent}\';'
    temporary = "\n".join(
        f"    {kind}_temp_path {folder / 'temporary'};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(f"""
daemon off;
{"user root;" if os.geteuid() == 0 else ""}
worker_processes {workers};
worker_rlimit_nofile {min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 16384)};
pid {folder / "nginx.pid"};
error_log {folder / "error.log"} warn;
events {{ worker_connections 8192; }}
http {{
    {line}
    access_log {"off" if log is None else f"{log} bench"};
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_timeout 300s;
    keepalive_requests 100000000;
    ssl_protocols TLSv1.2 TLSv1.3;
    open_file_cache max=10000 inactive=60s;
{temporary}{outside}
    server {{
        listen 127.0.0.1:{port} backlog=4096 {"" if workers == 1 else "reuseport"}{"" if tls is None else " ssl"};
        {pem}{locations}
    }}
}}
""")
    command = [program("nginx") or "nginx", "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(_unpaced(port)).fileno() for _ in range(workers)] if is_unpaced else []
        env = {"NGINX": "".join(f"{fd};" for fd in made)} if made else None  # as one nginx hands them to the next
        async with process(command, port, env, log=folder / "nginx.log", inherited=made) as place:
            yield replace(place, is_tls=tls is not None)


def _unpaced(port: int) -> socket.socket:
    """One of as many sockets as there are workers that listen on a port."""
    sock = socket.create_server(("127.0.0.1", port), backlog=4096, reuse_port=True)
    nearby.begin_unpaced(sock)
    return sock


def sent(log: Path) -> int:
    """The bytes of blobs that an upstream with a log has sent so far."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return sum(line["sent"] for line in lines if line["method"] == "GET" and "/blobs/" in line["path"])


@contextlib.asynccontextmanager
async def varnish(upstream: str, folder: Path) -> AsyncIterator[Place]:
    """Varnish with a GiB of memory, which sends on what it is still fetching."""
    port = free_port()
    host, _, behind = upstream.partition(":")
    vcl = folder / "bench.vcl"
    vcl.write_text(f"""vcl 4.1;
backend registry {{ .host = "{host}"; .port = "{behind}"; }}
sub vcl_backend_response {{ set beresp.do_stream = true; set beresp.ttl = 1h; }}
""")
    command = [program("varnishd") or "varnishd", "-F", "-n", str(folder / "varnish"), "-a", f"127.0.0.1:{port}"]
    command += ["-j", "none", "-f", str(vcl), "-s", "malloc,1G"]  # as another user it could not read the folder
    async with process(command, port, log=folder / "varnish.log") as place:
        yield place
