"""How many requests an upstream gets at once, and who has to wait for whom."""

import asyncio
from pathlib import Path

from .harness import running, toml
from .upstream import FakeRegistry

REPO, OTHER = "library/app", "library/other"
FOUR_AT_ONCE = "max_requests = 5"  # one of them for questions


async def test_downloads_are_bounded_and_questions_do_not_wait_behind_them(upstream: FakeRegistry, store: Path) -> None:
    digests = [upstream.add_blob(REPO, f"{number}".encode() * 1000) for number in range(8)]
    image = upstream.add_image(REPO, "v1")
    gate = upstream.on("GET", path_contains="/blobs/").gate(after=10)
    async with running(toml(upstream.url, more=FOUR_AT_ONCE), store) as proxy:
        pulls = [asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}")) for digest in digests]
        await upstream.seen(3, method="GET", path_contains="/blobs/")
        for number in range(5):
            assert (await proxy.get(f"/v2/{REPO}/manifests/none{number}")).status == 404
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == image.body
        assert upstream.count("GET", path_contains="/blobs/") == 3  # of four, one is for whoever has none
        gate.open()
        assert {(await pull).status for pull in pulls} == {200}
    assert upstream.count("GET", path_contains="/blobs/") == len(digests)


async def test_a_repository_with_many_layers_does_not_keep_another_from_its_first(
    upstream: FakeRegistry, store: Path
) -> None:
    many = [upstream.add_blob(REPO, f"{number}".encode() * 1000) for number in range(20)]
    one = upstream.add_blob(OTHER, b"one" * 1000)
    gate = upstream.on("GET", repo=REPO, path_contains="/blobs/").gate(after=10)
    async with running(toml(upstream.url, more=FOUR_AT_ONCE), store) as proxy:
        pulls = [asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}")) for digest in many]
        await upstream.seen(3, method="GET", path_contains="/blobs/")
        assert (await proxy.get(f"/v2/{OTHER}/blobs/{one}")).body == b"one" * 1000
        gate.open()
        assert {(await pull).status for pull in pulls} == {200}


async def test_downloads_that_hang_at_one_upstream_leave_the_other_its_own(upstream: FakeRegistry, store: Path) -> None:
    async with FakeRegistry() as other:
        stuck = [upstream.add_blob(REPO, f"{number}".encode() * 1000) for number in range(20)]
        fine = [other.add_blob(REPO, f"fine {number}".encode()) for number in range(20)]
        gate = upstream.on("GET", path_contains="/blobs/").gate(after=10)
        more = f'{FOUR_AT_ONCE}\n[[upstream]]\nregistry = "other.example"\nurl = "{other.url}"\n{FOUR_AT_ONCE}'
        async with running(toml(upstream.url, more=more), store) as proxy:
            pulls = [asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{digest}")) for digest in stuck]
            await upstream.seen(3, method="GET", path_contains="/blobs/")
            got = await asyncio.gather(*(proxy.get(f"/v2/other.example/{REPO}/blobs/{digest}") for digest in fine))
            assert {answer.status for answer in got} == {200}
            gate.open()
            assert {(await pull).status for pull in pulls} == {200}


async def test_a_client_that_leaves_while_it_waits_costs_nobody_a_turn(upstream: FakeRegistry, store: Path) -> None:
    names = [f"v{number}" for number in range(10)]
    gate = upstream.on("GET", path_contains="/manifests/").gate(after=0)
    for name in names:
        upstream.add_image(REPO, name)
    async with running(toml(upstream.url, more=FOUR_AT_ONCE), store) as proxy:
        pulls = [asyncio.create_task(proxy.get(f"/v2/{REPO}/manifests/{name}")) for name in names]
        await upstream.seen(1, method="GET", path_contains="/manifests/")
        for pull in pulls[::2]:
            pull.cancel()
        gate.open()
        assert {(await pull).status for pull in pulls[1::2]} == {200}
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).status == 200
