"""Lifecycle policies over a cache: what goes, what stays all the same, and what is said of it."""

import asyncio
import contextlib
import io
import json
import os
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from proxy.expiry import Expiry, work
from proxy.files import hop
from proxy.lifecycle import configured as configured_policies

from .harness import Proxy, running, toml
from .test_admin_api import administered, ask, order
from .test_admin_api import entrepot as remote
from .test_inventory import entrepot, listed, pull
from .upstream import FakeRegistry, Image, Index

REPO, OTHER = "library/app", "acme/tool"
DAY = 86400.0


def rule(priority: int, status: str, count: str, number: int, *patterns: str) -> dict[str, Any]:
    """A rule as an operator writes it."""
    selection: dict[str, Any] = {"tagStatus": status, "countType": count, "countNumber": number}
    if patterns:
        selection["tagPatternList"] = list(patterns)
    if count.startswith("since"):
        selection["countUnit"] = "days"
    return {
        "rulePriority": priority, "description": f"rule {priority}", "selection": selection,
        "action": {"type": "expire"},
    }  # fmt: skip


UNPULLED = rule(1, "any", "sinceImagePulled", 30)
ONE = rule(1, "any", "imageCountMoreThan", 1)


def policy(*rules: dict[str, Any]) -> str:
    """A policy's JSON."""
    return json.dumps({"rules": rules})


def configured(upstream: str, *rules: dict[str, Any], more: str = "", repositories: str = "docker.io/*") -> str:
    """A configuration with a policy for all repositories; `more` goes into the upstream's table."""
    entry = f"[[lifecycle]]\nrepositories = ['{repositories}']\npolicy = '{policy(*rules)}'"
    return toml(upstream, more=f"{more}\n{entry}")


def aged(proxy: Proxy, image: Image | Index, *, pulled: float, cached: float | None = None) -> None:
    """Have an image be pulled, and cached, so many days ago."""
    repository = proxy.store / "repositories/docker.io" / image.repo
    link = repository / "_links" / image.digest.replace(":", "/")
    record = json.loads(link.read_text())
    record["cached"] = time.time() - (pulled if cached is None else cached) * DAY
    link.write_text(json.dumps(record))
    os.utime(link, (time.time() - pulled * DAY,) * 2)


async def job(proxy: Proxy) -> None:
    """Have the server do its job now."""
    due = next(one for one in proxy.app.jobs._jobs if one.name == "lifecycle")
    await due.work()
    await proxy.app.housekeeping._round(None)


async def previewed(store: Path, *arguments: str) -> list[tuple[str, int, str | None]]:
    """Which images a preview names, each with its rule and what keeps it."""
    told = json.loads((await entrepot_lifecycle(store, "preview", "--json", *arguments)).stdout)
    return [(one["image"], one["rule"], one["kept"]) for one in told["images"]]


async def entrepot_lifecycle(store: Path, what: str, *arguments: str, code: int = 0) -> Any:
    """Run a command of the group."""
    return await entrepot(store, "lifecycle", what, *arguments, code=code)


def tags(images: Sequence[dict[str, Any]]) -> list[str]:
    """The tags of what is listed."""
    return sorted(tag["tag"] for image in images for tag in image["tags"])


async def test_what_nobody_has_pulled_for_long_goes_with_what_no_other_image_needs(
    upstream: FakeRegistry, store: Path
) -> None:
    old = upstream.add_image(REPO, "old", [b"shared" * 100, b"own" * 100])
    new = upstream.add_image(REPO, "new", [b"shared" * 100, b"another"])
    async with running(configured(upstream.url, UNPULLED), store) as proxy:
        for image in (old, new):
            await pull(proxy, image)
        aged(proxy, old, pulled=31)
        aged(proxy, new, pulled=1, cached=90)
        assert await previewed(store) == [(f"docker.io/{REPO}:old", 1, None)]
        before = await listed(store)
        await job(proxy)
        assert tags(await listed(store)) == ["new"]
        assert (old.layer_digests[0] in proxy.blobs(), old.layer_digests[1] in proxy.blobs()) == (True, False)
        (said,) = [record for record in proxy.log if record["event"] == "expired"]
        freed = next(one["size"] - one["shared"] for one in before if one["digest"] == old.digest)
        assert {key: said[key] for key in ("repository", "tags", "digest", "policy", "rule", "why", "bytes")} == {
            "repository": f"docker.io/{REPO}", "tags": ["old"], "digest": old.digest, "policy": "lifecycle[0]",
            "rule": 1, "why": "not pulled for 31.0 days, more than 30", "bytes": freed,
        }  # fmt: skip
        assert proxy.metrics.registry.get_sample_value("entrepot_expired_images_total") == 1
        assert proxy.metrics.registry.get_sample_value("entrepot_expired_bytes_total") == freed
        asked = upstream.count("GET", path_contains="/manifests/")
        await pull(proxy, old)  # the workers have forgotten it
        assert upstream.count("GET", path_contains="/manifests/") == asked + 1


