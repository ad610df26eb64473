"""proxy.toml and the environment, read once into a frozen Config; every error names its key and the remedy."""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, SecretStr, ValidationError, model_validator

from proxy.oci import lifecycle
from proxy.oci.errors import OciError
from proxy.oci.lifecycle import PolicyInvalid
from proxy.proxies import from_environment
from proxy.registries import PUBLIC, known
from proxy.routing import Routes, image
from proxy.sections.account import Account
from proxy.sections.images import Lifecycle, Warm
from proxy.sections.server import Admin, Log, Server
from proxy.sections.store import S3, StorageClass, Store
from proxy.sections.upstream import Upstream
from proxy.values import Section

PREFIX = "ENTREPOT_"

# What Kubernetes sets, behind the name of a Service.
_KUBERNETES = re.compile(r"service_(?:host|port\w*)|port(?:_\d+_(?:tcp|udp|sctp)(?:_(?:proto|port|addr))?)?")


class ConfigError(Exception):
    """What is wrong with a configuration, a line a problem, each starting with the key's path."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


_SECTIONS: Mapping[str, type[Section]] = {"server": Server, "admin": Admin, "store": Store, "log": Log}


class Config(Section):
    """Everything that can be configured, validated."""

    server: Server = Field(default_factory=Server)
    admin: Admin = Field(default_factory=Admin)
    store: Store = Field(default_factory=Store)
    log: Log = Field(default_factory=Log)
    upstream: Annotated[tuple[Upstream, ...], Field(strict=False)]
    lifecycle: Annotated[tuple[Lifecycle, ...], Field(strict=False)] = ()
    warm: Annotated[tuple[Warm, ...], Field(strict=False)] = ()

    @property
    def default_upstream(self) -> Upstream | None:
        """Where names without a registry go: the one marked default, else docker.io, else the only one there is."""
        marked = [upstream for upstream in self.upstream if upstream.default]
        hub = [upstream for upstream in self.upstream if upstream.registry == "docker.io"]
        only = list(self.upstream) if len(self.upstream) == 1 else []
        return next(iter([*marked, *hub, *only]), None)

    @property
    def routes(self) -> Routes:
        """The names by which each upstream is asked for."""
        default = self.default_upstream
        return Routes(
            names={name: upstream.registry for upstream in self.upstream for name in upstream.names},
            hosts={host: upstream.registry for upstream in self.upstream for host in upstream.hosts},
            default=None if default is None else default.registry,
        )

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

    @model_validator(mode="after")
    def _of_an_upstream(self) -> Self:
        """A pattern without its registry would never match, and nobody would notice for a year."""
        heads = [f"{upstream.registry}/" for upstream in self.upstream]
        for index, entry in enumerate(self.lifecycle):
            for number, pattern in enumerate(entry.repositories):
                literal = pattern.partition("*")[0]
                if not any(head.startswith(literal) or literal.startswith(head) for head in heads):
                    place = f"lifecycle[{index}].repositories[{number}]"
                    raise ValueError(f"{place}: {pattern!r} is of no upstream: write one in front, as in {heads[0]}*")
        return self

    @model_validator(mode="after")
    def _warmable(self) -> Self:
        for number, entry in enumerate(self.warm):
            for name in entry.images:
                try:
                    image(self.routes, name)
                except OciError as error:
                    raise ValueError(f"warm[{number}].images: {name!r}: {error.message}") from None
        return self


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read the file, where there is one, lay the environment over it, and check everything.

    `ENTREPOT_SERVER_LISTEN=0.0.0.0:5000` sets `server.listen`; so for every key of [server], [admin], [store] and
    [log]. HTTPS_PROXY and its like count for the upstreams that name no proxy. Raises ConfigError with every problem
    found.
    """
    tables = _read(path)
    _overlay(tables, environ)
    entries = tables.get("upstream", [{"registry": registry} for registry in PUBLIC])
    if isinstance(entries, list):
        tables["upstream"] = [_completed(entry) for entry in entries]
    try:
        config = Config.model_validate(tables)
    except ValidationError as error:
        raise ConfigError([_explain(problem) for problem in error.errors()]) from None
    if config.server.sealed:
        sealed = tuple(upstream.model_copy(update={"sealed": True}) for upstream in config.upstream)
        config = config.model_copy(update={"upstream": sealed})
    return _with_policies(_with_passwords(_with_proxies(config, environ), environ))


def _with_proxies(config: Config, environ: Mapping[str, str]) -> Config:
    """Tell the upstreams that name no proxy of those in the environment. Raises ConfigError if they need one."""
    if all(upstream.proxy is not None for upstream in config.upstream):
        return config
    try:
        proxies = from_environment(environ)
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    return config.model_copy(
        update={
            "upstream": tuple(
                upstream.model_copy(update={"environment_proxies": proxies}) for upstream in config.upstream
            )
        }
    )


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
            table[key] = _typed(model.model_fields[key].annotation, value)
    if problems:
        raise ConfigError(problems)


