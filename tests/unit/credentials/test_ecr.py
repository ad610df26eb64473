"""ECR's password is asked of AWS itself, and AWS's refusals become sentences."""

import json
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path

import pytest
from aiohttp import web

from proxy.credentials.base import Credential, CredentialError
from proxy.credentials.ecr import Ecr
from proxy.credentials.refreshing import Refreshing
from proxy.sections.account import Account
from tests.unit.credentials.fakes import Asked, Clock, Service, closed_port, recording, serving

REGISTRY = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
HALF_A_DAY = 12 * 3600
ROLE = "arn:aws:iam::123456789012:role/puller"


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-key")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def account(service: Service | None = None, **keys: str | None) -> Account:
    endpoint = {} if service is None else {"endpoint_url": str(service.url)}
    return Account.model_validate({"provider": "ecr", **endpoint, **keys})


def password(text: str = "AWS:hunter2", ends: float | None = None) -> web.Response:
    ends = time.time() + HALF_A_DAY if ends is None else ends
    data = {"authorizationToken": b64encode(text.encode()).decode(), "expiresAt": ends, "proxyEndpoint": "https://x"}
    return web.json_response({"authorizationData": [data]}, content_type="application/x-amz-json-1.1")


def refusal(code: str, status: int = 400, message: str = "x-amz-security-token:hunter2") -> web.Response:
    body = {"__type": code, "message": message}
    return web.json_response(body, status=status, content_type="application/x-amz-json-1.1")


async def test_a_password_is_good_for_as_long_as_aws_says() -> None:
    async with serving(lambda _: password()) as service:
        answer = await Ecr(account(service), REGISTRY).fetch()
    assert answer.credential == Credential("AWS", "hunter2")
    assert answer.life is not None
    assert HALF_A_DAY - 60 < answer.life <= HALF_A_DAY
    (asked,) = service.asked
    assert asked.headers["X-Amz-Target"] == "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"
    assert "AKIAEXAMPLE" in asked.headers["Authorization"]
    assert "/eu-central-1/ecr/" in asked.headers["Authorization"]


@pytest.mark.parametrize(
    ("registry", "region", "expected"),
    [
        ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", None, "us-gov-west-1"),
        ("123456789012.dkr-ecr.ap-south-2.on.aws", None, "ap-south-2"),
        (REGISTRY, "us-east-2", "us-east-2"),
        ("ecr.example", "us-east-2", "us-east-2"),
    ],
)
async def test_the_region_is_that_of_the_host_unless_it_is_set(
    registry: str, region: str | None, expected: str
) -> None:
    async with serving(lambda _: password()) as service:
        await Ecr(account(service, region=region), registry).fetch()
    assert f"/{expected}/ecr/" in service.asked[0].headers["Authorization"]


async def test_without_a_region_in_host_or_key_that_of_the_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "sa-east-1")
    async with serving(lambda _: password()) as service:
        await Ecr(account(service), "ecr.example").fetch()
    assert "/sa-east-1/ecr/" in service.asked[0].headers["Authorization"]


async def test_a_profile_is_read_anew_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    async with serving(lambda _: password()) as service:
        source = Ecr(account(service, profile="puller"), REGISTRY)
        for key in ("AKIAFIRST", "AKIAOTHER"):
            file.write_text(f"[puller]\naws_access_key_id = {key}\naws_secret_access_key = s\n")
            await source.fetch()
    assert [asked.headers["Authorization"].partition("Credential=")[2][:9] for asked in service.asked] == [
        "AKIAFIRST",
        "AKIAOTHER",
    ]


ASSUMED = f"""<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
<AccessKeyId>ASIAROLE</AccessKeyId><SecretAccessKey>role-secret</SecretAccessKey><SessionToken>role-token</SessionToken>
<Expiration>2100-01-01T00:00:00Z</Expiration></Credentials><AssumedRoleUser><Arn>{ROLE}</Arn><AssumedRoleId>x:entrepot
</AssumedRoleId></AssumedRoleUser></AssumeRoleResult></AssumeRoleResponse>"""


async def test_a_role_is_assumed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def sts(asked: Asked) -> web.Response:
        return web.Response(text=ASSUMED, content_type="text/xml")

    async with serving(sts) as tokens, serving(lambda _: password()) as service:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", str(tokens.url))
        answer = await Ecr(account(service, role_arn=ROLE), REGISTRY).fetch()
    assert answer.credential.secret == "hunter2"
    assert "Action=AssumeRole" in tokens.asked[0].body
    assert "role%2Fpuller" in tokens.asked[0].body
    assert "ASIAROLE" in service.asked[0].headers["Authorization"]
    assert service.asked[0].headers["X-Amz-Security-Token"] == "role-token"


