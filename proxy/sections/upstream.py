"""One registry to pull from."""

from fnmatch import fnmatchcase
from typing import Annotated, Self

from pydantic import Field, InstanceOf, SecretStr, model_validator
from yarl import URL

from proxy.proxies import Proxies, everywhere
from proxy.sections.account import Account, check_password, refuse_secret
from proxy.values import File, Host, Hosts, Moment, Networks, Patterns, Prefetch, ProxyUrl, Seconds, Section, check_url


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

    _no_secret = model_validator(mode="before")(refuse_secret)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        check_url(self.url)
        check_password(self.username, self.password_env, self.password_file)
        if self.username is not None and self.account:
            raise ValueError("username and account exclude each other: move the username into an account of its own")
        labels = [account.label for account in self.account]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"account: two are called {twice!r}: give each a name of its own")
        if (self.client_certificate is None) != (self.client_key is None):
            raise ValueError("client_certificate and client_key belong together: set both, or neither")
        check_password(self.proxy_username, self.proxy_password_env, self.proxy_password_file, "proxy_")
        return self
