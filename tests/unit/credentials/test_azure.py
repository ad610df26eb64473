"""An identity of Azure's is exchanged for the registry's refresh token."""

import time
from collections.abc import AsyncIterator
from urllib.parse import parse_qs

import jwt
import pytest
from aiohttp import web
from yarl import URL

from proxy.credentials.azure import LIFE, MAX_ANSWER, MAX_TOKEN, SCOPE, USERNAME, Acr
from proxy.credentials.base import Credential, CredentialError
from tests.unit.credentials.fakes import Service, closed_port, serving

THREE_HOURS = 3 * 3600


def refresh_token(**claims: object) -> str:
    return jwt.encode({"jti": "hunter2", **claims}, "k" * 32)


def exchanged(token: object) -> web.Response:
    return web.json_response({"refresh_token": token})


@pytest.fixture
async def identity(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    """The managed identity of a machine of Azure's."""
    answer = {"access_token": "entra-token", "expires_on": str(int(time.time()) + 3600), "token_type": "Bearer"}
    async with serving(lambda _: web.json_response(answer)) as service:
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
        monkeypatch.setenv("IDENTITY_ENDPOINT", str(service.url / "token"))
        monkeypatch.setenv("IDENTITY_HEADER", "x")
        yield service


async def test_the_identity_of_the_machine_becomes_a_refresh_token(identity: Service) -> None:
    token = refresh_token(exp=int(time.time()) + THREE_HOURS)
    async with serving(lambda _: exchanged(token)) as registry:
        answer = await Acr(registry.url, None).fetch()
    assert answer.credential == Credential(USERNAME, token, is_refresh_token=True)
    assert answer.life is not None
    assert THREE_HOURS - 60 < answer.life <= THREE_HOURS
    assert identity.asked[0].query["resource"] == SCOPE.removesuffix("/.default")
    (asked,) = registry.asked
    assert (asked.method, asked.path) == ("POST", "/oauth2/exchange")
    assert "Authorization" not in asked.headers
    assert parse_qs(asked.body) == {
        "grant_type": ["access_token"],
        "service": [registry.url.authority],
        "access_token": ["entra-token"],
    }


async def test_a_tenant_is_passed_on(identity: Service) -> None:
    async with serving(lambda _: exchanged(refresh_token())) as registry:
        await Acr(registry.url, "acme.onmicrosoft.com").fetch()
    assert parse_qs(registry.asked[0].body)["tenant"] == ["acme.onmicrosoft.com"]


@pytest.mark.parametrize("token", ["opaque", refresh_token(), refresh_token(exp="soon")])
async def test_a_token_that_does_not_say_when_it_ends_is_not_believed_for_long(identity: Service, token: str) -> None:
    async with serving(lambda _: exchanged(token)) as registry:
        assert (await Acr(registry.url, None).fetch()).life == LIFE


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (web.Response(status=401, text="hunter2"), "give it the role AcrPull"),
        (web.Response(status=403, text="hunter2"), "give it the role AcrPull"),
        (web.Response(status=404, text="hunter2"), "answered 404: is it a registry of Azure's"),
        (web.Response(status=503, text="hunter2"), "answered 503"),
        (web.Response(text="hunter2"), "no refresh token"),
        (web.Response(text="[]"), "no refresh token"),
        (web.Response(text="{}"), "no refresh token"),
        (exchanged(7), "no refresh token"),
        (exchanged(""), "no refresh token"),
        (exchanged("hunter2\r\nX: y"), "no refresh token"),
        (exchanged("hunter2é"), "no refresh token"),
        (exchanged("x" * (MAX_TOKEN + 1)), "no refresh token"),
        (exchanged("x" * (MAX_ANSWER + 1)), "too long"),
        (web.Response(text="[" * 100_000), "no refresh token"),
    ],
)
async def test_what_the_registry_says_instead_becomes_a_sentence_without_its_text(
    identity: Service, answer: web.Response, complaint: str
) -> None:
    body, status, kind = answer.body, answer.status, answer.content_type
    async with serving(lambda _: web.Response(body=body, status=status, content_type=kind)) as registry:
        with pytest.raises(CredentialError, match=complaint) as caught:
            await Acr(registry.url, None).fetch()
    assert "hunter2" not in str(caught.value)


async def test_the_token_does_not_follow_a_redirect(identity: Service) -> None:
    async with serving(lambda _: exchanged(refresh_token())) as other:
        elsewhere = {"Location": str(other.url)}
        async with serving(lambda _: web.Response(status=307, headers=elsewhere)) as registry:
            with pytest.raises(CredentialError, match="answered 307"):
                await Acr(registry.url, None).fetch()
    assert other.asked == []


async def test_a_registry_out_of_reach_is_named(identity: Service) -> None:
    async with closed_port() as url:
        with pytest.raises(CredentialError, match=f"{url.authority} could not be reached") as caught:
            await Acr(url, None).fetch()
    assert "entra-token" not in str(caught.value)


async def test_a_machine_that_is_nobody_is_told_what_to_do() -> None:
    with pytest.raises(CredentialError, match="give it a managed or a workload identity, set AZURE_TENANT_ID"):
        await Acr(URL("https://acme.azurecr.io"), None).fetch()


@pytest.mark.parametrize("status", [400, 403])
async def test_an_identity_that_is_refused_is_a_sentence(identity: Service, status: int) -> None:
    identity.answer = lambda _: web.json_response({"error": "hunter2"}, status=status)
    with pytest.raises(CredentialError, match="Azure") as caught:
        await Acr(URL("https://acme.azurecr.io"), None).fetch()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "chosen", "authority"),
    [
        ("acme.azurecr.io", None, None),
        ("acme.azurecr.cn", None, "login.chinacloudapi.cn"),
        ("acme.azurecr.us", None, "login.microsoftonline.us"),
        ("acme.azurecr.cn", "login.example", "login.example"),
    ],
)
async def test_each_cloud_has_its_own_authority(
    monkeypatch: pytest.MonkeyPatch, host: str, chosen: str | None, authority: str | None
) -> None:
    given: list[object] = []

    def made(**settings: object) -> object:
        given.append(settings["authority"])
        raise ValueError

    if chosen is not None:
        monkeypatch.setenv("AZURE_AUTHORITY_HOST", chosen)
    monkeypatch.setattr("azure.identity.DefaultAzureCredential", made)
    with pytest.raises(CredentialError):
        await Acr(URL(f"https://{host}"), None).fetch()
    assert given == [authority]
