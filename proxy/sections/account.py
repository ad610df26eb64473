"""Whom to be known as to an upstream."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, model_validator

from proxy.values import File, Label, Patterns, Section

# Which keys of an account mean something to which provider only.
PROVIDER_KEYS: Mapping[str, tuple[str, ...]] = {
    "ecr": ("region", "profile", "role_arn", "endpoint_url"),
    "google": ("key_file",),
    "acr": ("tenant",),
}


def refuse_secret(table: Any) -> Any:
    """Before a table is parsed: raise ValueError for a secret that is written in it."""
    for key in ("password", "proxy_password"):
        if isinstance(table, dict) and key in table and not isinstance(table[key], SecretStr):
            raise ValueError(f"{key}: a secret does not belong in a configuration: use {key}_env or {key}_file")
    return table


def check_password(username: str | None, env: str | None, file: Path | None, prefix: str = "") -> None:
    """Raise ValueError for a name without a password, or the other way round, and for two passwords."""
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

    _no_secret = model_validator(mode="before")(refuse_secret)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        check_password(self.username, self.password_env, self.password_file)
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
