"""Which source an account of the configuration means."""

from yarl import URL

from proxy.credentials.azure import Acr
from proxy.credentials.base import Source
from proxy.credentials.docker import DockerLogin
from proxy.credentials.ecr import Ecr
from proxy.credentials.google import Google
from proxy.credentials.static import Given, InFile
from proxy.registries import ecr_region
from proxy.sections.account import Account


def source_of(account: Account, registry: str, base: URL) -> Source | None:
    """Where the account's credential comes from; None: it is nobody's.

    `registry` is the name that clients use, `base` the URL in front of /v2/. Nothing is read or asked before `fetch`.
    """
    match account.provider:
        case "ecr":
            host = base.host or registry
            return Ecr(account, host if ecr_region(host) else registry)
        case "google":
            return Google(account.key_file)
        case "acr":
            return Acr(base, account.tenant)
        case None:
            return _login(account, registry, base)


def _login(account: Account, registry: str, base: URL) -> Source | None:
    if account.docker_config is not None:
        return DockerLogin(account.docker_config, tuple(dict.fromkeys((registry, base.authority))))
    password = None if account.password is None else account.password.get_secret_value()
    if account.username is not None and account.password_file is not None:
        return InFile(account.username, account.password_file, password)
    if account.username is not None and password is not None:
        return Given(account.username, password)
    return None