async def test_rules_go_by_priority_and_count_within_a_repository(upstream: FakeRegistry, store: Path) -> None:
    release = rule(1, "tagged", "imageCountMoreThan", 2, "v*")
    images = [upstream.add_image(REPO, f"v{number}", [b"%d" % number]) for number in range(4)]
    images += [upstream.add_image(OTHER, "v9", [b"9"]), upstream.add_image(REPO, "main", [b"main"])]
    async with running(configured(upstream.url, release, rule(2, "any", "sinceImagePushed", 5)), store) as proxy:
        for age, image in enumerate(images):
            await pull(proxy, image)
            aged(proxy, image, pulled=age + 10)
        assert await previewed(store) == [
            (f"docker.io/{REPO}:main", 2, None),
            (f"docker.io/{REPO}:v3", 1, None),
            (f"docker.io/{REPO}:v2", 1, None),
        ]
        said = (await entrepot_lifecycle(store, "preview")).stdout
        assert "lifecycle[0], rule 1: rule 1\n" in said
        assert "number 3 from the newest, and 2 may stay" in said
        assert "3 images would go, and " in said
        await entrepot_lifecycle(store, "apply")
        assert tags(await listed(store)) == ["v0", "v1", "v9"]


async def test_the_first_policy_that_covers_a_repository_is_its_policy(upstream: FakeRegistry, store: Path) -> None:
    first = configured(upstream.url, rule(1, "any", "imageCountMoreThan", 9), repositories="docker.io/library/*")
    entry = f"[[lifecycle]]\nrepositories = ['docker.io/*']\npolicy = '{policy(ONE)}'"
    async with running(f"{first}\n{entry}", store) as proxy:
        for number, repo in enumerate((REPO, REPO, OTHER, OTHER)):
            image = upstream.add_image(repo, f"v{number}", [b"%d" % number])
            await pull(proxy, image)
            aged(proxy, image, pulled=9 - number)
        assert await previewed(store) == [(f"docker.io/{OTHER}:v2", 1, None)]
        assert await previewed(store, f"docker.io/{REPO}") == []


async def test_what_is_pinned_frozen_or_deleted_upstream_stays_and_the_preview_says_so(
    upstream: FakeRegistry, store: Path
) -> None:
    images = {name: upstream.add_image(REPO, name, [name.encode()]) for name in ("pinned", "frozen", "deleted", "old")}
    async with running(configured(upstream.url, UNPULLED, more='tag_ttl = "0s"'), store) as proxy:
        for image in images.values():
            await pull(proxy, image)
        await entrepot(store, "pin", "app:pinned")
        await entrepot(store, "freeze", "app:frozen")
        upstream.untag(REPO, "deleted")
        assert (await proxy.get(f"/v2/{REPO}/manifests/deleted")).status == 404
        for image in images.values():
            aged(proxy, image, pulled=99)
        assert sorted(await previewed(store)) == [
            (f"docker.io/{REPO}", 1, "deleted upstream"),
            (f"docker.io/{REPO}:frozen", 1, "frozen"),
            (f"docker.io/{REPO}:old", 1, None),
            (f"docker.io/{REPO}:pinned", 1, "pinned"),
        ]
        said = (await entrepot_lifecycle(store, "preview")).stdout
        assert "kept: deleted upstream" in said
        assert "One image would go, and " in said
        assert "; 3 stay all the same.\n" in said
        await entrepot_lifecycle(store, "apply")
        assert sorted(one["digest"] for one in await listed(store)) == sorted(
            image.digest for name, image in images.items() if name != "old"
        )


@pytest.mark.parametrize(
    ("more", "kept"), [("freeze = ['library/*']", "frozen"), ("sealed = true", "upstream is sealed")]
)
async def test_what_the_configuration_freezes_or_seals_stays(
    upstream: FakeRegistry, store: Path, more: str, kept: str
) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    async with running(configured(upstream.url, UNPULLED), store) as proxy:
        await pull(proxy, image)
        aged(proxy, image, pulled=99)
    async with running(configured(upstream.url, UNPULLED, more=more), store) as proxy:
        assert await previewed(store) == [(f"docker.io/{REPO}:v1", 1, kept)]
        await entrepot_lifecycle(store, "apply")
        assert tags(await listed(store)) == ["v1"]


