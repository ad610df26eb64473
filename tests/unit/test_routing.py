"""Which upstream and which repository a request means."""

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.oci import endpoint
from proxy.oci.errors import OciError, Problem
from proxy.routing import Route, Routes, image, resolve

ROUTES = Routes(
    names={
        "docker.io": "docker.io",
        "index.docker.io": "docker.io",
        "ghcr.io": "ghcr.io",
        "reg.example:5000": "reg.example:5000",
        "hub": "docker.io",
    },
    hosts={"mirror.example": "ghcr.io", "quay.mirror:8080": "reg.example:5000"},
    default="docker.io",
)


def route(path: str, ns: tuple[str, ...] = (), host: str = "127.0.0.1:5000", routes: Routes = ROUTES) -> Route:
    """Where GET <path>/tags/list leads."""
    return resolve(routes, endpoint.parse(f"{path}/tags/list"), ns, host)


def problem(path: str, ns: tuple[str, ...] = (), host: str = "", routes: Routes = ROUTES) -> Problem:
    """Why it leads nowhere."""
    with pytest.raises(OciError) as caught:
        route(path, ns, host, routes)
    return caught.value.problem


@pytest.mark.parametrize(
    ("path", "ns", "host", "repository"),
    [
        # the default, and library/ for names of one component
        ("/v2/app", (), "", "docker.io/library/app"),
        ("/v2/library/app", (), "", "docker.io/library/app"),
        ("/v2/owner/app", (), "", "docker.io/owner/app"),
        ("/v2/a/b/c/d", (), "", "docker.io/a/b/c/d"),
        # ns
        ("/v2/app", ("ghcr.io",), "", "ghcr.io/app"),
        ("/v2/owner/app", ("ghcr.io",), "", "ghcr.io/owner/app"),
        ("/v2/app", ("docker.io",), "", "docker.io/library/app"),
        ("/v2/app", ("Index.Docker.IO",), "", "docker.io/library/app"),
        ("/v2/app", ("reg.example:5000",), "", "reg.example:5000/app"),
        # a prefix on either side of /v2/
        ("/v2/ghcr.io/owner/app", (), "", "ghcr.io/owner/app"),
        ("/ghcr.io/v2/owner/app", (), "", "ghcr.io/owner/app"),
        ("/v2/GHCR.io/owner/app", (), "", "ghcr.io/owner/app"),
        ("/GHCR.io/v2/owner/app", (), "", "ghcr.io/owner/app"),
        ("/v2/docker.io/app", (), "", "docker.io/library/app"),
        ("/docker.io/v2/app", (), "", "docker.io/library/app"),
        ("/v2/index.docker.io/owner/app", (), "", "docker.io/owner/app"),
        ("/v2/reg.example:5000/app", (), "", "reg.example:5000/app"),
        ("/reg.example:5000/v2/app", (), "", "reg.example:5000/app"),
        ("/v2/hub/app", (), "", "docker.io/library/app"),
        ("/hub/v2/app", (), "", "docker.io/library/app"),
        # a name that is only like a prefix
        ("/v2/hub", (), "", "docker.io/library/hub"),
        ("/v2/owner/ghcr.io", (), "", "docker.io/owner/ghcr.io"),
        # ns and a prefix that agree, as containerd sends them; each names the registry once too often
        ("/v2/ghcr.io/owner/app", ("ghcr.io",), "", "ghcr.io/owner/app"),
        ("/ghcr.io/v2/owner/app", ("ghcr.io",), "", "ghcr.io/owner/app"),
        ("/v2/index.docker.io/app", ("docker.io",), "", "docker.io/library/app"),
        # ns comes first
        ("/v2/owner/app", ("ghcr.io",), "quay.mirror:8080", "ghcr.io/owner/app"),
        ("/v2/owner/app", ("docker.io",), "mirror.example", "docker.io/owner/app"),
        # a prefix comes before the Host
        ("/v2/docker.io/app", (), "mirror.example", "docker.io/library/app"),
        ("/docker.io/v2/app", (), "mirror.example", "docker.io/library/app"),
        # the Host, with its port or without
        ("/v2/app", (), "mirror.example", "ghcr.io/app"),
        ("/v2/app", (), "MIRROR.example:1234", "ghcr.io/app"),
        ("/v2/app", (), "quay.mirror:8080", "reg.example:5000/app"),
        ("/v2/app", (), "quay.mirror", "docker.io/library/app"),
        ("/v2/app", (), "other.example", "docker.io/library/app"),
    ],
)
def test_a_request_leads_to_one_repository(path: str, ns: tuple[str, ...], host: str, repository: str) -> None:
    assert str(route(path, ns, host).repository) == repository


@pytest.mark.parametrize(
    "ns",
    [
        "", ".", "docker.io.", ".docker.io", "docker.io/", "docker.io/x", "http://docker.io", "user@docker.io",
        "user:pass@docker.io", "docker.io:", "docker.io:x", "docker.io:123456", "docker.io ", " docker.io",
        "docker.io\n", "docker.io\x00", "docker.io#", "docker.io?x", "d\u00f6cker.io", "\u2460\u2461\u2466.0.0.1",
        "docker\u3002io", "[::1]", "[::ffff:127.0.0.1]", "do_cker.io", "a" * 256, "a" * 1_000_000,
        "-docker.io", "docker.io,gcr.io", "*",
    ],
)  # fmt: skip
def test_an_ns_that_is_no_registry_host_is_a_bad_request(ns: str) -> None:
    assert problem("/v2/app", (ns,)) is Problem.BAD_REQUEST


