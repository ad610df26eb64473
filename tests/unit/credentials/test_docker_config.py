"""Docker's config.json is read as Docker reads it."""

import contextlib
import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.credentials.base import Credential, CredentialError
from proxy.credentials.docker_config import HUB, Helper, Login, find, read


def basic(text: str) -> dict[str, str]:
    return {"auth": b64encode(text.encode()).decode()}


ME = basic("me:hunter2")
MINE = Credential("me", "hunter2")


def inline(entry: object) -> Credential | None:
    return find({"auths": {"ghcr.io": entry}}, ["ghcr.io"]).credential


@pytest.mark.parametrize(
    ("entry", "credential"),
    [
        (ME, MINE),
        ({"username": "me", "password": "hunter2"}, MINE),
        ({"username": "old", "password": "old", **ME}, MINE),
        (basic("me:with:colons"), Credential("me", "with:colons")),
        (basic("me:hunter2\0\0"), MINE),
        ({**basic("me:"), "identitytoken": "token"}, Credential("me", "token", True)),
        ({"identitytoken": "token"}, Credential("<token>", "token", True)),
        ({}, None),
        ({"auth": ""}, None),
        (basic("me:"), None),
        (None, None),
        ("text", None),
        ({"email": "me@example.com"}, None),
    ],
)
def test_an_entry_of_auths_is_a_login(entry: object, credential: Credential | None) -> None:
    assert inline(entry) == credential


@pytest.mark.parametrize(
    "entry", [{"auth": "%%%"}, {"auth": 7}, basic("no colon"), {"username": 1, "password": 2}, {"identitytoken": [1]}]
)
def test_an_entry_that_is_no_login_is_complained_of_without_repeating_it(entry: dict[str, Any]) -> None:
    with pytest.raises(CredentialError, match="auths") as caught:
        inline(entry)
    assert all(str(value) not in str(caught.value) for value in entry.values() if len(str(value)) > 2)


@pytest.mark.parametrize("name", ["docker.io", "index.docker.io", "registry-1.docker.io"])
@pytest.mark.parametrize(
    "key", [HUB, "https://index.docker.io/v1", "docker.io", "index.docker.io", "https://registry-1.docker.io/v2/"]
)
def test_docker_hub_has_many_names(name: str, key: str) -> None:
    assert find({"auths": {key: ME}}, [name]).credential == MINE
    assert find({"credHelpers": {key: "pass"}}, [name]).helper == Helper("pass", (HUB,))


@pytest.mark.parametrize(
    "key",
    ["r.example:5000", "https://r.example:5000", "http://r.example:5000/", "https://r.example:5000/v1/",
     "https://r.example:5000/v2/", "r.example:5000/v2"],
)  # fmt: skip
def test_a_registry_may_be_written_as_a_url(key: str) -> None:
    assert find({"auths": {key: ME}}, ["r.example:5000"]).credential == MINE


@pytest.mark.parametrize("key", ["r.example", "r.example:50000", "x.r.example:5000", "https://r.example:5000/team", ""])
def test_what_only_looks_like_it_is_another_registry(key: str) -> None:
    assert find({"auths": {key: ME}}, ["r.example:5000"]) == Login(None, None)


def test_the_plain_name_goes_before_a_url() -> None:
    other = basic("other:other")
    for auths in ({"ghcr.io": ME, "https://ghcr.io/v2/": other}, {"https://ghcr.io/v2/": other, "ghcr.io": ME}):
        assert find({"auths": auths}, ["ghcr.io"]).credential == MINE


def test_the_first_name_that_has_a_login_counts() -> None:
    config = {"auths": {"real.example": ME, "name.example": basic("other:other")}}
    assert find(config, ["name.example", "real.example"]).credential == Credential("other", "other")
    assert find(config, ["real.example", "name.example"]).credential == MINE
    assert find(config, ["third.example", "real.example"]).credential == MINE


def test_the_helper_of_a_registry_goes_before_the_general_one() -> None:
    config = {"credHelpers": {"a.example": "ecr-login"}, "credsStore": "pass", "auths": {"a.example": ME}}
    assert find(config, ["a.example"]) == Login(Helper("ecr-login", ("a.example",)), None)
    assert find(config, ["b.example"]) == Login(Helper("pass", ("b.example",)), None)


def test_the_general_helper_is_asked_for_every_name_before_the_file_counts() -> None:
    config = {"credsStore": "pass", "auths": {"real.example": ME}}
    assert find(config, ["name.example", "real.example"]) == Login(
        Helper("pass", ("name.example", "real.example")), MINE
    )


@pytest.mark.parametrize("name", ["../../bin/sh", "a b", "a/b", "A", "x" * 65, "a\n", 7, ["pass"], None])
def test_an_impossible_helper_is_refused(name: object) -> None:
    with pytest.raises(CredentialError, match="impossible helper"):
        find({"credHelpers": {"a.example": name or ""}}, ["a.example"])


@pytest.mark.parametrize("key", ["auths", "credHelpers"])
def test_a_table_that_is_none_is_complained_of(key: str) -> None:
    with pytest.raises(CredentialError, match=f"{key} must be an object"):
        find({key: ["a"]}, ["a.example"])


@pytest.mark.parametrize(("text", "complaint"), [("{", "no JSON"), ("[]", "JSON object"), ("[" * 100_000, "no JSON")])
def test_a_file_that_is_no_configuration_is_complained_of(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(CredentialError, match=complaint):
        read(file)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["auth", "username", "password", "identitytoken", "a.example", HUB]) | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["auths", "credHelpers", "credsStore"]), _JSON))
def test_whatever_it_holds_is_a_login_or_a_sentence(config: dict[str, Any]) -> None:
    with contextlib.suppress(CredentialError):
        login = find(json.loads(json.dumps(config)), ["a.example", "docker.io"])
        assert login.credential is None or (login.credential.username and login.credential.secret)