async def test_a_part_of_an_index_stays_with_it_and_goes_with_it(upstream: FakeRegistry, store: Path) -> None:
    parts = [upstream.add_image(REPO, f"part{number}", [b"%d" % number]) for number in range(2)]
    index = upstream.add_index(REPO, "v1", parts)
    async with running(configured(upstream.url, UNPULLED), store) as proxy:
        await proxy.get(f"/v2/{REPO}/manifests/v1")
        for part in parts:
            await pull(proxy, part)
        for image in (index, parts[0]):
            aged(proxy, image, pulled=99)
        aged(proxy, parts[1], pulled=1)  # a pull of a platform is one of the index
        assert await previewed(store) == [(f"docker.io/{REPO}:part0", 1, "part of an index that stays")]
        aged(proxy, parts[1], pulled=99)
        assert {kept for _, _, kept in await previewed(store)} == {None}
        await entrepot_lifecycle(store, "apply")
        assert (await listed(store), proxy.blobs()) == ([], [])


async def test_an_image_that_somebody_wants_between_the_look_and_the_end_stays(
    upstream: FakeRegistry, store: Path
) -> None:
    images = {name: upstream.add_image(REPO, name, [b"shared", name.encode()]) for name in ("a", "b", "c", "d", "gone")}
    late, part = upstream.add_image(OTHER, "late", [b"gone"]), upstream.add_image(REPO, None, [b"part"])
    index = upstream.add_index(REPO, "e", [part])
    async with running(configured(upstream.url, UNPULLED), store) as proxy:
        for image in images.values():
            await pull(proxy, image)
            aged(proxy, image, pulled=99)
        for digest in (index.digest, part.digest):
            assert (await proxy.get(f"/v2/{REPO}/manifests/{digest}")).status == 200
        await proxy.app.housekeeping._round(None)
        for one in (index, part):
            aged(proxy, one, pulled=99)

        async def meanwhile() -> None:
            await entrepot(store, "pin", f"app@{part.digest}")
            assert (await proxy.get(f"/v2/{REPO}/manifests/{images['a'].digest}")).status == 200
            await entrepot(store, "pin", "app:b")
            await entrepot(store, "freeze", "app:c")
            upstream.tag(REPO, "d", late.digest)
            tag = store / "repositories/docker.io" / REPO / "_tags/d"
            written = await hop(tag.read_text)
            await hop(tag.write_text, written.replace(images["d"].digest, late.digest))  # as another worker would
            for path in ("manifests/late", *(f"blobs/{digest}" for digest in late.blob_digests)):
                assert (await proxy.get(f"/v2/{OTHER}/{path}")).status == 200

        due: Any = next(one.work for one in proxy.app.jobs._jobs if one.name == "lifecycle")

        async def record_uses() -> None:
            await meanwhile()
            await due.__self__._record_uses()

        gone: list[dict[str, Any]] = []
        policies = configured_policies(proxy.config.lifecycle, proxy.config.upstream)
        await Expiry(store, policies, record_uses, gone.append).run()
        assert [one["tags"] for one in gone] == [["gone"]]
        assert images["gone"].layer_digests[1] in proxy.blobs()  # what came meanwhile needs it
        assert {index.digest, *(images[name].digest for name in "abcd")} <= {
            one["digest"] for one in await listed(store)
        }
        assert late.digest in (store / "repositories/docker.io" / REPO / "_tags/d").read_text()


async def test_apply_takes_out_now_what_the_preview_says_and_tells_it(upstream: FakeRegistry, store: Path) -> None:
    images = [upstream.add_image(repo, "v1", [repo.encode()]) for repo in (REPO, OTHER)]
    async with running(configured(upstream.url, UNPULLED), store) as proxy:
        for image in images:
            await pull(proxy, image)
            aged(proxy, image, pulled=99)
        preview = json.loads((await entrepot_lifecycle(store, "preview", "--json", "docker.io/acme/*")).stdout)
        went = json.loads((await entrepot_lifecycle(store, "apply", "--json", "docker.io/acme/*")).stdout)
        assert went["images"][0].pop("why") == preview["images"][0].pop("why")
        assert went == preview
        assert went["freed"] > 0
        assert [one["repository"] for one in await listed(store)] == [f"docker.io/{REPO}"]
        assert "One image went, and " in (await entrepot_lifecycle(store, "apply")).stdout
        assert (await entrepot_lifecycle(store, "apply")).stdout == "Nothing is to go.\n"
        assert (await entrepot_lifecycle(store, "preview")).stdout == "Nothing is to go.\n"
        assert proxy.blobs() == []
        with contextlib.ExitStack() as stack:
            await hop(stack.enter_context, proxy.app.jobs._tree.claimed("jobs/lifecycle"))
            said = (await entrepot_lifecycle(store, "apply", code=2)).stderr
        assert said == "entrepot: the lifecycle policies are being applied by a server: ask again\n"


