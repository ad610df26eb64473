"""What a configuration would do, said upstream by upstream."""

import os
import shutil
import textwrap
from pathlib import Path

from rich.console import Console
from rich.text import Text

from proxy import files, trust
from proxy.certificates import Certificate
from proxy.config import Config, ConfigError
from proxy.inventory import age, size
from proxy.sections.account import Account
from proxy.sections.images import Lifecycle, Warm
from proxy.sections.store import S3
from proxy.sections.upstream import Upstream
from proxy.stores import ledger
from proxy.warming import here

GIB = 1024**3
FORMS = "/v2/{name}/IMAGE or ?ns={name}"


def report(config: Config, console: Console) -> bool:
    """Print what would happen; False if something would keep `serve` from starting."""
    problems = [*_store(config, console), *_listeners(config, console), *trust.problems(config)]
    if config.store.s3 is not None:
        console.print()
        _paragraph(console, f"bucket {config.store.s3.bucket}", _kept(config.store.s3))
    for upstream in config.upstream:
        console.print()
        _paragraph(console, _title(config, upstream), _sentences(upstream))
    for index, entry in enumerate(config.lifecycle):
        console.print()
        _paragraph(console, f"lifecycle[{index}] for {', '.join(entry.repositories)}", _rules(entry))
    for going in config.warm:
        console.print()
        _paragraph(console, f"brought in every {age(going.every)}", _warmed(going))
    console.print()
    if config.default_upstream is None:
        console.print("A name without a registry is refused: no upstream is marked default = true.")
    tell(problems, console)
    console.print(Text("would not start", style="red") if problems else Text("would start", style="green"))
    return not problems


def tell(problems: list[str], console: Console) -> bool:
    """Print what upstreams said to a try; False if there is something to mend."""
    for problem in problems:
        console.print(Text(f"entrepot: {problem}", style="red"), soft_wrap=True)
    return not problems


def _paragraph(console: Console, title: str, sentences: list[str]) -> None:
    """A title, and under it a line a sentence, wrapped where the terminal ends; no address is ever cut."""
    console.print(Text(title, style="bold"), soft_wrap=True)
    for sentence in sentences:
        lines = textwrap.fill(
            sentence, console.width, initial_indent="  ", subsequent_indent="    ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        console.print(Text(lines), soft_wrap=True)


def _store(config: Config, console: Console) -> list[str]:
    """Whether the cache's directory can be used, and how much it may hold; nothing is created."""
    path = config.store.path
    try:
        existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    except PermissionError as error:
        return [f"store.path: {error.filename} may not be entered by this user: choose another, or change its mode"]
    if not existing.is_dir():
        return [f"store.path: {existing} is no directory: choose another path, or move it away"]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"store.path: {existing} may not be written by this user: choose another, or change its owner"]
    if existing == path:
        try:
            files.check_root(path, path.stat())
        except files.UnsafeDirectory as error:
            return [f"store.path: {error}"]
    limit, free = config.store.max_size, shutil.disk_usage(existing).free
    said = [f"At most {_size(limit) if limit else 'what the disk has'}; the disk has {_size(free)} free."]
    if limit == 0 or _taken(path) + free < limit:
        said.append("The disk may be full before that; then blobs are passed through and not kept.")
    _paragraph(console, f"cache in {path}", said)
    return []


def _size(count: int) -> str:
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count:,} bytes"


def _taken(path: Path) -> int:
    try:
        with (path / ledger.KEY).open("rb") as file:
            return files.read_number(file.fileno())
    except OSError:
        return 0


def _listeners(config: Config, console: Console) -> list[str]:
    server = config.server
    scheme = "https" if server.tls_certificate else "http"
    workers = f"{server.workers} processes" if server.workers > 1 else "one process"
    console.print()
    _paragraph(
        console,
        f"clients at {scheme}://{server.listen}",
        [f"Served by {workers}.", f"Metrics for the operator are at http://{config.admin.listen}/metrics."],
    )
    if server.tls_certificate is not None and server.tls_key is not None:
        try:
            Certificate(server.tls_certificate, server.tls_key)
        except ConfigError as error:
            return list(error.problems)
    return []


