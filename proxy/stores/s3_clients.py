"""The libraries' clients of a bucket: made without holding up the event loop.

What it imports takes an eighth of a start, and 8.5 MiB: it is imported where there is a bucket.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.config import Config
from botocore.handlers import add_expect_header
from botocore.loaders import create_loader
from botocore.session import Session

from proxy.sections.store import S3
from proxy.stores.s3_credentials import Keys
from proxy.stores.s3_urls import SignedUrls, client_settings

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client

CONNECT = 5.0  # seconds
CONNECTIONS = 64


@dataclass(frozen=True, slots=True)
class Clients:
    """One that asks, and what signs URLs for others, if there are to be any."""

    own: "S3Client"
    urls: SignedUrls | None


def prepared(settings: S3, stall: float) -> AbstractAsyncContextManager[Clients]:
    """Read botocore's descriptions of S3 and the AWS configuration: files, which no event loop is to wait for.

    `stall`: seconds without a byte. Raises what botocore does; so does entering what is returned.
    """
    loader, how = create_loader(), _settings(settings, stall, Config)
    blocking, session = Session(profile=settings.profile), AioSession(profile=settings.profile)
    for one in (blocking, session):
        one.register_component("data_loader", loader)  # it reads each file once
    with contextlib.closing(blocking.create_client(**how)) as client:
        client.get_paginator("list_multipart_uploads")
    _ = session.full_config
    session._credentials = Keys(blocking)  # noqa: SLF001  there is no other way
    return _opened(session, settings, _settings(settings, stall, AioConfig))


@contextlib.asynccontextmanager
async def _opened(session: AioSession, settings: S3, how: Mapping[str, Any]) -> AsyncIterator[Clients]:
    async with session.create_client(**how) as own:
        # aiohttp would wait without end for the 100 of a server that hangs, ...
        own.meta.events.unregister("before-call.s3", add_expect_header)
        # ... and botocore ask without end for the region, and for that of the question, where a store says neither.
        own.meta.events.register("before-call.s3.HeadBucket", _as_redirected)
        if not settings.redirect_networks:
            yield Clients(own, None)
            return
        how = client_settings(settings, how, own.meta.endpoint_url)
        async with session.create_client(**how) as signing:
            yield Clients(own, SignedUrls(signing, settings))


def _settings(settings: S3, stall: float, config: type[Config]) -> dict[str, Any]:
    return {
        "service_name": "s3",
        "region_name": settings.region,
        "endpoint_url": settings.endpoint_url,
        "verify": None if settings.ca_file is None else str(settings.ca_file),
        "config": config(
            connect_timeout=CONNECT,
            read_timeout=stall,
            max_pool_connections=CONNECTIONS,
            retries={"mode": "standard", "total_max_attempts": 2},
            request_checksum_calculation=settings.checksums,
            response_checksum_validation=settings.checksums,
            s3={"addressing_style": settings.addressing, "payload_signing_enabled": False},
            user_agent_extra="entrepot",
        ),
    }


def _as_redirected(params: Mapping[str, Any], **_: object) -> None:
    params["context"].setdefault("s3_redirect", {})["redirected"] = True