async def test_a_policy_can_be_tried_before_it_is_configured(
    upstream: FakeRegistry, store: Path, tmp_path: Path
) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    file = tmp_path / "policy.json"
    async with running(toml(upstream.url), store) as proxy:
        await pull(proxy, image)
        aged(proxy, image, pulled=99)
        assert "No lifecycle policy is configured" in (await entrepot_lifecycle(store, "preview")).stdout
        await asyncio.to_thread(file.write_text, policy(UNPULLED))
        assert await previewed(store, "--policy", str(file)) == [(f"docker.io/{REPO}:v1", 1, None)]
        assert await previewed(store, "--policy", str(file), "ghcr.io/*") == []
        await asyncio.to_thread(file.write_text, policy(UNPULLED).replace("expire", "transition"))
        said = (await entrepot_lifecycle(store, "preview", "--policy", str(file), code=2)).stderr
        assert said == (
            f"entrepot: --policy: {file}: rules[0].action.type: a cache has no archive to move images to: "
            'write "expire"\n'
        )
        assert tags(await listed(store)) == ["v1"]


async def test_a_server_previews_and_applies_too(upstream: FakeRegistry, store: Path, tmp_path: Path) -> None:
    image = upstream.add_image(REPO, "v1", [b"layer"])
    file = tmp_path / "policy.json"
    await asyncio.to_thread(file.write_text, policy(UNPULLED))
    async with administered(upstream, store) as (proxy, host):
        await pull(proxy, image)
        aged(proxy, image, pulled=99)
        nothing = {"policies": [], "images": [], "freed": 0}
        assert await ask(host, "GET", "/api/lifecycle?repository=docker.io/*") == (200, nothing)
        assert await order(host, "lifecycle/apply") == (200, nothing)
        status, told = await order(host, "lifecycle/preview", policy=policy(UNPULLED), repositories=["docker.io/*"])
        assert (status, told["images"][0]["digest"], told["images"][0]["rule"]) == (200, image.digest, 1)
        status, told = await order(host, "lifecycle/preview", policy="{}")
        assert (status, told["error"]) == (400, "policy: rules: is required")
        assert (await order(host, "lifecycle/preview"))[0] == 400
        assert (await order(host, "lifecycle/apply", repositories="docker.io/*"))[0] == 400
        for other in ({"images": ["app:v1"]}, {"policy": policy(UNPULLED)}):  # else all would go
            assert (await order(host, "lifecycle/apply", **other))[0] == 400
        said = (await remote("lifecycle", "preview", "--server", host, "--policy", str(file))).stdout
        assert "not pulled for 99.0 days, more than 30" in said
        assert "No lifecycle policy" in (await remote("lifecycle", "preview", "--server", host)).stdout
        assert (await remote("lifecycle", "apply", "--server", host)).stdout == "Nothing is to go.\n"


async def test_the_job_is_there_only_where_there_are_policies(upstream: FakeRegistry, store: Path) -> None:
    async with running(toml(upstream.url), store) as proxy:
        assert "lifecycle" not in [job.name for job in proxy.app.jobs._jobs]
    text = configured(upstream.url, UNPULLED).replace("[store]", "[store]\nlifecycle_interval = '10m'")
    async with running(text, store) as proxy:
        assert ("lifecycle", 600.0) in [(job.name, job.every) for job in proxy.app.jobs._jobs]


async def test_trouble_of_the_process_is_the_jobs(upstream: FakeRegistry, store: Path, tmp_path: Path) -> None:
    async with running(configured(upstream.url, UNPULLED), store) as proxy:
        policies = configured_policies(proxy.config.lifecycle, proxy.config.upstream)

        async def nothing() -> None:
            pass

        for path, said in ((Path("/dev/null/x"), "Not a directory"), ("no path", "the process for it ended with 1")):
            with pytest.raises(OSError, match=said):
                await Expiry(path, policies, nothing, lambda _: None).run()  # type: ignore[arg-type]


async def test_where_the_server_ends_nothing_goes_any_more(upstream: FakeRegistry, store: Path) -> None:
    images = [upstream.add_image(REPO, f"v{number}", [b"%d" % number]) for number in range(2)]
    async with running(configured(upstream.url, UNPULLED), store) as proxy:
        for image in images:
            await pull(proxy, image)
            aged(proxy, image, pulled=99)
        policies = configured_policies(proxy.config.lifecycle, proxy.config.upstream)
        answers = io.StringIO()
        await hop(work, io.BytesIO(pickle.dumps((store, policies))), answers)
        assert answers.getvalue() == "{}\n"
        assert tags(await listed(store)) == ["v0", "v1"]

        async def never() -> None:
            asking.set()
            await asyncio.Event().wait()

        asking = asyncio.Event()
        task = asyncio.create_task(Expiry(store, policies, never, lambda _: None).run())
        await asking.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert tags(await listed(store)) == ["v0", "v1"]
