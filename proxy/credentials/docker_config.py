"""What Docker's config.json says of a registry: a login, or the helper that knows it."""

import json
import re
from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxy.credentials.base import Credential, CredentialError

# What `docker login` without a registry files its login under.
HUB = "https://index.docker.io/v1/"
_HUB_HOSTS = ("index.docker.io", "docker.io", "registry-1.docker.io")
_HELPER = re.compile(r"[a-z0-9-]{1,64}")
_KEY = re.compile(r"(?:https?://)?(?P<host>[^/]+)(?:/(?:v[12]/?)?)?")


@dataclass(frozen=True, slots=True)
class Helper:
    """A program, docker-credential-<name>, and the servers to ask it about, one after the other."""

    name: str
    servers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Login:
    """What is known of one registry: ask the helper, if there is one; then take the credential, if there is one."""

    helper: Helper | None
    credential: Credential | None


def read(path: Path) -> Mapping[str, Any]:
    """A config.json. Raises OSError and CredentialError; blocking."""
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise CredentialError(f"{path} is no JSON: is it Docker's config.json?") from None
    if not isinstance(config, dict):
        raise CredentialError(f"{path} is no Docker configuration: it must hold a JSON object")
    return config


def find(config: Mapping[str, Any], names: Sequence[str]) -> Login:
    """The login for a registry that goes by any of `names` (host, or host:port).

    As with Docker a helper for the registry goes before the general one. Raises CredentialError.
    """
    hosts = list(dict.fromkeys(_hosts(names)))
    helpers, auths = (_table(config, key) for key in ("credHelpers", "auths"))
    servers = tuple(dict.fromkeys(HUB if host in _HUB_HOSTS else host for host in hosts))
    own = _entry(helpers, hosts)
    if own is not None:
        return Login(Helper(_helper_name(own), servers), None)
    credential = _inline(_entry(auths, hosts))
    store = config.get("credsStore")
    return Login(Helper(_helper_name(store), servers) if store else None, credential)


def _hosts(names: Sequence[str]) -> Iterable[str]:
    for name in names:
        yield name
        if name in _HUB_HOSTS:
            yield from _HUB_HOSTS


def _table(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = config.get(key) or {}
    if not isinstance(table, dict):
        raise CredentialError(f"{key} must be an object")
    return table


def _entry(table: Mapping[str, Any], hosts: Sequence[str]) -> object:
    """The entry of the first host that has one, written as the host or as a URL of its API, as Docker does."""
    by_host: dict[str, object] = {}
    for key, entry in table.items():
        match = _KEY.fullmatch(key)
        if match is not None and (key == match["host"] or match["host"] not in by_host):
            by_host[match["host"]] = entry
    return next((by_host[host] for host in hosts if host in by_host), None)


def _helper_name(name: object) -> str:
    if not isinstance(name, str) or not _HELPER.fullmatch(name):
        raise CredentialError(
            "credHelpers or credsStore names an impossible helper: write what follows docker-credential-"
        )
    return name


def _inline(entry: object) -> Credential | None:
    if not isinstance(entry, dict):
        return None
    username, password = entry.get("username") or "", entry.get("password") or ""
    if entry.get("auth"):
        username, password = _decoded(entry["auth"])
    token = entry.get("identitytoken")
    if token:
        username, password = username or "<token>", token
    if not isinstance(username, str) or not isinstance(password, str):
        raise CredentialError("an entry of auths holds what is no text")
    return Credential(username, password, bool(token)) if username and password else None


def _decoded(auth: object) -> tuple[str, str]:
    try:
        username, colon, password = b64decode(str(auth), validate=True).decode().partition(":")
    except ValueError:
        colon = username = password = ""
    if not colon:
        raise CredentialError('the "auth" of an entry of auths is not the base64 of "user:password"')
    return username, password.strip("\0")  # Docker pads it at times
