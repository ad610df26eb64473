"""URLs by which others read objects of a bucket: signed for GET alone, for one object, for a while."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import aiohttp
from aiobotocore.config import AioConfig
from pydantic import SecretStr
from yarl import URL

from proxy.files import hop
from proxy.sections.store import S3

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client

PATIENCE = 5.0  # seconds for a try of one


def client_settings(settings: S3, like: Mapping[str, Any], own: str) -> dict[str, Any]:
    """How to make the client that signs: `like` the bucket's, which has found that S3 is at `own`.

    Its signatures are of version 4, which every store takes and KMS insists on, and its hosts those of the region: to
    the host of all regions S3 answers with a redirect, behind which a signature is void.
    """
    endpoint = settings.redirect_endpoint_url or settings.endpoint_url
    is_amazons = endpoint is None and ".amazonaws.com" in own
    addressing = "virtual" if is_amazons and settings.addressing == "auto" else settings.addressing
    signing = AioConfig(signature_version="s3v4", s3={"addressing_style": addressing})
    return {**like, "endpoint_url": endpoint, "config": like["config"].merge(signing)}


class SignedUrls:
    """Makes them. Who has one can read the object until it expires: they are secrets."""

    def __init__(self, client: "S3Client", settings: S3) -> None:
        self._client = client
        self._bucket = settings.bucket
        self._life = int(settings.redirect_for)
        self._ca_file = settings.ca_file

    @property
    def endpoint(self) -> str:
        """Where they lead: scheme, host and port, the bucket's name aside."""
        return str(self._client.meta.endpoint_url)

    async def sign(self, key: str) -> SecretStr:
        """The URL of an object; no request is made. Raises what botocore does.

        It does not name the bucket's owner, who would be a header: a redirect cannot have a client send one.
        """
        where = {"Bucket": self._bucket, "Key": key}
        url = await self._client.generate_presigned_url("get_object", where, self._life, "GET")
        return SecretStr(url)

    async def is_refused(self, key: str) -> bool:
        """Whether the store turns down the URL of an object that is there, or sends us elsewhere with it.

        False as well where it fails, or cannot be reached: clients may reach it. Raises what botocore does.
        """
        url = URL((await self.sign(key)).get_secret_value(), encoded=True)
        ca_file = None if self._ca_file is None else str(self._ca_file)
        trust = await hop(lambda: ssl.create_default_context(cafile=ca_file))
        try:
            async with (
                asyncio.timeout(PATIENCE),
                aiohttp.ClientSession() as session,
                session.get(url, ssl=trust, allow_redirects=False) as answer,
            ):
                return 300 <= answer.status < 500
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
