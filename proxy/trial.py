"""A try of the bucket and of each account of an upstream, for `entrepot check`: a sentence for what does not work."""

import asyncio
import contextlib
from collections.abc import Sequence

from proxy.accounts import open_account
from proxy.egress import Egress, asked_for
from proxy.oci.errors import OciError, Problem
from proxy.sections.account import Account
from proxy.sections.store import S3
from proxy.sections.upstream import Upstream
from proxy.stores import s3_trial
from proxy.stores.durable import REFUSED_URLS
from proxy.stores.s3 import Bucket
from proxy.stores.s3_errors import BucketError
from proxy.telemetry import quiet

ANSWERS = frozenset({200, 401, 403, 429})  # of a registry to /v2/, whatever it thinks of us
LONGEST = 20.0  # seconds for one account


def is_worth_trying(upstream: Upstream) -> bool:
    """Whether it may be asked, and something could be wrong: an account, a proxy, or TLS files of its own."""
    if upstream.sealed:
        return False
    has_account = any(not account.anonymous for account in upstream.accounts)
    return has_account or any((upstream.proxy, upstream.ca_file, upstream.client_certificate))


async def problems(upstreams: Sequence[Upstream]) -> list[str]:
    """Ask each upstream who we are to it, as each of its accounts: a sentence for each that fails."""
    trials = [(index, upstream) for index, upstream in enumerate(upstreams) if is_worth_trying(upstream)]
    found = await asyncio.gather(*(_tried(upstream, f"upstream[{index}]") for index, upstream in trials))
    return [sentence for sentences in found for sentence in sentences]


async def bucket_problems(settings: S3 | None) -> list[str]:
    """Write, read and remove an object as the cache would: a sentence if that fails, or if less works than it might."""
    if settings is None:
        return []
    try:
        async with asyncio.timeout(LONGEST), Bucket(settings) as bucket:
            is_conditional, said = await s3_trial.trial(bucket), await s3_trial.unheeded(bucket)
            if await s3_trial.refuses_its_urls(bucket):
                said.append(REFUSED_URLS)
    except BucketError as error:
        return [f"store.s3: {settings.bucket}: {error.reason}"]
    except TimeoutError:
        return [f"store.s3: {settings.bucket}: no answer within {LONGEST:g} s: check store.s3.endpoint_url"]
    if not is_conditional:
        said.append(
            "the store knows no conditional writes (If-None-Match): replicas on it bring in the same blob each, and "
            "none evicts from it"
        )
    return [f"store.s3: {settings.bucket}: {problem}" for problem in said]


async def _tried(upstream: Upstream, key: str) -> list[str]:
    said = []
    async with Egress(upstream) as egress:
        for account in upstream.accounts:
            try:
                async with asyncio.timeout(LONGEST):
                    await _log_in(upstream, account, egress)
            except OciError as error:
                said.append(f"{key}: {error.message}")
            except TimeoutError:
                said.append(f"{key}: {upstream.registry} as {account.label}: no answer within {LONGEST:g} s")
    return list(dict.fromkeys(said))


async def _log_in(upstream: Upstream, settings: Account, egress: Egress) -> None:
    """Ask for /v2/, and show who we are if that is asked. Raises OciError with what is wrong."""
    account = open_account(settings, upstream, egress, quiet())
    try:
        with contextlib.closing(await egress.ping()) as response:
            challenges = asked_for(response)
            if response.status not in ANSWERS:
                raise OciError(
                    Problem.UPSTREAM_INVALID,
                    f"{upstream.registry} answered {response.status} to {upstream.base}/v2/, which is there in every "
                    "registry: see whether url is right",
                )
            if response.status != 401:
                await account.tokens.login(())  # that there is a credential is all that can be seen
                return
        authorization = await account.tokens.login(challenges)
        with contextlib.closing(await egress.ping(authorization)) as response:
            if response.status in {401, 403} and not settings.anonymous:
                raise account.tokens.refused(upstream.registry)
    finally:
        await account.tokens.aclose()