async def test_a_role_that_comes_without_credentials_is_complained_of(monkeypatch: pytest.MonkeyPatch) -> None:
    body = "<AssumeRoleResponse><AssumeRoleResult/></AssumeRoleResponse>"
    async with serving(lambda _: web.Response(text=body, content_type="text/xml")) as tokens:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", str(tokens.url))
        with pytest.raises(CredentialError, match="assumption of role_arn with no credentials"):
            await Ecr(account(role_arn=ROLE), REGISTRY).fetch()


async def test_a_role_that_may_not_be_assumed_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    body = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>hunter2</Message></Error></ErrorResponse>"
    async with serving(lambda _: web.Response(status=403, text=body, content_type="text/xml")) as tokens:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", str(tokens.url))
        with pytest.raises(CredentialError, match=r"refuses sts:AssumeRole \(AccessDenied\): .* policy") as caught:
            await Ecr(account(role_arn=ROLE), REGISTRY).fetch()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (refusal("AccessDeniedException"), "(AccessDeniedException): .* add a policy with ecr:GetAuthorizationToken"),
        (refusal("ExpiredTokenException"), "have expired: renew them"),
        (refusal("UnrecognizedClientException"), "check the access key"),
        (refusal("InvalidSignatureException", 403), "the secret of the access key is wrong, or the clock"),
        (refusal("ThrottlingException"), "(ThrottlingException): too many requests"),
        (refusal("SomethingNew", 418), "(SomethingNew): it answered with status 418"),
        (refusal("hunter2 <b>", 418), "GetAuthorizationToken: it answered with status 418"),
        (web.Response(status=500, text="hunter2"), "it answered with status 500"),
        (web.Response(status=404, text="<html>hunter2"), "it answered with status 404"),
        (web.Response(text="hunter2"), "no password|failed|not foreseen"),
        (web.Response(text="{}"), "no password"),
        (web.Response(text='{"authorizationData":[]}'), "no password"),
        (web.Response(text='{"authorizationData":[{"authorizationToken":"%%"}]}'), "no password"),
        (password("AWS:"), "no password"),
        (password("hunter2"), "no password"),
        (web.Response(text="[" * 50_000), "not foreseen"),  # deeper than any Python reads
    ],
)
async def test_what_aws_says_instead_becomes_a_sentence_without_its_text(answer: web.Response, complaint: str) -> None:
    body, status, kind = answer.body, answer.status, answer.content_type
    async with serving(lambda _: web.Response(body=body, status=status, content_type=kind)) as service:
        with pytest.raises(CredentialError, match=complaint.replace("(", r"\(").replace(")", r"\)")) as caught:
            await Ecr(account(service), REGISTRY).fetch()
    assert str(caught.value).startswith("AWS ")
    assert "hunter2" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.__cause__ is None


async def test_aws_out_of_reach_is_said_with_the_region() -> None:
    async with closed_port() as url:
        with pytest.raises(CredentialError, match=r"could not be reached in eu-central-1: check region, endpoint_url"):
            await Ecr(Account(provider="ecr", endpoint_url=str(url)), REGISTRY).fetch()


async def test_a_machine_that_is_nobody_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CredentialError, match="half of the credentials is missing"):
        await Ecr(account(), REGISTRY).fetch()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(CredentialError, match="give it a role, set profile, or set AWS_ACCESS_KEY_ID"):
        await Ecr(account(), REGISTRY).fetch()


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"profile": "nobody"}, "no such profile"),
        ({"region": "not a region"}, "region is no name of a region"),
        ({"region": "us-east-1", "endpoint_url": "no url"}, "question for a password failed"),
        ({}, "does not say its region: set region"),
    ],
)
async def test_a_wrong_key_of_the_configuration_is_named(keys: dict[str, str], complaint: str) -> None:
    with pytest.raises(CredentialError, match=complaint):
        await Ecr(Account.model_validate({"provider": "ecr", **keys}), "ecr.example").fetch()


async def test_while_aws_is_down_the_old_password_is_kept_and_once_it_is_up_the_new_one_is_taken() -> None:
    clock = Clock()
    logger, lines = recording()
    async with serving(lambda _: password("AWS:first")) as service:
        credential = Refreshing(Ecr(account(service), REGISTRY), logger, clock=clock, draw=lambda: 1.0)

        async def later(seconds: float) -> str:
            clock.now += seconds
            given = await credential.current()
            if credential._question is not None:
                await credential._question
            return given.secret

        assert await later(0) == "first"
        service.answer = lambda _: refusal("ServerException", 500)
        assert await later(HALF_A_DAY / 2) == "first"
        assert await later(60) == "first"
        service.answer = lambda _: password("AWS:other")
        assert await later(60) == "first"
        assert await later(0) == "other"
    assert [line["log_level"] for line in lines] == ["warning", "warning", "info"]
    assert "first" not in json.dumps(lines)


def test_the_libraries_of_the_clouds_are_not_imported_before_they_are_needed() -> None:
    program = (
        "import sys, proxy.credentials.opening\n"
        "print({'botocore', 'google.auth', 'azure', 'requests', 'jwt'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
