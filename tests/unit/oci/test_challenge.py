"""Challenges, as the registries of this world send them and as no registry should."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.challenge import Challenge, parse

TCHAR = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull"'


def bearer(**parameters: str) -> Challenge:
    return Challenge("bearer", tuple(parameters.items()))


@pytest.mark.parametrize(
    ("header", "challenge"),
    [
        pytest.param(
            HUB,
            bearer(
                realm="https://auth.docker.io/token", service="registry.docker.io", scope="repository:library/x:pull"
            ),
            id="docker hub",
        ),
        pytest.param(
            'Bearer realm="https://ghcr.io/token",service="ghcr.io",scope="repository:user/image:pull"',
            bearer(realm="https://ghcr.io/token", service="ghcr.io", scope="repository:user/image:pull"),
            id="ghcr, with its placeholder",
        ),
        pytest.param(
            'Bearer realm="https://quay.io/v2/auth",service="quay.io"',
            bearer(realm="https://quay.io/v2/auth", service="quay.io"),
            id="quay",
        ),
        pytest.param(
            'Bearer realm="https://gcr.io/v2/token",service=""',
            bearer(realm="https://gcr.io/v2/token", service=""),
            id="gcr, whose service is empty",
        ),
        pytest.param(
            'Bearer realm="https://nvcr.io/proxy_auth",scope="repository:nvidia/cuda:pull"',
            bearer(realm="https://nvcr.io/proxy_auth", scope="repository:nvidia/cuda:pull"),
            id="nvcr, which has no service",
        ),
        pytest.param(
            'Bearer realm="https://authn.nvidia.com/token" error="invalid_token"',
            bearer(realm="https://authn.nvidia.com/token", error="invalid_token"),
            id="nvcr, after the token expired",
        ),
        pytest.param(
            'Basic realm="https://1.dkr.ecr.eu-west-1.amazonaws.com/",service="ecr.amazonaws.com"',
            Challenge(
                "basic", (("realm", "https://1.dkr.ecr.eu-west-1.amazonaws.com/"), ("service", "ecr.amazonaws.com"))
            ),
            id="ecr",
        ),
        pytest.param(
            'Bearer realm="https://public.ecr.aws/token/",service="public.ecr.aws",scope="aws"',
            bearer(realm="https://public.ecr.aws/token/", service="public.ecr.aws", scope="aws"),
            id="public ecr",
        ),
        pytest.param(
            'Bearer realm="https://x.azurecr.io/oauth2/token",service="x.azurecr.io",scope="repository:a:pull,push"',
            bearer(realm="https://x.azurecr.io/oauth2/token", service="x.azurecr.io", scope="repository:a:pull,push"),
            id="acr, with a comma in its scope",
        ),
        pytest.param(
            'Bearer realm="https://gitlab.com/jwt/auth",service="container_registry",error="insufficient_scope"',
            bearer(realm="https://gitlab.com/jwt/auth", service="container_registry", error="insufficient_scope"),
            id="gitlab",
        ),
        pytest.param("Basic realm=harbor", Challenge("basic", (("realm", "harbor"),)), id="token for a value"),
        pytest.param(
            "Bearer scope=a,realm=https://x/token,service=x",
            bearer(scope="a", realm="https://x/token", service="x"),
            id="a url without quotes",
        ),
        pytest.param("Basic", Challenge("basic"), id="scheme alone"),
        pytest.param("Negotiate dG9rZW4=", Challenge("negotiate"), id="token68"),
        pytest.param("Negotiate dG9rZW4", Challenge("negotiate"), id="token68 without padding"),
    ],
)
def test_a_challenge_is_read_as_it_is_sent(header: str, challenge: Challenge) -> None:
    assert parse([header]) == (challenge,)


def test_the_names_of_scheme_and_parameters_are_in_any_case() -> None:
    assert parse(['BEARER Realm="https://X/",SERVICE="Y"']) == (bearer(realm="https://X/", service="Y"),)


def test_whitespace_is_allowed_wherever_the_grammar_or_carelessness_puts_it() -> None:
    assert parse(['  Bearer \t realm = "r"  ,\t,  service\t=s ,']) == (bearer(realm="r", service="s"),)


def test_a_quoted_value_may_escape_and_may_hold_anything() -> None:
    assert parse([r'Bearer realm="a\"b\\c\d, Basic x=\"y\"",service="s"']) == (
        bearer(realm=r'a"b\cd, Basic x="y"', service="s"),
    )


@pytest.mark.parametrize(
    "headers",
    [
        ['Negotiate, Bearer realm="r",service="s", Basic realm="b"'],
        ["Negotiate", 'Bearer realm="r",service="s"', 'Basic realm="b"'],
        ['Negotiate YWJj=, Bearer realm="r" , service="s",Basic realm="b"'],
        ["Negotiate abc,Bearer realm=r,service=s,Basic realm=b"],
        ["Negotiate", "Bearer realm=r, service=s Basic realm=b"],
    ],
)
def test_several_challenges_come_in_one_header_or_in_several(headers: list[str]) -> None:
    assert parse(headers) == (
        Challenge("negotiate"),
        bearer(realm="r", service="s"),
        Challenge("basic", (("realm", "b"),)),
    )


def test_a_header_does_not_continue_the_challenge_of_the_one_before() -> None:
    assert parse(['Bearer realm="r"', 'service="s"']) == (bearer(realm="r"),)


def test_the_first_of_two_values_wins() -> None:
    [challenge] = parse(['Bearer realm="https://good/",realm="https://evil/",REALM="https://evil/"'])
    assert challenge.parameters == (("realm", "https://good/"),)


def test_a_parameter_that_is_missing_differs_from_an_empty_one() -> None:
    [challenge] = parse(['Bearer realm="r",service=""'])
    assert challenge.realm == "r"
    assert challenge.service == ""
    assert challenge.scope is None
    assert challenge.error is None
    assert challenge.get("x") is None


@pytest.mark.parametrize(
    "header", ["", " ", ",", ",,,", "=", '"', '""', '"Bearer"', 'realm="r"', "@", "a@b", "=x=y", "Bearer =r", "\x00"]
)
def test_what_names_no_scheme_is_no_challenge(header: str) -> None:
    assert parse([header]) == ()


@pytest.mark.parametrize(
    "header",
    [
        'Bearer realm="never closed',
        'Bearer realm="never closed, Basic realm=x',
        'Bearer realm="never closed\\',
        'Bearer realm="escaped end\\"',
        "Bearer realm=",
        'Bearer "realm"',
        "Bearer @@@",
    ],
)
def test_a_broken_parameter_is_left_out(header: str) -> None:
    assert parse([header]) == (Challenge("bearer"),)


def test_what_stands_in_a_stray_quotation_is_not_read() -> None:
    assert parse(['Bearer "x, realm=evil, Basic y=z", realm="r"']) == (bearer(realm="r"),)


def test_no_header_is_no_challenge() -> None:
    assert parse([]) == ()


def quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(
    st.lists(
        st.tuples(
            st.text(TCHAR, min_size=1, max_size=8),
            st.dictionaries(st.text(TCHAR, min_size=1, max_size=8), st.text(max_size=12), max_size=4),
        ),
        max_size=4,
    ),
    st.sampled_from([",", ", ", " , ", ",\t,"]),
)
def test_challenges_written_by_the_grammar_read_back(wanted: list[tuple[str, dict[str, str]]], comma: str) -> None:
    header = comma.join(
        f"{scheme} " + comma.join(f"{key}={quoted(value)}" for key, value in parameters.items())
        for scheme, parameters in wanted
    )
    assert parse([header]) == tuple(Challenge(scheme, tuple(parameters.items())) for scheme, parameters in wanted)


@given(st.lists(st.text(st.characters(exclude_categories=())) | st.text('Bar =",\\\t')))
def test_arbitrary_headers_never_raise(headers: list[str]) -> None:
    for challenge in parse(headers):
        assert challenge.scheme == challenge.scheme.lower() != ""
        keys = [key for key, _ in challenge.parameters]
        assert len(keys) == len(set(keys))


@pytest.mark.parametrize("seed", ['"', '\\"', 'a="', "a", "a ", "a=", 'a="\\', "@", "a@", ",", "~+/=", "Bearer "])
def test_a_long_hostile_header_is_read_to_its_end(seed: str) -> None:
    # Were the grammar quadratic, this would run into the time limit of the whole suite.
    *_, last = parse([f"{seed * 20_000}", "Basic"])
    assert last.scheme == "basic"
