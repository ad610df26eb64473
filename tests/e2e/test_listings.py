"""Tags and referrers: relayed page by page, with links that lead here, and no failure is an empty list."""

import asyncio
import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest

from .harness import DEADLINE, Proxy, running, toml
from .raw_client import RawAnswer
from .upstream import OCI_INDEX, OCI_MANIFEST, Canary, FakeRegistry, Reply

REPO = "library/app"
TAGS = f"/v2/{REPO}/tags/list"
SUBJECT = f"sha256:{'5' * 64}"
REFERRERS = f"/v2/{REPO}/referrers/{SUBJECT}"
FALLBACK = f"sha256-{'5' * 64}"
LIMIT = 4 * 1024 * 1024


def tags_of(answer: RawAnswer) -> list[str]:
    """The tags of a listing that is one."""
    assert (answer.status, answer.header("Content-Type")) == (200, "application/json"), answer.body
    return list(json.loads(answer.body)["tags"])


def code_of(answer: RawAnswer) -> tuple[int, str]:
    """The status and the code of an error."""
    return answer.status, str(json.loads(answer.body)["errors"][0]["code"])


def next_of(answer: RawAnswer) -> str | None:
    """Where the next page is."""
    link = answer.header("Link")
    if link is None:
        return None
    match = re.fullmatch(r'<([^<>]+)>; rel="next"', link)
    assert match is not None, link
    return match[1]


async def walk(proxy: Proxy, target: str, pages: int = 50) -> list[list[str]]:
    """Every page, each by the link of the one before."""
    found: list[list[str]] = []
    following: str | None = target
    while following is not None and len(found) < pages:
        answer = await proxy.get(following)
        found.append(tags_of(answer))
        following = next_of(answer)
    assert following is None, "it does not end"
    return found


def add_tags(upstream: FakeRegistry, *tags: str) -> None:
    digest = upstream.add_manifest(REPO, {"manifests": []}, OCI_INDEX)
    for tag in tags:
        upstream.tag(REPO, tag, digest)


def listing(upstream: FakeRegistry, tags: object, *headers: tuple[str, str]) -> None:
    """Let upstream answer this list to every question."""
    add_tags(upstream)
    upstream.on("GET", path_contains="/tags/").body(json.dumps({"name": REPO, "tags": tags}).encode()).extra_headers(
        *headers
    )


# Tags


async def test_the_tags_of_a_repository_are_relayed(upstream: FakeRegistry, proxy: Proxy) -> None:
    add_tags(upstream, "b", "a", "C")
    got = await proxy.get(TAGS)
    assert json.loads(got.body) == {"name": REPO, "tags": ["C", "a", "b"]}
    assert got.header("Link") is None
    add_tags(upstream, "new")
    assert tags_of(await proxy.get(TAGS)) == ["C", "a", "b", "new"]  # and not remembered


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (f"/v2/{REPO}/tags/list", REPO),
        ("/v2/app/tags/list", "app"),
        ("/v2/docker.io/app/tags/list", "docker.io/app"),
        (f"/docker.io/v2/{REPO}/tags/list", REPO),
        (f"/v2/docker.io/{REPO}/tags/list", f"docker.io/{REPO}"),
    ],
)
@pytest.mark.parametrize("ns", ["", "&ns=docker.io"])
async def test_every_page_links_to_the_next_one_here(
    upstream: FakeRegistry, proxy: Proxy, target: str, name: str, ns: str
) -> None:
    add_tags(upstream, "a", "b", "c", "d", "e")
    first = await proxy.get(f"{target}?n=2{ns}")
    assert json.loads(first.body)["name"] == name
    link = next_of(first)
    assert link is not None
    assert link.partition("?")[0] == target
    assert sorted(link.partition("?")[2].split("&")) == sorted(["n=2", "last=b", *([ns[1:]] if ns else [])])
    assert await walk(proxy, f"{target}?n=2{ns}") == [["a", "b"], ["c", "d"], ["e"]]
    assert all("ns=" not in request.target for request in upstream.requests)


