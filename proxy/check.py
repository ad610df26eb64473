"""What a configuration would do, said upstream by upstream."""

import os
import shutil
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from proxy.certificates import Certificate
from proxy.config import Config, ConfigError, Upstream


def report(config: Config, console: Console) -> bool:
    """Print what would happen; False if something would keep `serve` from starting."""
    problems = [*_store(config, console), *_listeners(config, console)]
    console.print(_upstreams(config))
    default = config.default_upstream
    if default is None:
        console.print("Names without a registry are refused: no upstream is marked default = true.")
    else:
        console.print(f"Names without a registry go to {default.registry}.")
    for upstream in config.upstream:
        console.print(_sentence(upstream), soft_wrap=True)
    for problem in problems:
        console.print(Text(f"entrepot: {problem}", style="red"), soft_wrap=True)
    console.print(Text("would not start", style="red") if problems else Text("would start", style="green"))
    return not problems


def _store(config: Config, console: Console) -> list[str]:
    """Whether the cache's directory can be used, and how much it may hold; nothing is created."""
    path = config.store.path
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return [f"store.path: {existing} may not be written by this user: choose another, or change its owner"]
    free = shutil.disk_usage(existing).free
    limit = decimal(config.store.max_size) if config.store.max_size else "no limit"
    console.print(f"The cache is in {path}: at most {limit}; the disk has {decimal(free)} free.", soft_wrap=True)
    if config.store.max_size == 0 or _taken(path) + free < config.store.max_size:
        console.print(
            "  The disk may fill up before store.max_size is reached; blobs are then passed through, not cached.",
            soft_wrap=True,
        )
    return []


def _taken(path: Path) -> int:
    try:
        return int((path / "ledger" / "stored").read_text())
    except (OSError, ValueError):
        return 0


def _listeners(config: Config, console: Console) -> list[str]:
    server = config.server
    scheme = "https" if server.tls_certificate else "http"
    workers = f"{server.workers} processes" if server.workers > 1 else "one process"
    console.print(f"Clients are served on {scheme}://{server.listen} by {workers}.")
    console.print(f"Metrics are on http://{config.admin.listen}/metrics.")
    if server.tls_certificate is not None and server.tls_key is not None:
        try:
            Certificate(server.tls_certificate, server.tls_key)
        except ConfigError as error:
            return list(error.problems)
    return []


def _upstreams(config: Config) -> Table:
    table = Table("registry", "is at", "as", "tags are fresh for", "also called")
    for upstream in config.upstream:
        table.add_row(
            upstream.registry,
            upstream.url,
            "anonymous" if upstream.username is None else upstream.username,
            f"{upstream.tag_ttl:g} s",
            ", ".join((*upstream.aliases, *upstream.hosts)),
        )
    return table


def _sentence(upstream: Upstream) -> str:
    """What happens with a pull of this upstream that an operator may not expect."""
    parts = [f"{upstream.registry}: pulled as /v2/{upstream.registry}/NAME or with ?ns={upstream.registry}"]
    if upstream.hosts:
        parts.append(f"or by the host name {', '.join(upstream.hosts)}")
    if upstream.password is not None:
        where = f"${upstream.password_env}" if upstream.password_env else str(upstream.password_file)
        parts.append(f"the password is taken from {where}; whoever reaches this cache can pull what it may read")
    realms = [str(upstream.base.host), *upstream.realm_hosts]
    parts.append(f"tokens may come from {', '.join(realms)}")
    if upstream.url.startswith("http://"):
        parts.append("without TLS: bytes are verified, but passwords and tags travel in the clear")
    return "; ".join(parts) + "."