def _title(config: Config, upstream: Upstream) -> str:
    default = upstream is config.default_upstream
    return f"{upstream.registry} from {upstream.url}{', the default' if default else ''}"


def _sentences(upstream: Upstream) -> list[str]:
    """What happens with a pull of this upstream, and what of it an operator may not expect."""
    hosts = f", or at the host name {' or '.join(upstream.hosts)}" if upstream.hosts else ""
    said = [f"Clients ask for {FORMS.format(name=upstream.registry)}{hosts}."]
    if upstream.aliases:
        said.append(f"It is also called {' and '.join(upstream.aliases)}.")
    said.extend(_account(account) for account in upstream.accounts)
    if any(not account.anonymous for account in upstream.accounts):
        said.append("Whoever reaches this cache can pull what these accounts may read.")
    realms = dict.fromkeys([str(upstream.base.host), *upstream.realm_hosts])
    said.append(f"Tokens may come from {' or '.join(realms)}.")
    if upstream.sealed:
        return [*said, "It is sealed: it is asked nothing, and what is not cached cannot be had."]
    said.append(f"Upstream is asked again for a tag after {upstream.tag_ttl:g} s.")
    if upstream.freeze:
        said.append(f"But the tags of {', '.join(upstream.freeze)} stay what they are at their first pull.")
    if upstream.private_networks:
        said.append(f"Redirects and tokens may lead to {', '.join(map(str, upstream.private_networks))}.")
    if upstream.url.startswith("http://"):
        said.append("No TLS: bytes are verified, but tags and passwords travel in the clear.")
    if upstream.insecure:
        said.append("Its certificate is not verified: whoever is in between can read passwords and move tags.")
    return said


def _kept(s3: S3) -> list[str]:
    """What the bucket is for, and how objects are kept in it."""
    where = s3.endpoint_url or f"Amazon S3{f' in {s3.region}' if s3.region else ''}"
    said = [f"Everything that is cached goes to {where} as well, below {s3.prefix or 'no prefix'}."]
    if s3.encryption is not None:
        said.append(f"Encrypted there by {s3.encryption}{f' with the key {s3.kms_key_id}' if s3.kms_key_id else ''}.")
    if s3.redirect_networks:
        networks = ", ".join(map(str, s3.redirect_networks))
        where = s3.redirect_endpoint_url or where
        said.append(
            f"Clients from {networks} are sent to {where} for blobs, with a URL that is good for {s3.redirect_for:g} s."
        )
    if s3.keep_unused is not None:
        said.append(f"What no replica used for {s3.keep_unused / 86400:g} days goes from there.")
    if s3.max_size:
        said.append(f"At most {size(s3.max_size)} of blobs are kept there: what was used longest ago goes.")
    return said + [f"From {size(rule.min_size)} on: {rule.name}." for rule in s3.storage_class]


def _rules(entry: Lifecycle) -> list[str]:
    """What goes by a policy, a rule a line."""
    return [] if entry.policy is None else [f"Rule {rule.priority}: {rule}." for rule in entry.policy.rules]


def _warmed(entry: Warm) -> list[str]:
    """What a [[warm]] entry has the server do by itself."""
    listed = [] if entry.file is None else [f"what {entry.file} lists"]
    said = [f"{', '.join([*entry.images, *listed])}, for {', '.join(entry.platforms) or here()}."]
    return said if entry.keep is None else [*said, f"Pinned for {age(entry.keep)} each time."]


def _account(account: Account) -> str:
    """Whom an upstream is asked as, and where the secret comes from."""
    what = f" for {', '.join(account.repositories)}" if account.repositories else ""
    if account.anonymous:
        return f"Pulled anonymously{what}: public images only."
    if account.docker_config is not None:
        return f"Pulled{what} with the login in {account.docker_config}, or the helper named there."
    if account.provider is not None:
        of = {"ecr": "the AWS credential chain", "google": "Google's credentials", "acr": "Azure's credentials"}
        return f"Pulled as {account.label}{what} with a login from {account.key_file or of[account.provider]}."
    where = f"${account.password_env}" if account.password_env else str(account.password_file)
    return f"Pulled as {account.username}{what} with the password from {where}."