async def test_last_is_exclusive_and_need_not_exist(upstream: FakeRegistry, proxy: Proxy) -> None:
    add_tags(upstream, "a", "b", "d")
    assert tags_of(await proxy.get(f"{TAGS}?last=b")) == ["d"]
    assert tags_of(await proxy.get(f"{TAGS}?last=c")) == ["d"]
    assert tags_of(await proxy.get(f"{TAGS}?last=zzz")) == []
    assert tags_of(await proxy.get(f"{TAGS}?last=")) == ["a", "b", "d"]
    assert tags_of(await proxy.get(f"{TAGS}?n=1&last=a")) == ["b"]


async def test_a_page_of_nothing_is_empty_and_leads_nowhere(upstream: FakeRegistry, proxy: Proxy) -> None:
    add_tags(upstream, "a", "b")
    got = await proxy.get(f"{TAGS}?n=0")
    assert (tags_of(got), got.header("Link")) == ([], None)


async def test_an_n_that_is_too_large_is_cut_to_what_upstreams_take(upstream: FakeRegistry, proxy: Proxy) -> None:
    add_tags(upstream, "a", "b")
    for n in ("1001", "1000000000", "9" * 2000):
        assert tags_of(await proxy.get(f"{TAGS}?n={n}")) == ["a", "b"]
    assert {request.query[0] for request in upstream.requests} == {("n", "1000")}


@pytest.mark.parametrize(
    "query",
    ["n=-1", "n=abc", "n=", "n=1e9", "n=+1", "n=0x1", "n=1.5", "n=%D9%A1", "n=1&n=2", "n=%EF%BC%91", "last=a&last=b",
     "last=%00", "last=%0d%0aX:1", "last=%C3%A9", "x%00=1", "a[b]=1", f"last={'a' * 3000}", f"n={'9' * 5000}",
     "n=1;n=2"],
)  # fmt: skip
async def test_a_query_that_no_registry_would_understand_is_a_bad_request(
    upstream: FakeRegistry, proxy: Proxy, query: str
) -> None:
    add_tags(upstream, "a")
    assert code_of(await proxy.get(f"{TAGS}?{query}")) == (400, "UNSUPPORTED")
    assert upstream.requests == []


async def test_an_upstream_that_ignores_the_query_is_cut_into_pages(upstream: FakeRegistry, proxy: Proxy) -> None:
    listing(upstream, ["a", "b", "c", "d", "e"])
    assert await walk(proxy, f"{TAGS}?n=2") == [["a", "b"], ["c", "d"], ["e"]]
    assert tags_of(await proxy.get(f"{TAGS}?last=c")) == ["d", "e"]
    assert await walk(proxy, f"{TAGS}?n=5") == [["a", "b", "c", "d", "e"]]


async def test_an_upstream_that_ignores_only_last_is_walked_to_its_end(upstream: FakeRegistry, proxy: Proxy) -> None:
    listing(upstream, ["c", "a", "b", "A"])  # in no order at all
    assert await walk(proxy, f"{TAGS}?n=3") == [["A", "a", "b"], ["c"]]


@pytest.mark.parametrize("order", [str, str.lower])
async def test_no_tag_is_lost_whichever_of_the_two_orders_upstream_has(
    upstream: FakeRegistry, proxy: Proxy, order: object
) -> None:
    assert callable(order)
    names = sorted(["alpha", "Beta", "gamma", "1.10", "1.9", "Z", "a"], key=order)

    def page(_reply: Reply, asked: object) -> Reply:
        query = dict(asked.request.query)  # type: ignore[attr-defined]
        start = names.index(query["last"]) + 1 if "last" in query else 0
        stop = start + int(query["n"])
        more = (("Link", f'<{TAGS}?n={query["n"]}&last={names[stop - 1]}>; rel="next"'),) if stop < len(names) else ()
        return Reply(200, more, json.dumps({"name": REPO, "tags": names[start:stop]}).encode())

    upstream.on("GET", path_contains="/tags/").then(page)
    for n in (1, 2, 3):
        assert [tag for page in await walk(proxy, f"{TAGS}?n={n}") for tag in page] == names


@pytest.mark.parametrize("tags", [None, []])
async def test_no_tags_are_an_empty_list_and_not_null(upstream: FakeRegistry, proxy: Proxy, tags: object) -> None:
    listing(upstream, tags)
    assert json.loads((await proxy.get(TAGS)).body) == {"name": REPO, "tags": []}


