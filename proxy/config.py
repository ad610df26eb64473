"""proxy.toml and the environment, read once into a frozen Config; every error names its key and the remedy."""

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from platformdirs import user_cache_path
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator
from yarl import URL

PREFIX = "ENTREPOT_"

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([kKMGT]i?B|B)?")
_UNITS = {"B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", 1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::\d{1,5})?|\[[0-9a-f:.]+\](?::\d{1,5})?")
# What Kubernetes sets, behind the name of a Service.
_KUBERNETES = re.compile(r"service_(?:host|port\w*)|port(?:_\d+_(?:tcp|udp|sctp)(?:_(?:proto|port|addr))?)?")


class ConfigError(Exception):
    """What is wrong with a configuration, a line a problem, each starting with the key's path."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None or not any(match.groups()):
        raise ValueError(f'{value!r} is no duration: write "500ms", "60s", "5m" or "1h30m"')
    hours, minutes, seconds, milliseconds = (float(group or 0) for group in match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def _bytes(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f'{value!r} is no size: write "500 MiB", "100 GiB" or "2 TB"')
    try:
        return int(float(match[1]) * _UNITS[(match[2] or "B").replace("k", "K")])
    except OverflowError:
        raise ValueError(f"{value!r} is more than any disk holds") from None


def _host(value: object) -> object:
    if isinstance(value, str):
        value = value.lower()
        if "@" in value:  # whatever it is may be a secret: not repeated
            raise ValueError('holds a "@": write the host alone, such as "ghcr.io"; a user is set by username')
        if not _HOST.fullmatch(value):
            raise ValueError(f'{value!r} is no registry host: write "ghcr.io" or "registry.example.com:5000"')
    return value


def _network(value: object) -> object:
    try:
        return ipaddress.ip_network(str(value))
    except ValueError as error:
        raise ValueError(f'{error}: write a network such as "10.0.0.0/8" or an address') from None


def _path(value: object) -> object:
    if value == "":
        raise ValueError("is empty: give a path, or leave it out")
    return value


def _listen(value: object) -> object:
    if isinstance(value, Listen):
        return value
    host, colon, port = str(value).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f'{value!r} is no address to listen on: write "127.0.0.1:5000", or "0.0.0.0:5000" for all')
    return Listen(host=host, port=int(port))


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


class Listen(_Section):
    """An address to listen on; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=366 * 86400)]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=0)]
Host = Annotated[str, BeforeValidator(_host)]
Address = Annotated[Listen, BeforeValidator(_listen)]
Network = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, BeforeValidator(_network)]
File = Annotated[Path, BeforeValidator(_path), Field(strict=False)]
Hosts = Annotated[tuple[Host, ...], Field(strict=False)]


class Server(_Section):
    """The registry's own listener."""

    listen: Address = Listen(host="127.0.0.1", port=5000)
    workers: int = Field(default=1, ge=1, le=64)
    lb_delay: Seconds = 5.0
    drain_timeout: Seconds = 300.0
    client_stall_timeout: Annotated[Seconds, Field(gt=0)] = 120.0
    tls_certificate: File | None = None
    tls_key: File | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: set both, or neither for plain HTTP")
        return self


class Admin(_Section):
    """The operator's listener: metrics; never on the registry port."""

    listen: Address = Listen(host="127.0.0.1", port=5001)


class Store(_Section):
    """Where the cache is, and how large it may grow (bytes; 0: no limit)."""

    path: File = Field(default_factory=lambda: user_cache_path("entrepot"))
    max_size: Bytes = 100 * 1024**3


