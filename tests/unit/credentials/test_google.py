"""Google's access token comes by a key, or from the machine's metadata server."""

import json
from pathlib import Path
from urllib.parse import parse_qs

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from yarl import URL

from proxy.credentials.base import Credential, CredentialError
from proxy.credentials.google import LIFE, SCOPE, USERNAME, Google, _read
from tests.unit.credentials.fakes import Asked, closed_port, serving


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def key_file(folder: Path, key: rsa.RSAPrivateKey, url: URL) -> Path:
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    file = folder / "key.json"
    file.write_text(
        json.dumps(
            {
                "type": "service_account", "client_email": "puller@acme.example", "private_key": pem,
                "private_key_id": "1", "token_uri": str(url / "token"), "project_id": "acme",
            }
        )
    )  # fmt: skip
    return file


def token(text: str = "ya29.hunter2", life: int = 3600) -> web.Response:
    return web.json_response({"access_token": text, "expires_in": life, "token_type": "Bearer"})


async def test_a_key_is_exchanged_for_an_access_token(tmp_path: Path, key: rsa.RSAPrivateKey) -> None:
    async with serving(lambda _: token()) as service:
        answer = await Google(key_file(tmp_path, key, service.url)).fetch()
    assert answer.credential == Credential(USERNAME, "ya29.hunter2")
    assert answer.life is not None
    assert 3500 < answer.life <= 3600
    assertion = parse_qs(service.asked[0].body)["assertion"][0]
    claims = jwt.decode(assertion, key.public_key(), ["RS256"], audience="https://oauth2.googleapis.com/token")
    assert (claims["iss"], claims["scope"]) == ("puller@acme.example", SCOPE)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (web.json_response({"error": "invalid_grant", "error_description": "hunter2"}, status=400), "refuses a token"),
        (web.Response(text="hunter2"), "not foreseen"),
        (web.Response(text="{}"), "refuses a token"),
        (web.Response(text='{"access_token":""}'), "no token"),
    ],
)
async def test_what_google_says_instead_becomes_a_sentence_without_its_text(
    tmp_path: Path, key: rsa.RSAPrivateKey, answer: web.Response, complaint: str
) -> None:
    body, status, kind = answer.body, answer.status, answer.content_type
    async with serving(lambda _: web.Response(body=body, status=status, content_type=kind)) as service:
        file = key_file(tmp_path, key, service.url)
        with pytest.raises(CredentialError, match=complaint) as caught:
            await Google(file).fetch()
    assert str(caught.value).startswith("Google ")
    assert "hunter2" not in str(caught.value)


async def test_google_out_of_reach_is_said(tmp_path: Path, key: rsa.RSAPrivateKey) -> None:
    async with closed_port() as url:
        with pytest.raises(CredentialError, match="could not be reached"):
            await Google(key_file(tmp_path, key, url)).fetch()


@pytest.mark.parametrize("content", ["", "[]", "{}", "7", '{"type":"service_account"}', "\0"])
async def test_a_file_that_is_no_key_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "key.json"
    file.write_text(content)
    with pytest.raises(CredentialError, match=r"key\.json is no key of a service account, as JSON"):
        await Google(file).fetch()


async def test_a_key_that_is_damaged_is_named_without_repeating_it(tmp_path: Path, key: rsa.RSAPrivateKey) -> None:
    file = key_file(tmp_path, key, URL("http://127.0.0.1:1"))
    content = json.loads(file.read_text())
    content["private_key"] = content["private_key"].replace("\n", "hunter2\n")
    file.write_text(json.dumps(content))
    with pytest.raises(CredentialError, match=r"key\.json is no key") as caught:
        await Google(file).fetch()
    assert "hunter2" not in str(caught.value)


async def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match=r"key\.json cannot be read"):
        await Google(tmp_path / "key.json").fetch()


def metadata(asked: Asked) -> web.Response:
    """What the metadata server of a machine of Google's says."""
    if asked.path.endswith("/token"):
        response = token()
    elif asked.path.endswith("/service-accounts/default/"):
        response = web.json_response({"email": "default", "scopes": [SCOPE], "aliases": ["default"]})
    else:
        response = web.Response(text="acme")
    response.headers["Metadata-Flavor"] = "Google"
    return response


async def test_without_a_key_the_metadata_server_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(metadata) as service:
        monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", False)
        monkeypatch.setattr("google.auth.compute_engine._metadata._GCE_METADATA_HOST", service.url.authority)
        monkeypatch.setenv("GCE_METADATA_IP", service.url.authority)
        answer = await Google(None).fetch()
    assert answer.credential == Credential(USERNAME, "ya29.hunter2")
    assert {asked.headers["Metadata-Flavor"] for asked in service.asked} == {"Google"}


async def test_without_a_key_the_standard_variable_names_one(
    tmp_path: Path, key: rsa.RSAPrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(lambda _: token()) as service:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key_file(tmp_path, key, service.url)))
        answer = await Google(None).fetch()
    assert answer.credential.secret == "ya29.hunter2"
    assert (
        SCOPE
        in jwt.decode(parse_qs(service.asked[0].body)["assertion"][0], options={"verify_signature": False}).values()
    )


async def test_a_machine_that_is_nobody_is_told_what_to_do() -> None:
    with pytest.raises(CredentialError, match="this machine has no credentials: give it a service account, or set key"):
        await Google(None).fetch()


def test_a_token_without_an_end_is_not_believed_for_long() -> None:
    assert _read("token", None).life == LIFE


@pytest.mark.parametrize("token", [None, "", 7])
def test_no_token_is_complained_of(token: object) -> None:
    with pytest.raises(CredentialError, match="no token"):
        _read(token, None)