@pytest.mark.parametrize(
    "link",
    [
        "</v2/library/app/tags/list?next_page=gAAA%2BB%3D%3D&n=2>; rel=\"next\"",
        "<https://elsewhere.example/v2/library/app/tags/list?next_page=gAAA%2BB%3D%3D&n=2>; rel=\"next\"",
        "<?next_page=gAAA%2BB%3D%3D&n=2>; rel=next",
        "</other>; rel=\"prev\", </v2/x?next_page=gAAA%2BB%3D%3D&n=2&ns=evil>; title=\"a, b\"; rel=\"next\"",
    ],
)  # fmt: skip
async def test_a_cursor_of_upstreams_own_is_kept_and_its_host_is_not(
    upstream: FakeRegistry, proxy: Proxy, link: str
) -> None:
    listing(upstream, ["a", "b"], ("Link", link))
    for ns in ("", "&ns=docker.io"):
        got = await proxy.get(f"{TAGS}?n=2{ns}")
        assert next_of(got) == f"{TAGS}?next_page=gAAA%2BB%3D%3D&n=2{ns}"
        await proxy.get(next_of(got) or "")
        assert ("next_page", "gAAA+B==") in upstream.requests[-1].query


async def test_a_link_to_another_host_is_not_followed(upstream: FakeRegistry, proxy: Proxy) -> None:
    async with Canary() as canary:
        listing(upstream, ["a"], ("Link", f'<{canary.url}/v2/library/app/tags/list?last=a>; rel="next"'))
        following = next_of(await proxy.get(f"{TAGS}?n=1"))
        assert following is not None
        assert following.startswith(f"{TAGS}?")
        await proxy.get(following)
        assert canary.connections == 0


@pytest.mark.parametrize(
    "link", ["", "<>", "garbage", "</v2/x?last=a>", '<>; rel="next"', '</v2/x>; rel="next"', "<" * 5000]
)
async def test_a_link_that_leads_nowhere_is_dropped(upstream: FakeRegistry, proxy: Proxy, link: str) -> None:
    listing(upstream, ["a"], ("Link", link))
    got = await proxy.get(f"{TAGS}?n=1")
    assert (tags_of(got), got.header("Link")) == (["a"], None)


async def test_a_link_cannot_bring_headers_of_its_own(upstream: FakeRegistry, proxy: Proxy) -> None:
    listing(upstream, ["a"], ("Link", '</v2/x?last=%0d%0aX-Evil:%201&n="%3e>; rel="next"'))
    got = await proxy.get(f"{TAGS}?n=1")
    assert got.header("X-Evil") is None
    assert next_of(got) == f"{TAGS}?last=%0D%0AX-Evil%3A+1&n=%22%3E"


async def test_an_unknown_repository_has_no_tags_list(upstream: FakeRegistry, proxy: Proxy) -> None:
    assert code_of(await proxy.get(TAGS)) == (404, "NAME_UNKNOWN")
    add_tags(upstream, "a")
    assert tags_of(await proxy.get(TAGS)) == ["a"]  # and that is not remembered


async def test_tag_names_are_escaped_in_links(upstream: FakeRegistry, proxy: Proxy) -> None:
    add_tags(upstream, "a", "a_b-c.d", "z")
    assert next_of(await proxy.get(f"{TAGS}?n=2")) == f"{TAGS}?n=2&last=a_b-c.d"


# Referrers


def refer(upstream: FakeRegistry, kind: str = "application/x.sig", subject: str = SUBJECT) -> str:
    """Add something that refers to the subject."""
    document = {"mediaType": OCI_MANIFEST, "layers": [], "artifactType": kind, "subject": {"digest": subject}}
    return upstream.add_manifest(REPO, document, OCI_MANIFEST)


def digests_of(answer: RawAnswer) -> list[str]:
    """What an index lists."""
    assert (answer.status, answer.header("Content-Type")) == (200, OCI_INDEX), answer.body
    document = json.loads(answer.body)
    assert (document["schemaVersion"], document["mediaType"]) == (2, OCI_INDEX)
    return [entry["digest"] for entry in document["manifests"]]