def _typed(kind: object, text: str) -> int | bool | str:
    """What stands in the environment as the file would have it; a text is left for the key to refuse."""
    if kind is int and text.isdecimal():
        return int(text)
    if kind is bool and text.lower() in {"true", "false"}:
        return text.lower() == "true"
    return text


def _completed(entry: Any) -> Any:
    """An [[upstream]] that names a known registry needs to say only what differs."""
    if not isinstance(entry, dict):
        return entry
    registry = entry.get("registry")
    defaults = dict(known(registry.lower())) if isinstance(registry, str) else {}
    if "username" in entry:
        defaults.pop("account", None)
    return {**defaults, **entry}


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
        case "tuple_type" if key in {"upstream", "lifecycle", "warm"}:
            text = f"must be a list of tables: write [[{key}]], with two brackets"
        case "tuple_type":
            text = "must be a list: write it in [brackets]"
        case "path_type":
            text = f"must be a path, in quotes (it is {problem['input']!r})"
        case _:
            text = f"{problem['msg'].replace('Input should be', 'must be')} (it is {problem['input']!r})"
    return f"{key}: {text}" if key else text


def _nearest(location: Sequence[Any]) -> str:
    sections: Mapping[str, type[Section]] = {
        **_SECTIONS, "upstream": Upstream, "lifecycle": Lifecycle, "warm": Warm,
    }  # fmt: skip
    model = Config if len(location) == 1 else sections.get(str(location[0]), Config)
    if "account" in location[:-1]:
        model = Account
    if tuple(location[:2]) == ("store", "s3") and len(location) > 2:
        model = StorageClass if "storage_class" in location[:-1] else S3
    keys = [key for key, field in model.model_fields.items() if not field.exclude]
    near = difflib.get_close_matches(str(location[-1]), keys, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; the keys here are {', '.join(keys)}"


def _with_passwords(config: Config, environ: Mapping[str, str]) -> Config:
    """Look up every secret that the configuration points at. Raises ConfigError with every one that is not there."""
    problems: list[str] = []

    def found(table: Upstream | Account | Admin, key: str, place: str) -> SecretStr | None:
        try:
            return _secret(getattr(table, f"{key}_env"), getattr(table, f"{key}_file"), key, environ)
        except ValueError as error:
            problems.append(f"{place}.{error}")
            return None

    admin = config.admin.model_copy(update={"token": found(config.admin, "token", "admin")})
    upstreams = []
    for index, upstream in enumerate(config.upstream):
        place = f"upstream[{index}]"
        accounts = tuple(
            account.model_copy(update={"password": found(account, "password", f"{place}.account[{number}]")})
            for number, account in enumerate(upstream.account)
        )
        secrets = {key: found(upstream, key, place) for key in ("password", "proxy_password")}
        upstreams.append(upstream.model_copy(update={"account": accounts, **secrets}))
    if problems:
        raise ConfigError(problems)
    return config.model_copy(update={"upstream": tuple(upstreams), "admin": admin})


def _with_policies(config: Config) -> Config:
    """Read the policies that are in files of their own. Raises ConfigError with every one that is none."""
    problems, entries = [], []
    for index, entry in enumerate(config.lifecycle):
        try:
            policy = entry.policy if entry.policy_file is None else lifecycle.parse(policy_text(entry.policy_file))
        except ValueError as error:
            problems.append(f"lifecycle[{index}].policy_file: {error}")
        else:
            entries.append(entry.model_copy(update={"policy": policy}))
    if problems:
        raise ConfigError(problems)
    return config.model_copy(update={"lifecycle": tuple(entries)})


def policy_text(file: Path) -> str:
    """The lifecycle policy that a file holds, which is one. Raises ValueError with what is wrong, and where."""
    try:
        with file.open(encoding="utf-8") as stream:
            text = stream.read(lifecycle.MAX_TEXT + 1)
        lifecycle.parse(text)
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text: write the policy's JSON") from None
    except PolicyInvalid as error:
        raise ValueError(f"{file}: {error}") from None
    return text


def _secret(variable: str | None, file: Path | None, key: str, environ: Mapping[str, str]) -> SecretStr | None:
    if variable is not None:
        value = environ.get(variable)
        if not value:
            raise ValueError(f"{key}_env: the environment has no {variable}, or it is empty")
        return SecretStr(value)
    if file is None:
        return None
    try:
        return SecretStr(read_secret(file))
    except ValueError as error:
        raise ValueError(f"{key}_file: {error}") from None


def read_secret(file: Path) -> str:
    """The secret that a file holds, without the white space around it. Raises ValueError with what is wrong."""
    try:
        value = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text: write the password alone") from None
    if not value:
        raise ValueError(f"{file} is empty")
    return value
