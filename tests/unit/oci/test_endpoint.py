"""Paths: read from the right, and never anything but an endpoint or a refusal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.endpoint import Endpoint, Kind, parse
from proxy.oci.errors import OciError, Problem
from tests.unit.oci.attempts import attempt

D = "sha256:" + "a" * 64

PATHS = [
    ("/v2", Endpoint(Kind.PING)),
    ("/v2/", Endpoint(Kind.PING)),
    ("/ghcr.io/v2", Endpoint(Kind.PING, "ghcr.io")),
    ("/localhost:5000/v2/", Endpoint(Kind.PING, "localhost:5000")),
    ("/v2/_catalog", Endpoint(Kind.CATALOG)),
    ("/ghcr.io/v2/_catalog", Endpoint(Kind.CATALOG, "ghcr.io")),
    ("/v2/library/alpine/manifests/latest", Endpoint(Kind.MANIFEST, None, "library/alpine", "latest")),
    ("/ghcr.io/v2/o/r/manifests/" + D, Endpoint(Kind.MANIFEST, "ghcr.io", "o/r", D)),
    ("/v2/a/blobs/" + D, Endpoint(Kind.BLOB, None, "a", D)),
    ("/v2/a/referrers/" + D, Endpoint(Kind.REFERRERS, None, "a", D)),
    ("/quay.io/v2/a/b/tags/list", Endpoint(Kind.TAGS, "quay.io", "a/b")),
    ("/v2/a/blobs/uploads/", Endpoint(Kind.UPLOAD, None, "a")),
    ("/v2/a/blobs/uploads/some-uuid", Endpoint(Kind.UPLOAD, None, "a")),
    ("/v2/a/blobs/uploads/x/y/z", Endpoint(Kind.UPLOAD, None, "a")),
    ("/q/v2/a/b/blobs/uploads/", Endpoint(Kind.UPLOAD, "q", "a/b")),
]
# Names may contain every keyword.
CONFUSING = [
    ("/v2/a/manifests/b/manifests/c", Endpoint(Kind.MANIFEST, None, "a/manifests/b", "c")),
    ("/v2/a/blobs/x/manifests/c", Endpoint(Kind.MANIFEST, None, "a/blobs/x", "c")),
    ("/v2/a/manifests/x/blobs/c", Endpoint(Kind.BLOB, None, "a/manifests/x", "c")),
    ("/v2/manifests/manifests/manifests", Endpoint(Kind.MANIFEST, None, "manifests", "manifests")),
    ("/v2/blobs/blobs/blobs", Endpoint(Kind.BLOB, None, "blobs", "blobs")),
    ("/v2/tags/tags/list", Endpoint(Kind.TAGS, None, "tags")),
    ("/v2/a/manifests/tags/list", Endpoint(Kind.TAGS, None, "a/manifests")),
    ("/v2/a/tags/manifests/list", Endpoint(Kind.MANIFEST, None, "a/tags", "list")),
    ("/v2/tags/list/tags/list", Endpoint(Kind.TAGS, None, "tags/list")),
    ("/v2/a/tags/list/manifests/x", Endpoint(Kind.MANIFEST, None, "a/tags/list", "x")),
    ("/v2/a/blobs/uploads", Endpoint(Kind.BLOB, None, "a", "uploads")),
    ("/v2/a/blobs/uploads/manifests/x", Endpoint(Kind.MANIFEST, None, "a/blobs/uploads", "x")),
    ("/v2/a/blobs/uploads/blobs/" + D, Endpoint(Kind.BLOB, None, "a/blobs/uploads", D)),
    ("/v2/a/blobs/uploads/b/blobs/uploads/", Endpoint(Kind.UPLOAD, None, "a/blobs/uploads/b")),
    ("/v2/foo/v2/manifests/x", Endpoint(Kind.MANIFEST, None, "foo/v2", "x")),
    ("/v2/v2/manifests/x", Endpoint(Kind.MANIFEST, None, "v2", "x")),
    ("/v2/v2/v2/manifests/x", Endpoint(Kind.MANIFEST, None, "v2/v2", "x")),
    ("/m/v2/v2/manifests/x", Endpoint(Kind.MANIFEST, "m", "v2", "x")),
    ("/v2/_catalog/manifests/x", Endpoint(Kind.MANIFEST, None, "_catalog", "x")),
]
NOT_FOUND = [
    "",
    "/",
    "v2/",
    "/v1/_ping",
    "/v20/",
    "/V2/",
    "/healthz",
    "/metrics",
    "/v2/a",
    "/v2/a/b/c",
    "/v2/v2",
    "/v2/manifests/x",
    "/v2/blobs/x",
    "/v2/referrers/x",
    "/v2/tags/list",
    "/v2/blobs/uploads/",
    "/v2/blobs/uploads/x",
    "/v2/a/_catalog",
    "/v2/a/tags",
    "/v2/a/tags/lists",
    "/a/b/v2/x/manifests/y",
    "/a_b/v2/",
    "/a b/v2/",
    "/a%2fb/v2/",
    "/user@host/v2/",
    "/a\\b/v2/",
    "/a\n/v2/",
    "/../v2/a/manifests/b",
    "/./v2/",
    "//v2/",
    "https://ghcr.io/v2/a/manifests/b",
]
INVALID = [
    "/v2//",
    "/v2//a/manifests/b",
    "/v2/a//manifests/b",
    "/v2/a/manifests/",
    "/v2/a/manifests//",
    "/v2/a/manifests/b/",
    "/v2/a/blobs/",
    "/v2/a/tags/list/",
    "/v2/_catalog/",
    "/v2/../manifests/b",
    "/v2/a/../../etc/passwd",
    "/v2/a/./manifests/b",
    "/v2/a/manifests/..",
    "/v2/a/manifests/.",
    "/v2/../v2/a/manifests/b",
    "/v2/../blobs/uploads/",
    "/v2/a/blobs/uploads//",
    "/v2/a/blobs/uploads/../x",
    "/ghcr.io/v2/a/../manifests/b",
    "/ghcr.io/v2//",
    "/v2/caf\u00e9/manifests/x",
    "/v2/a/manifests/\u0661",
    "/\u24b6/v2/",
    "/v2/a/manifests/\udcff",
]


@pytest.mark.parametrize(("path", "endpoint"), PATHS)
def test_a_path_of_the_specification_is_its_endpoint(path: str, endpoint: Endpoint) -> None:
    assert parse(path) == endpoint


@pytest.mark.parametrize(("path", "endpoint"), CONFUSING)
def test_a_keyword_within_a_name_is_part_of_the_name(path: str, endpoint: Endpoint) -> None:
    assert parse(path) == endpoint


@pytest.mark.parametrize("path", NOT_FOUND)
def test_a_path_that_no_registry_has_is_not_found(path: str) -> None:
    with pytest.raises(OciError) as caught:
        parse(path)
    assert caught.value.problem is Problem.NOT_FOUND


@pytest.mark.parametrize("path", INVALID)
def test_a_path_with_an_empty_a_dot_or_a_foreign_component_is_invalid(path: str) -> None:
    with pytest.raises(OciError) as caught:
        parse(path)
    assert caught.value.problem is Problem.NAME_INVALID


@pytest.mark.parametrize("rest", ["%2e%2e/manifests/x", "a\\b/manifests/x", "a\x00/manifests/x", "a%252e/manifests/x"])
def test_what_only_looks_like_a_traversal_is_left_to_the_grammar_of_names(rest: str) -> None:
    assert parse(f"/v2/{rest}") == Endpoint(Kind.MANIFEST, None, rest.partition("/")[0], "x")


NOUNS = {"manifests": Kind.MANIFEST, "blobs": Kind.BLOB, "referrers": Kind.REFERRERS}
COMPONENT = st.sampled_from(
    ["a", "v2", "manifests", "blobs", "tags", "list", "referrers", "uploads", "_catalog", "x.y"]
)
NAME = st.lists(COMPONENT, min_size=1, max_size=5).map("/".join)
MIRROR = st.none() | st.sampled_from(["ghcr.io", "localhost:5000", "manifests", "a-b"])


@given(MIRROR, NAME, st.sampled_from(sorted(NOUNS)), COMPONENT)
def test_whatever_the_name_is_the_last_keyword_decides(mirror: str | None, name: str, noun: str, argument: str) -> None:
    endpoint = parse(f"{'' if mirror is None else '/' + mirror}/v2/{name}/{noun}/{argument}")
    assert endpoint == Endpoint(NOUNS[noun], mirror, name, argument)


@given(MIRROR, NAME)
def test_whatever_the_name_is_a_list_of_tags_is_one(mirror: str | None, name: str) -> None:
    path = f"{'' if mirror is None else '/' + mirror}/v2/{name}/tags/list"
    assert parse(path) == Endpoint(Kind.TAGS, mirror, name)


@given(
    st.text(st.characters(exclude_categories=())) | st.lists(COMPONENT | st.sampled_from(["", ".", ".."])).map("/".join)
)
def test_any_path_is_an_endpoint_or_a_refusal(text: str) -> None:
    for path in (text, f"/{text}", f"/v2/{text}", f"/ghcr.io/v2/{text}"):
        result = attempt(parse, path)
        if isinstance(result, Problem):
            assert result in {Problem.NOT_FOUND, Problem.NAME_INVALID}
            continue
        assert bool(result.name) == (result.kind not in {Kind.PING, Kind.CATALOG})
        assert bool(result.argument) == (result.kind in NOUNS.values())
        assert {"", ".", ".."}.isdisjoint(f"{result.name or 'x'}/{result.argument or 'x'}".split("/"))