class Log(_Section):
    """How to log."""

    format: Literal["auto", "console", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Upstream(_Section):
    """One registry to pull from, under the name that clients use for it."""

    registry: Host
    url: str
    aliases: Hosts = ()
    hosts: Hosts = ()
    default: bool = False
    username: str | None = None
    password_env: str | None = None
    password_file: File | None = None
    tag_ttl: Seconds = 60.0
    realm_hosts: Hosts = ()
    private_networks: Annotated[tuple[Network, ...], Field(strict=False)] = ()
    stall_timeout: Annotated[Seconds, Field(gt=0)] = 60.0
    password: SecretStr | None = Field(default=None, exclude=True, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that `ns` or a path component may call this upstream by."""
        return (self.registry, *self.aliases)

    @property
    def base(self) -> URL:
        """The URL in front of /v2/, without a trailing slash."""
        return URL(self.url.rstrip("/"))

    @model_validator(mode="before")
    @classmethod
    def _no_secret(cls, table: Any) -> Any:
        if isinstance(table, dict) and "password" in table:
            raise ValueError("password: a secret does not belong in a configuration: use password_env or password_file")
        return table

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _check_url(self.url)
        if self.password_env is not None and self.password_file is not None:
            raise ValueError("password_env and password_file exclude each other: set one of them")
        if (self.username is None) != (self.password_env is None and self.password_file is None):
            raise ValueError("username needs password_env or password_file, and they need username")
        return self


def _check_url(text: str) -> None:
    try:
        url = URL(text)
        valid = url.scheme in {"http", "https"} and bool(url.host) and text.isascii()
    except ValueError:
        valid = False
    else:
        if valid and (url.user is not None or url.password is not None):
            raise ValueError("url holds a user or a password: use username with password_env or password_file")
        valid = valid and not url.query_string and not url.fragment
    if not valid:
        raise ValueError('url must look like "https://registry.example.com", with no query')


# What is known of each public registry: where it really is, what else it is called, and who issues its tokens.
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "docker.io": {
        "url": "https://registry-1.docker.io",
        "aliases": ["index.docker.io", "registry-1.docker.io"],
        "realm_hosts": ["auth.docker.io"],
    },
    "ghcr.io": {"url": "https://ghcr.io"},
    "quay.io": {"url": "https://quay.io"},
    "gcr.io": {"url": "https://gcr.io"},
    "registry.k8s.io": {"url": "https://registry.k8s.io"},
    "mcr.microsoft.com": {"url": "https://mcr.microsoft.com"},
    "public.ecr.aws": {"url": "https://public.ecr.aws"},
    "registry.gitlab.com": {"url": "https://registry.gitlab.com", "realm_hosts": ["gitlab.com"]},
    "nvcr.io": {"url": "https://nvcr.io", "realm_hosts": ["authn.nvidia.com"]},
}


_SECTIONS: Mapping[str, type[_Section]] = {"server": Server, "admin": Admin, "store": Store, "log": Log}


class Config(_Section):
    """Everything that can be configured, validated."""

    server: Server = Field(default_factory=Server)
    admin: Admin = Field(default_factory=Admin)
    store: Store = Field(default_factory=Store)
    log: Log = Field(default_factory=Log)
    upstream: Annotated[tuple[Upstream, ...], Field(strict=False)]

    @property
    def default_upstream(self) -> Upstream | None:
        """Where names without a registry go: the one marked default, else docker.io, else the only one there is."""
        marked = [upstream for upstream in self.upstream if upstream.default]
        hub = [upstream for upstream in self.upstream if upstream.registry == "docker.io"]
        only = list(self.upstream) if len(self.upstream) == 1 else []
        return next(iter([*marked, *hub, *only]), None)

    @model_validator(mode="after")
    def _unambiguous(self) -> Self:
        if not self.upstream:
            raise ValueError("upstream: there is none: give one, or leave the key out for the public registries")
        if sum(upstream.default for upstream in self.upstream) > 1:
            raise ValueError("upstream: more than one is marked default = true; keep one")
        for kind in ("names", "hosts"):
            seen: dict[str, str] = {}
            for upstream in self.upstream:
                for name in getattr(upstream, kind):
                    if name in seen:
                        raise ValueError(f"upstream: {name!r} names both {seen[name]} and {upstream.registry}")
                    seen[name] = upstream.registry
        return self


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read the file, where there is one, lay the environment over it, and check everything.

    `ENTREPOT_SERVER_LISTEN=0.0.0.0:5000` sets `server.listen`; so for every key of [server], [admin], [store] and
    [log]. Raises ConfigError with every problem found.
    """
    tables = _read(path)
    _overlay(tables, environ)
    entries = tables.get("upstream", [{"registry": registry} for registry in KNOWN])
    if isinstance(entries, list):
        tables["upstream"] = [_completed(entry) for entry in entries]
    try:
        config = Config.model_validate(tables)
    except ValidationError as error:
        raise ConfigError([_explain(problem) for problem in error.errors()]) from None
    return _with_passwords(config, environ)


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read ({error.strerror}); give --config a readable file"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: is no TOML ({error})"]) from None


