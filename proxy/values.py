"""What a configuration holds, as people write it: durations, sizes, hosts, networks, addresses, patterns."""

import ipaddress
import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf
from yarl import URL

from proxy.oci import lifecycle
from proxy.oci.history import END
from proxy.oci.platform import Platform

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([kKMGT]i?B|B)?")
_UNITS = {"B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", 1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::\d{1,5})?|\[[0-9a-f:.]+\](?::\d{1,5})?")
_PATTERN = re.compile(r"[a-z0-9._/*-]{1,255}")
_REPOSITORY_PATTERN = re.compile(r"[a-z0-9._/:*-]{1,320}")  # with the registry in front
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]", re.ASCII)
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,511}", re.ASCII)
_STORAGE_CLASS = re.compile(r"[A-Z][A-Z0-9_]{1,63}", re.ASCII)
_LABEL = re.compile(r"[\w.@$+-]{1,64}", re.ASCII)


LONGEST = 100 * 365.25 * 86400  # seconds


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None or not any(match.groups()):
        raise ValueError(f'{value!r} is no duration: write "500ms", "60s", "5m", "1h30m" or "30d"')
    days, hours, minutes, seconds, milliseconds = (float(group or 0) for group in match.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def duration(text: str) -> float:
    """Seconds of a duration as people write it, a hundred years at most: "30d", "1h30m". Raises ValueError."""
    seconds = float(str(_seconds(text)))
    if not 0 <= seconds <= LONGEST:
        raise ValueError(f"{text!r} is longer than anything lasts: write at most {LONGEST / 86400:.0f}d")
    return seconds


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


def size(text: str) -> int:
    """Bytes of a size as people write it: "500 MB", "2 GiB". Raises ValueError."""
    return int(str(_bytes(text)))


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


def moment(text: str) -> float:
    """Unix seconds of a time as people write it: "2026-11-01", "2026-11-01T12:00:00Z"; UTC if it does not say.

    Raises ValueError.
    """
    try:
        written = datetime.fromisoformat(text.strip())
        seconds = (written if written.tzinfo else written.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        seconds = -1.0
    if not 0 <= seconds < END:
        raise ValueError(f'{text!r} is no time: write "2026-11-01" or "2026-11-01T12:00:00Z"')
    return seconds


def _moment(value: object) -> object:
    if isinstance(value, date):  # or a datetime, which is one: TOML has times of its own
        return moment(value.isoformat())
    return moment(value) if isinstance(value, str) else value


def _pattern(value: object) -> object:
    if isinstance(value, str) and not _PATTERN.fullmatch(value):
        raise ValueError(f'{value!r} is no pattern of repositories: write "library/*" or "acme/app"')
    return value


def _repository_patterns(value: object) -> object:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError('must be a list of repositories such as ["docker.io/library/*"]')
    for pattern in value:
        if not isinstance(pattern, str) or not _REPOSITORY_PATTERN.fullmatch(pattern):
            raise ValueError(f'{pattern!r} is no pattern of repositories: write "docker.io/library/*"')
    return value


def _policy(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("must be text: the JSON of a policy, in quotes")  # noqa: TRY004  pydantic
    return lifecycle.parse(value)


def _label(value: object) -> object:
    if isinstance(value, str) and not _LABEL.fullmatch(value):
        raise ValueError(f'{value!r} is no name: write up to 64 letters, digits and "._@$+-", such as "build-farm"')
    return value


def _bucket(value: object) -> object:
    if isinstance(value, str) and not _BUCKET.fullmatch(value):
        raise ValueError(f'{value!r} is no name of a bucket: write it alone, such as "images"')
    return value


def _prefix(value: object) -> object:
    if not isinstance(value, str) or not value:
        return value
    if not _PREFIX.fullmatch(value) or ".." in value or "//" in value:
        raise ValueError(f'{value!r} is no prefix of keys: write it like "entrepot/"')
    return value.removesuffix("/") + "/"


def _aws_account(value: object) -> object:
    if isinstance(value, str) and not (len(value) == 12 and value.isascii() and value.isdigit()):
        raise ValueError(f"{value!r} is no AWS account: write its twelve digits, in quotes")
    return value


def _storage_class(value: object) -> object:
    if isinstance(value, str) and not _STORAGE_CLASS.fullmatch(value):
        raise ValueError(f'{value!r} is no class of storage: write "STANDARD_IA" or "INTELLIGENT_TIERING"')
    if value in {"GLACIER", "DEEP_ARCHIVE"}:
        raise ValueError(f'{value!r} gives nothing back for hours: a cache cannot use it; write "GLACIER_IR"')
    return value


def _proxy(value: object) -> object:
    if not isinstance(value, str) or value == "none":
        return value
    try:
        url = URL(value)
        valid = url.scheme in {"http", "https"} and bool(url.host) and not url.query_string and url.path in {"", "/"}
    except ValueError:
        valid = False
    else:
        if valid and (url.user is not None or url.password is not None):
            raise ValueError("holds a user or a password: use proxy_username with proxy_password_env or _file")
    if not valid:
        raise ValueError('must look like "http://proxy.example:3128", or be "none" for no proxy at all')
    return value


def _prefetch(value: object) -> object:
    if value == "off" or value is False:
        return ()
    if value == "on" or value is True:
        return ("*",)
    if not isinstance(value, list | tuple):
        raise ValueError('must be "off", "on" or a list of repositories such as ["library/*"]')  # noqa: TRY004  pydantic
    return value


def _platform(value: object) -> object:
    if isinstance(value, str) and value != "all":
        Platform.parse(value)
    return value


class Section(BaseModel):
    """A table of the configuration: frozen, and without a key that does not exist."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


class Listen(Section):
    """An address to listen on; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=366 * 86400)]
Moment = Annotated[float, BeforeValidator(_moment), Field(ge=0)]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=0)]
Host = Annotated[str, BeforeValidator(_host)]
Address = Annotated[Listen, BeforeValidator(_listen)]
Network = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, BeforeValidator(_network)]
File = Annotated[Path, BeforeValidator(_path), Field(strict=False)]
Hosts = Annotated[tuple[Host, ...], Field(strict=False)]
Networks = Annotated[tuple[Network, ...], Field(strict=False)]
Label = Annotated[str, BeforeValidator(_label)]
Patterns = Annotated[tuple[Annotated[str, BeforeValidator(_pattern)], ...], Field(strict=False)]
RepositoryPatterns = Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(_repository_patterns)]
PolicyText = Annotated[InstanceOf[lifecycle.Policy], BeforeValidator(_policy)]
ProxyUrl = Annotated[str, BeforeValidator(_proxy)]
Platforms = Annotated[tuple[Annotated[str, BeforeValidator(_platform)], ...], Field(strict=False)]
Prefetch = Annotated[Patterns, BeforeValidator(_prefetch)]
BucketName = Annotated[str, BeforeValidator(_bucket)]
Prefix = Annotated[str, BeforeValidator(_prefix)]
AwsAccount = Annotated[str, BeforeValidator(_aws_account)]
StorageClassName = Annotated[str, BeforeValidator(_storage_class)]


def check_url(text: str, key: str = "url") -> None:
    """Raise ValueError for what is no URL of a server, below which there may be a path: the same for all keys."""
    try:
        url = URL(text)
        valid = url.scheme in {"http", "https"} and bool(url.host) and text.isascii()
    except ValueError:
        valid = False
    else:
        if valid and (url.user is not None or url.password is not None):
            raise ValueError(f"{key} holds a user or a password: they do not belong in a URL")
        valid = valid and not url.query_string and not url.fragment
    if not valid:
        raise ValueError(f'{key} must look like "https://registry.example.com", with no query')
