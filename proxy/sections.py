"""The sections of the configuration, each a frozen value that cannot be impossible."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from platformdirs import user_cache_path
from pydantic import Field, InstanceOf, SecretStr, field_validator, model_validator
from yarl import URL

from proxy.proxies import Proxies, everywhere
from proxy.values import (
    Address,
    AwsAccount,
    BucketName,
    Bytes,
    File,
    Host,
    Hosts,
    Label,
    Listen,
    Moment,
    Networks,
    Patterns,
    Platforms,
    PolicyText,
    Prefetch,
    Prefix,
    ProxyUrl,
    RepositoryPatterns,
    Seconds,
    Section,
    StorageClassName,
)

# Which keys of an account mean something to which provider only.
PROVIDER_KEYS: Mapping[str, tuple[str, ...]] = {
    "ecr": ("region", "profile", "role_arn", "endpoint_url"),
    "google": ("key_file",),
    "acr": ("tenant",),
}


class Server(Section):
    """The registry's own listener."""

    listen: Address = Listen(host="127.0.0.1", port=5000)
    advertise: str | None = None
    workers: int = Field(default=1, ge=1, le=64)
    lb_delay: Seconds = 5.0
    drain_timeout: Seconds = 300.0
    sealed: bool = False
    client_stall_timeout: Annotated[Seconds, Field(gt=0)] = 120.0
    tls_certificate: File | None = None
    tls_key: File | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: set both, or neither for plain HTTP")
        return self

    @field_validator("advertise")
    @classmethod
    def _place(cls, text: str | None) -> str | None:
        if text is None:
            return None
        _check_url(text, "advertise")
        url = URL(text)
        if url.path not in {"", "/"} or url.host in {"0.0.0.0", "::"}:  # noqa: S104  to be refused
            raise ValueError('it must look like "http://10.0.0.5:5000", where other replicas reach this one')
        return str(url.origin())