def _overlay(tables: dict[str, Any], environ: Mapping[str, str]) -> None:
    problems = []
    for variable, value in environ.items():
        if not variable.startswith(PREFIX):
            continue
        section, _, key = variable.removeprefix(PREFIX).lower().partition("_")
        model = _SECTIONS.get(section)
        if model is None:
            continue  # Kubernetes sets ENTREPOT_SERVICE_HOST and the like for a Service called entrepot
        if _KUBERNETES.fullmatch(key):
            continue  # ... and ENTREPOT_ADMIN_SERVICE_HOST for one called entrepot-admin
        if key not in model.model_fields:
            problems.append(f"{variable}: sets no key that exists; {PREFIX}SERVER_LISTEN sets server.listen")
            continue
        table = tables.setdefault(section, {})
        if isinstance(table, dict):
            table[key] = int(value) if model.model_fields[key].annotation is int and value.isdecimal() else value
    if problems:
        raise ConfigError(problems)


def _completed(entry: Any) -> Any:
    """An [[upstream]] that names a known registry needs to say only what differs."""
    if not isinstance(entry, dict):
        return entry
    registry = entry.get("registry")
    known = KNOWN.get(registry.lower(), {}) if isinstance(registry, str) else {}
    return {**known, **entry}


def _explain(problem: Any) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]]
    key = "".join(parts).lstrip(".")
    match problem["type"]:
        case "extra_forbidden":
            text = f"no such key{_nearest(problem['loc'])}"
        case "missing":
            text = "is required"
        case "value_error":
            text = str(problem["ctx"]["error"])
        case "model_type" | "dict_type" | "model_attributes_type":
            text = "must be a table"
        case "tuple_type" if key == "upstream":
            text = "must be a list of tables: write [[upstream]], with two brackets"
        case "tuple_type":
            text = "must be a list: write it in [brackets]"
        case "path_type":
            text = f"must be a path, in quotes (it is {problem['input']!r})"
        case _:
            text = f"{problem['msg'].replace('Input should be', 'must be')} (it is {problem['input']!r})"
    return f"{key}: {text}" if key else text


def _nearest(location: Sequence[Any]) -> str:
    sections: Mapping[str, type[_Section]] = {**_SECTIONS, "upstream": Upstream}
    model = Config if len(location) == 1 else sections.get(str(location[0]), Config)
    keys = [key for key in model.model_fields if key != "password"]
    near = difflib.get_close_matches(str(location[-1]), keys, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; the keys here are {', '.join(keys)}"


def _with_passwords(config: Config, environ: Mapping[str, str]) -> Config:
    problems: list[str] = []
    upstreams = []
    for index, upstream in enumerate(config.upstream):
        try:
            password = _password(upstream, environ)
        except ValueError as error:
            problems.append(f"upstream[{index}].{error}")
        else:
            upstreams.append(upstream.model_copy(update={"password": password}))
    if problems:
        raise ConfigError(problems)
    return config.model_copy(update={"upstream": tuple(upstreams)})


def _password(upstream: Upstream, environ: Mapping[str, str]) -> SecretStr | None:
    if upstream.password_env is not None:
        value = environ.get(upstream.password_env)
        if not value:
            raise ValueError(f"password_env: the environment has no {upstream.password_env}, or it is empty")
        return SecretStr(value)
    if upstream.password_file is not None:
        try:
            value = upstream.password_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"password_file: {upstream.password_file} cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise ValueError(f"password_file: {upstream.password_file} is no text: write the password alone") from None
        if not value:
            raise ValueError(f"password_file: {upstream.password_file} is empty")
        return SecretStr(value)
    return None