async def test_referrers_are_relayed_and_not_remembered(upstream: FakeRegistry, proxy: Proxy) -> None:
    first = refer(upstream)
    refer(upstream, subject=f"sha256:{'6' * 64}")
    assert digests_of(await proxy.get(REFERRERS)) == [first]
    second = refer(upstream, "application/x.sbom")
    assert digests_of(await proxy.get(REFERRERS)) == [first, second]
    assert upstream.requests[0].header("Accept") == OCI_INDEX


async def test_the_filter_is_passed_on_and_its_header_comes_back(upstream: FakeRegistry, proxy: Proxy) -> None:
    refer(upstream)
    wanted = refer(upstream, "application/x.sbom+json")
    plain = await proxy.get(REFERRERS)
    assert plain.header("OCI-Filters-Applied") is None
    kind = quote("application/x.sbom+json", safe="")
    for ns in ("", "&ns=docker.io"):
        got = await proxy.get(f"{REFERRERS}?artifactType={kind}{ns}")
        assert digests_of(got) == [wanted]
        assert got.header("OCI-Filters-Applied") == "artifactType"
        assert upstream.requests[-1].query == [("artifactType", "application/x.sbom+json")]


async def test_a_filter_that_upstream_did_not_apply_is_not_claimed(upstream: FakeRegistry, proxy: Proxy) -> None:
    refer(upstream)
    upstream.on("GET", path_contains="/referrers/").drop_headers("OCI-Filters-Applied")
    assert (await proxy.get(f"{REFERRERS}?artifactType=x")).header("OCI-Filters-Applied") is None


async def test_nothing_that_refers_is_an_empty_index(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.add_image(REPO, "v1")
    assert digests_of(await proxy.get(REFERRERS)) == []


async def test_a_page_of_referrers_links_to_the_next_one_here(upstream: FakeRegistry, proxy: Proxy) -> None:
    refer(upstream)
    rule = upstream.on("GET", path_contains="/referrers/").extra_headers(
        ("Link", f'<https://elsewhere.example{REFERRERS}?cursor=x%2Fy>; rel="next"')
    )
    assert next_of(await proxy.get(f"{REFERRERS}?ns=docker.io")) == f"{REFERRERS}?cursor=x%2Fy&ns=docker.io"
    assert next_of(await proxy.get(f"/docker.io{REFERRERS}")) == f"/docker.io{REFERRERS}?cursor=x%2Fy"
    rule.stop()
    upstream.on("GET", path_contains="/referrers/").extra_headers(("Link", f'<{REFERRERS}>; rel="next"'))
    assert (await proxy.get(REFERRERS)).header("Link") is None  # it would lead to itself


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_without_the_api_the_fallback_tag_answers(upstream: FakeRegistry, proxy: Proxy, status: int) -> None:
    refer(upstream)
    index = upstream.add_manifest(
        REPO, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}, OCI_INDEX, [FALLBACK]
    )
    upstream.on("GET", path_contains="/referrers/").status(status, (), b"404 page not found")
    got = await proxy.get(f"{REFERRERS}?artifactType=x")
    if status == 404:
        assert got.body == upstream.repositories[REPO].manifests[index].body
        assert got.header("OCI-Filters-Applied") is None
        assert upstream.requests[-1].path == f"/v2/{REPO}/manifests/{FALLBACK}"
    else:
        assert got.status == 502


