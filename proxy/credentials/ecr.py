"""Amazon's private registries: a password for twelve hours, asked of AWS as whoever this machine is to it.

It is botocore that asks, in a thread: where AWS credentials come from (environment, files, programs, single sign-on,
the roles of pods, tasks and machines) is found out by reading files, which an event loop must not wait for.
"""

import re
from base64 import b64decode
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from proxy.credentials.apart import Apart
from proxy.credentials.base import Credential, CredentialError, Issued
from proxy.registries import ecr_region
from proxy.sections.account import Account

_CODE = re.compile(r"[A-Za-z.]{1,64}")

_UNREACHED = "AWS: its API could not be reached in {region}: check region, endpoint_url and the network"

# By the names of botocore's exceptions and of their bases.
_TROUBLES: Mapping[str, str] = {
    "NoCredentialsError": "AWS: this machine has no credentials: give it a role, set profile, or set AWS_ACCESS_KEY_ID "
    "and AWS_SECRET_ACCESS_KEY",
    "PartialCredentialsError": "AWS: half of the credentials is missing: set both AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY",
    "ProfileNotFound": "AWS: there is no such profile in the AWS configuration of this machine: check profile",
    "NoRegionError": "AWS: the name of the registry does not say its region: set region",
    "InvalidRegionError": "AWS: region is no name of a region: write it like eu-central-1",
    "CredentialRetrievalError": "AWS: where the credentials of this machine should come from failed to give them",
    "MetadataRetrievalError": "AWS: the machine's metadata service failed to give credentials",
    "SSOError": "AWS: the single sign-on of this machine is over: aws sso login",
    "SSLError": "AWS: the certificate of its API could not be verified: set AWS_CA_BUNDLE if a proxy stands between",
    "ConnectionError": _UNREACHED,
    "HTTPClientError": _UNREACHED,
}
_EXPIRED = "the AWS credentials of this machine have expired: renew them"
_WRONG_KEY = "it does not know the AWS credentials of this machine: check the access key"
_WRONG_SECRET = "the secret of the access key is wrong, or the clock of this machine"  # noqa: S105  a sentence
_TOO_MANY = "too many requests were made, it will be asked again later"
_DENIED = "the AWS credentials of this machine do not allow it: add a policy with {action}"
_REFUSALS: Mapping[str, str] = {
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "UnrecognizedClientException": _WRONG_KEY,
    "InvalidClientTokenId": _WRONG_KEY,
    "InvalidSignatureException": _WRONG_SECRET,
    "SignatureDoesNotMatch": _WRONG_SECRET,
    "RequestExpired": _WRONG_SECRET,
    "Throttling": _TOO_MANY,
    "ThrottlingException": _TOO_MANY,
    "TooManyRequestsException": _TOO_MANY,
    "AccessDenied": _DENIED,
    "AccessDeniedException": _DENIED,
}
_ACTIONS: Mapping[str, str] = {"AssumeRole": "sts:AssumeRole", "GetAuthorizationToken": "ecr:GetAuthorizationToken"}


class Ecr:
    """The login of a private ECR registry."""

    def __init__(self, account: Account, registry: str) -> None:
        self._account = account
        self._region = account.region or ecr_region(registry)
        self._fips = "ecr-fips." in registry
        self._apart = Apart("AWS")

    async def fetch(self) -> Issued:
        """A password, by GetAuthorizationToken. Raises CredentialError."""
        return await self._apart.ask(self._ask)

    def _ask(self) -> Issued:
        # Slow to import, and wanted only by those who have such an account.
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
        from botocore.session import Session  # noqa: PLC0415

        try:
            # A new session each time reads the AWS configuration anew.
            session = Session(profile=self._account.profile)
            keys = self._assume(session) if self._account.role_arn else {}
            with closing(self._client(session, "ecr", endpoint_url=self._account.endpoint_url, **keys)) as ecr:
                return _read(ecr.get_authorization_token())
        except ClientError as error:
            raise CredentialError(_refusal(error.response, error.operation_name)) from None
        except (BotoCoreError, ValueError) as error:
            raise CredentialError(self._trouble(error)) from None

    def _client(self, session: Any, service: str, **settings: Any) -> Any:
        from botocore.config import Config  # noqa: PLC0415

        retries = {"total_max_attempts": 2, "mode": "standard"}
        config = Config(connect_timeout=2, read_timeout=4, retries=retries, use_fips_endpoint=self._fips or None)
        return session.create_client(service, region_name=self._region, config=config, **settings)

    def _assume(self, session: Any) -> dict[str, str]:
        with closing(self._client(session, "sts")) as sts:
            answer = sts.assume_role(RoleArn=self._account.role_arn, RoleSessionName="entrepot")
        keys = answer.get("Credentials") or {}
        try:
            return {
                "aws_access_key_id": keys["AccessKeyId"],
                "aws_secret_access_key": keys["SecretAccessKey"],
                "aws_session_token": keys["SessionToken"],
            }
        except KeyError:
            raise CredentialError("AWS answered the assumption of role_arn with no credentials") from None

    def _trouble(self, error: Exception) -> str:
        names = (kind.__name__ for kind in type(error).__mro__)
        known = next((_TROUBLES[name] for name in names if name in _TROUBLES), None)
        sentence = known or f"AWS: the question for a password failed ({type(error).__name__})"
        return sentence.format(region=self._region or "the default region")


def _refusal(response: Mapping[str, Any], operation: str) -> str:
    """AWS's own message is left out: one of a wrong signature repeats the request, with a session's token in it."""
    code = str(response.get("Error", {}).get("Code", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", "unknown")
    action = _ACTIONS.get(operation, operation)
    reason = _REFUSALS.get(code, f"it answered with status {status}").format(action=action)
    named = f" ({code})" if _CODE.fullmatch(code) else ""
    return f"AWS refuses {action}{named}: {reason}"


def _read(answer: Mapping[str, Any]) -> Issued:
    try:
        data = answer["authorizationData"][0]
        username, _, password = b64decode(data["authorizationToken"], validate=True).decode().partition(":")
        life = (data["expiresAt"] - datetime.now(UTC)).total_seconds()
    except (LookupError, ValueError, TypeError, AttributeError):
        username = password = ""
        life = 0.0
    if not username or not password:
        raise CredentialError("AWS answered with no password: is endpoint_url the API of ECR?")
    return Issued(Credential(username, password), life)
