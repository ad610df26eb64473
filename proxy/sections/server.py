"""How the server listens, who may operate it, and how it logs."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from yarl import URL

from proxy.values import Address, File, Listen, Seconds, Section, check_url


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
        check_url(text, "advertise")
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


class Log(Section):
    """How to log."""

    format: Literal["auto", "console", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"