async def test_without_the_api_and_the_fallback_tag_there_is_an_empty_index(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    upstream.add_image(REPO, "v1")
    upstream.on("GET", path_contains="/referrers/").status(404)
    assert digests_of(await proxy.get(REFERRERS)) == []


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_a_fallback_tag_that_cannot_be_read_is_not_taken_for_none(
    upstream: FakeRegistry, proxy: Proxy, status: int
) -> None:
    upstream.add_image(REPO, "v1")
    upstream.on("GET", path_contains="/referrers/").status(404)
    upstream.on("GET", manifest=FALLBACK).status(status)
    assert (await proxy.get(REFERRERS)).status >= 400


async def test_a_fallback_tag_that_is_no_index_is_refused(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.add_image(REPO, FALLBACK)
    upstream.on("GET", path_contains="/referrers/").status(404)
    assert code_of(await proxy.get(REFERRERS)) == (502, "UNAVAILABLE")


async def test_an_unknown_repository_has_no_referrers(upstream: FakeRegistry, proxy: Proxy) -> None:
    assert code_of(await proxy.get(REFERRERS)) == (404, "NAME_UNKNOWN")
    assert upstream.count() == 1


async def test_the_referrers_of_sha512_have_a_fallback_tag_of_64_digits(upstream: FakeRegistry, proxy: Proxy) -> None:
    upstream.add_image(REPO, "v1")
    upstream.on("GET", path_contains="/referrers/").status(404)
    await proxy.get(f"/v2/{REPO}/referrers/sha512:{'7' * 128}")
    assert upstream.requests[-1].path == f"/v2/{REPO}/manifests/sha512-{'7' * 64}"


# Failures


FAILURES = ["401", "403", "429", "500", "503", "204", "304", "reset", "truncated", "garbage", "list", "no list", "html",
            "no key", "items", "encoded", "too large", "deep", "null", "refused"]  # fmt: skip


async def fail(upstream: FakeRegistry, failure: str) -> None:
    """Let listings fail in this way."""
    rule = upstream.on("GET", where=lambda request: "/tags/" in request.path or "/referrers/" in request.path)
    bodies = {
        "garbage": b"\x00\xff", "list": b"[]", "no list": b'{"tags":{},"manifests":{}}', "html": b"<html>",
        "null": b"null", "no key": b'{"errors":[]}',
        "items": b'{"tags":["a",5],"manifests":5}', "deep": b"[" * 100_000,
        "too large": b'{"tags":[],"manifests":[]}'.ljust(LIMIT + 1),
    }  # fmt: skip
    if failure.isdecimal():
        rule.status(int(failure))
    elif failure in bodies:
        rule.body(bodies[failure])
    elif failure == "refused":
        await upstream.go_down()
    else:
        {
            "reset": rule.reset,
            "truncated": lambda: rule.truncate(5),
            "encoded": rule.content_encoding_gzip,
        }[failure]()


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_failure_is_never_an_empty_list(upstream: FakeRegistry, proxy: Proxy, failure: str) -> None:
    refer(upstream)
    add_tags(upstream, "a")
    await fail(upstream, failure)
    for target in (TAGS, REFERRERS):
        for _ in range(2):
            got = await proxy.get(target)
            assert got.status == {"401": 403, "403": 403, "429": 429}.get(failure, got.status)
            assert got.status in {403, 429, 502, 503}, got
            assert "errors" in json.loads(got.body)


@pytest.mark.parametrize("target", [TAGS, REFERRERS])
async def test_a_listing_that_stalls_is_given_up(
    upstream: FakeRegistry, store: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    refer(upstream)
    monkeypatch.setattr("proxy.exchange.BUDGET", 0.3)
    async with running(toml(upstream.url), store) as proxy:
        upstream.on("GET").stall(5)
        async with asyncio.timeout(DEADLINE):
            assert (await proxy.get(target)).status == 504


async def test_a_listing_of_the_largest_size_is_relayed(upstream: FakeRegistry, proxy: Proxy) -> None:
    body = b'{"schemaVersion":2,"mediaType":"%s","manifests":[]}' % OCI_INDEX.encode()
    upstream.add_image(REPO, "v1")
    upstream.on("GET", path_contains="/referrers/").body(body.ljust(LIMIT))
    assert len((await proxy.get(REFERRERS)).body) == LIMIT
    listing(upstream, [f"{number:06}" + "x" * 100 for number in range(30_000)])
    assert len(tags_of(await proxy.get(TAGS))) == 30_000


async def test_a_registry_that_lists_in_no_order_and_heeds_no_page_is_put_in_order(
    upstream: FakeRegistry, proxy: Proxy
) -> None:
    listing(upstream, ["latest", "v1", "edge", "v1.0"])
    first = await proxy.get(f"/v2/{REPO}/tags/list?n=2")
    assert json.loads(first.body)["tags"] == ["edge", "latest"]
    rest = await proxy.get(f"/v2/{REPO}/tags/list?last=latest")
    assert json.loads(rest.body)["tags"] == ["v1", "v1.0"]