class Admin(Section):
    """The operator's listener: metrics, and /api, for which a token may be demanded; never on the registry port."""

    listen: Address = Listen(host="127.0.0.1", port=5001)
    token_env: str | None = None
    token_file: File | None = None
    token: SecretStr | None = Field(default=None, exclude=True, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _no_secret(cls, table: Any) -> Any:
        if isinstance(table, dict) and "token" in table and not isinstance(table["token"], SecretStr):
            raise ValueError("token: a secret does not belong in a configuration: use token_env or token_file")
        return table

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if self.token_env is not None and self.token_file is not None:
            raise ValueError("token_env and token_file exclude each other: set one of them")
        return self


def _check_url(text: str, key: str = "url") -> None:
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


class StorageClass(Section):
    """Which class of storage objects of at least so many bytes go to."""

    name: StorageClassName
    min_size: Bytes = 0


class S3(Section):
    """The bucket that outlives this machine, and that replicas share."""

    bucket: BucketName
    prefix: Prefix = ""
    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"
    ca_file: File | None = None
    expected_bucket_owner: AwsAccount | None = None
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    kms_key_id: str | None = None
    storage_class: Annotated[tuple[StorageClass, ...], Field(strict=False)] = ()
    checksums: Literal["when_required", "when_supported"] = "when_required"
    redirect_networks: Networks = ()
    redirect_for: Annotated[Seconds, Field(ge=1, le=3600)] = 60.0
    redirect_endpoint_url: str | None = None
    keep_unused: Annotated[Seconds, Field(ge=2 * 86400)] | None = None
    max_size: Bytes = 0

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for key in ("endpoint_url", "redirect_endpoint_url"):
            if getattr(self, key) is not None:
                _check_url(getattr(self, key), key)
        stray = sorted({"redirect_for", "redirect_endpoint_url"} & self.model_fields_set)
        if stray and not self.redirect_networks:
            raise ValueError(f"{stray[0]} goes with redirect_networks, which says whom to redirect")
        if self.kms_key_id is not None and (self.encryption is None or not self.encryption.startswith("aws:kms")):
            raise ValueError('kms_key_id goes with encryption = "aws:kms" or "aws:kms:dsse" only')
        # The first that fits counts: the largest least size first.
        ordered = tuple(sorted(self.storage_class, key=lambda rule: -rule.min_size))
        return self if ordered == self.storage_class else self.model_copy(update={"storage_class": ordered})


class Store(Section):
    """Where the cache is, how large it may grow (bytes; 0: no limit), and how it is looked after (bytes a second)."""

    path: File = Field(default_factory=lambda: user_cache_path("entrepot"))
    max_size: Bytes = 100 * 1024**3
    min_free: Bytes = 1024**3
    keep_deleted: bool = True
    scrub_rate: Bytes = 10_000_000
    scrub_interval: Annotated[Seconds, Field(gt=0)] = 30 * 86400.0
    verify_on_read: bool = False
    lifecycle_interval: Annotated[Seconds, Field(ge=60)] = 3600.0
    s3: S3 | None = None


class Warm(Section):
    """Images that are brought in every so often, and how long they are kept each time (seconds; None: as any other)."""

    images: Annotated[tuple[str, ...], Field(strict=False)] = ()
    file: File | None = None
    platforms: Platforms = ()
    every: Annotated[Seconds, Field(ge=60)] = 24 * 3600.0
    keep: Annotated[Seconds, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if not self.images and self.file is None:
            raise ValueError("names no images: give images, or a file of them")
        if self.keep is not None and self.keep <= self.every:
            raise ValueError("keep is no longer than every: the pin would end before the next round renews it")
        return self


class Log(Section):
    """How to log."""

    format: Literal["auto", "console", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


def _refuse_secret(table: Any) -> Any:
    for key in ("password", "proxy_password"):
        if isinstance(table, dict) and key in table and not isinstance(table[key], SecretStr):
            raise ValueError(f"{key}: a secret does not belong in a configuration: use {key}_env or {key}_file")
    return table


def _check_password(username: str | None, env: str | None, file: Path | None, prefix: str = "") -> None:
    either = f"{prefix}password_env or {prefix}password_file"
    if env is not None and file is not None:
        raise ValueError(f"{either.replace(' or ', ' and ')} exclude each other: set one of them")
    if (username is None) != (env is None and file is None):
        raise ValueError(f"{prefix}username needs {either}, and they need {prefix}username")


class Account(Section):
    """One way to be known to an upstream; what it is known by is read by `proxy.credentials`."""

    name: Label | None = None
    username: str | None = None
    password_env: str | None = None
    password_file: File | None = None
    docker_config: File | None = None
    provider: Literal["ecr", "google", "acr"] | None = None
    anonymous: bool = False
    repositories: Patterns = ()
    region: str | None = None
    profile: str | None = None
    role_arn: str | None = None
    endpoint_url: str | None = None
    key_file: File | None = None
    tenant: str | None = None
    password: SecretStr | None = Field(default=None, exclude=True, repr=False)

    @property
    def label(self) -> str:
        """What logs and metrics call this account: never anything secret."""
        kind = "docker_config" if self.docker_config else "anonymous"
        return self.name or self.username or self.provider or kind

    _no_secret = model_validator(mode="before")(_refuse_secret)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        _check_password(self.username, self.password_env, self.password_file)
        ways = [self.username is not None, self.docker_config is not None, self.provider is not None, self.anonymous]
        if sum(ways) != 1:
            raise ValueError(
                "an account needs one of username (with password_env or password_file), docker_config, provider and "
                "anonymous = true"
            )
        for provider, keys in PROVIDER_KEYS.items():
            stray = [key for key in keys if getattr(self, key) is not None and self.provider != provider]
            if stray:
                raise ValueError(f'{stray[0]} goes with provider = "{provider}" only')
        return self


class Upstream(Section):
    """One registry to pull from, under the name that clients use for it."""

    registry: Host
    url: str
    aliases: Hosts = ()
    hosts: Hosts = ()
    default: bool = False
    username: str | None = None
    password_env: str | None = None
    password_file: File | None = None
    account: Annotated[tuple[Account, ...], Field(strict=False)] = ()
    tag_ttl: Seconds = 60.0
    longest_tag_ttl: Seconds = 3600.0
    sealed: bool = False
    freeze: Patterns = ()
    as_of: Moment | None = None
    rate_reserve: float = Field(default=0.1, ge=0, le=1)
    realm_hosts: Hosts = ()
    private_networks: Networks = ()
    proxy: ProxyUrl | None = None
    proxy_username: str | None = None
    proxy_password_env: str | None = None
    proxy_password_file: File | None = None
    ca_file: File | None = None
    client_certificate: File | None = None
    client_key: File | None = None
    insecure: bool = False
    connections_per_blob: int = Field(default=4, ge=1, le=16)
    max_requests: int = Field(default=64, ge=2, le=1024)
    prefetch: Prefetch = ()
    stall_timeout: Annotated[Seconds, Field(gt=0)] = 60.0
    password: SecretStr | None = Field(default=None, exclude=True, repr=False)
    proxy_password: SecretStr | None = Field(default=None, exclude=True, repr=False)
    environment_proxies: InstanceOf[Proxies] = Field(default=Proxies(), exclude=True, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that `ns` or a path component may call this upstream by."""
        return (self.registry, *self.aliases)

    def holds_tags(self, name: str) -> bool:
        """Whether tags of a repository stay what they are: upstream is not asked for them again."""
        return self.sealed or any(fnmatchcase(name, pattern) for pattern in self.freeze)

    @property
    def base(self) -> URL:
        """The URL in front of /v2/, without a trailing slash."""
        return URL(self.url.rstrip("/"))

    @property
    def proxies(self) -> Proxies:
        """What requests go through: the proxy that is written here, none, or what the environment says."""
        if self.proxy is None:
            return self.environment_proxies
        return Proxies() if self.proxy == "none" else everywhere(self.proxy, self.proxy_username, self.proxy_password)

    @property
    def accounts(self) -> tuple[Account, ...]:
        """Whom to be known as, in order of preference; at least one, which may be anonymous."""
        if self.username is not None:
            keys = ("username", "password_env", "password_file", "password")
            return (Account.model_construct(**{key: getattr(self, key) for key in keys}),)
        return self.account or (Account(anonymous=True),)

    _no_secret = model_validator(mode="before")(_refuse_secret)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _check_url(self.url)
        _check_password(self.username, self.password_env, self.password_file)
        if self.username is not None and self.account:
            raise ValueError("username and account exclude each other: move the username into an account of its own")
        labels = [account.label for account in self.account]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"account: two are called {twice!r}: give each a name of its own")
        if (self.client_certificate is None) != (self.client_key is None):
            raise ValueError("client_certificate and client_key belong together: set both, or neither")
        _check_password(self.proxy_username, self.proxy_password_env, self.proxy_password_file, "proxy_")
        return self


class Lifecycle(Section):
    """Which images of some repositories are to go, by a policy in ECR's grammar; that of a file is read with it."""

    repositories: RepositoryPatterns
    policy: PolicyText | None = None
    policy_file: File | None = None

    @model_validator(mode="after")
    def _one_policy(self) -> Self:
        if (self.policy is None) == (self.policy_file is None):
            raise ValueError("needs one of policy, which is JSON, and policy_file")
        return self