@pytest.mark.parametrize(
    "ns",
    ["evil.example", "127.0.0.1", "127.0.0.1:5000", "localhost", "docker.io:443", "docker.io:80", "ghcr.io:1",
     "quay.io", "reg.example", "reg.example:5001", "xn--dcker-jua.io", "docker.io.evil.example", "library",
     "mirror.example"],
)  # fmt: skip
def test_an_ns_that_is_not_configured_is_unknown(ns: str) -> None:
    assert problem("/v2/app", (ns,)) is Problem.NAME_UNKNOWN


@pytest.mark.parametrize("ns", [("docker.io", "docker.io"), ("docker.io", "ghcr.io"), ("ghcr.io", "")])
def test_an_ns_that_is_given_twice_is_a_bad_request(ns: tuple[str, ...]) -> None:
    assert problem("/v2/app", ns) is Problem.BAD_REQUEST


@pytest.mark.parametrize(
    "path",
    ["/v2/quay.io/owner/app", "/quay.io/v2/owner/app", "/v2/localhost/app", "/v2/docker.io:443/app", "/nowhere/v2/app",
     "/v2/127.0.0.1/app", "/v2/my.registry/a/b/c", "/v2/reg.example:5001/app"],
)  # fmt: skip
def test_a_registry_in_the_path_that_is_not_configured_is_never_asked_of_the_default(path: str) -> None:
    assert problem(path) is Problem.NAME_UNKNOWN


def test_without_a_default_a_bare_name_leads_nowhere() -> None:
    routes = Routes(names={"ghcr.io": "ghcr.io"})
    assert problem("/v2/owner/app", routes=routes) is Problem.NAME_UNKNOWN
    assert str(route("/v2/ghcr.io/owner/app", routes=routes).repository) == "ghcr.io/owner/app"


def test_library_is_docker_hubs_own_custom() -> None:
    routes = Routes(names={"ghcr.io": "ghcr.io"}, default="ghcr.io")
    assert str(route("/v2/app", routes=routes).repository) == "ghcr.io/app"


@pytest.mark.parametrize("name", ["UPPER/app", "a..b/app", "_a/app", "a" * 300 + "/app", "a:b/app"])
def test_a_name_outside_the_grammar_is_refused_whatever_the_route(name: str) -> None:
    for path, ns in ((f"/v2/{name}", ()), (f"/v2/{name}", ("ghcr.io",)), (f"/v2/ghcr.io/{name}", ())):
        assert problem(path, ns) in {Problem.NAME_INVALID, Problem.NAME_UNKNOWN}


def test_the_repositorys_name_as_the_client_knows_it_is_kept() -> None:
    assert route("/v2/ghcr.io/owner/app").visible == "ghcr.io/owner/app"
    assert route("/v2/app").visible == "app"
    assert route("/ghcr.io/v2/owner/app").visible == "owner/app"
    assert route("/v2/app", ("GHCR.io",)).namespace == "ghcr.io"
    assert route("/v2/app").namespace is None


@given(st.text(max_size=40), st.text(max_size=40))
@example("docker.io\u0130", "")
@example("ghcr.io", "mirror.example\n")
def test_no_text_leads_anywhere_but_to_what_is_configured(ns: str, host: str) -> None:
    with contextlib.suppress(OciError):
        found = route("/v2/owner/app", (ns,) if ns else (), host)
        assert found.repository.registry in set(ROUTES.names.values())
        assert found.namespace in {None, *ROUTES.names}


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("nginx", ("docker.io/library/nginx", "latest")),
        ("nginx:1.27", ("docker.io/library/nginx", "1.27")),
        ("owner/app:v1", ("docker.io/owner/app", "v1")),
        ("ghcr.io/owner/app", ("ghcr.io/owner/app", "latest")),
        ("index.docker.io/nginx:1", ("docker.io/library/nginx", "1")),
        ("reg.example:5000/app", ("reg.example:5000/app", "latest")),
        ("reg.example:5000/app:v1", ("reg.example:5000/app", "v1")),
        (f"app@sha256:{'a' * 64}", ("docker.io/library/app", f"sha256:{'a' * 64}")),
        (f"app:v1@sha256:{'a' * 64}", ("docker.io/library/app", f"sha256:{'a' * 64}")),
    ],
)
def test_an_image_is_what_a_pull_of_it_would_be_routed_to(text: str, meant: tuple[str, str]) -> None:
    repository, reference = image(ROUTES, text)
    assert (str(repository), str(reference)) == meant


@pytest.mark.parametrize(
    "text", ["", ":", "@", "a@", "a:", "A", "a@sha256:1", "unknown.example/a", "a//b", "/a", "a:b:c"]
)
def test_what_is_no_image_is_refused_with_a_word(text: str) -> None:
    with pytest.raises(OciError):
        image(ROUTES, text)


@given(st.text())
def test_any_text_is_an_image_or_refused(text: str) -> None:
    with contextlib.suppress(OciError):
        image(ROUTES, text)
