"""Each way of an account to be known has its source."""

from pathlib import Path

import pytest
from pydantic import SecretStr
from yarl import URL

from proxy.credentials.azure import Acr
from proxy.credentials.base import Credential
from proxy.credentials.docker import DockerLogin
from proxy.credentials.ecr import Ecr
from proxy.credentials.google import Google
from proxy.credentials.opening import source_of
from proxy.credentials.static import Given, InFile
from proxy.sections.account import Account
from proxy.sections.upstream import Upstream

HUB = URL("https://registry-1.docker.io")
ECR = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"


@pytest.mark.parametrize(
    ("account", "kind"),
    [
        (Account(provider="ecr"), Ecr),
        (Account(provider="google"), Google),
        (Account(provider="acr"), Acr),
        (Account(docker_config=Path("/config.json")), DockerLogin),
        (Account(username="me", password_file=Path("/password"), password=SecretStr("x")), InFile),
        (Account(username="me", password_env="PASSWORD", password=SecretStr("x")), Given),
    ],
)
def test_an_account_has_the_source_that_it_names(account: Account, kind: type) -> None:
    assert isinstance(source_of(account, "docker.io", HUB), kind)


def test_nobody_has_no_source() -> None:
    assert source_of(Account(anonymous=True), "docker.io", HUB) is None


async def test_the_short_form_in_the_upstream_itself_is_an_account_too() -> None:
    upstream = Upstream(registry="docker.io", url=str(HUB), username="me", password_env="P", password=SecretStr("x"))
    source = source_of(upstream.accounts[0], upstream.registry, upstream.base)
    assert source is not None
    assert (await source.fetch()).credential == Credential("me", "x")


@pytest.mark.parametrize(("registry", "base"), [(ECR, "https://vpce.example"), ("ecr.example", f"https://{ECR}")])
def test_the_region_of_ecr_is_found_under_either_name(registry: str, base: str) -> None:
    source = source_of(Account(provider="ecr"), registry, URL(base))
    assert isinstance(source, Ecr)
    assert source._region == "eu-central-1"


def test_docker_knows_a_registry_by_either_name() -> None:
    source = source_of(Account(docker_config=Path("/c")), "corp.example", URL("https://r.example:5000/path"))
    assert isinstance(source, DockerLogin)
    assert source._names == ("corp.example", "r.example:5000")
