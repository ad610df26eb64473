"""The proxy of an upstream, and what the environment says of it."""

from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import SecretStr
from yarl import URL

from proxy.config import ConfigError, load
from proxy.proxies import Proxies, Proxy, everywhere, from_environment

HTTPS = URL("https://registry.example/v2/")
HTTP = URL("http://registry.example/v2/")
SECRET = "hunter2-do-not-tell"


def place(proxies: Proxies, url: URL) -> str | None:
    """Where a request to this URL goes."""
    proxy = proxies.through(url)
    return None if proxy is None else proxy.place


@pytest.mark.parametrize(
    ("environ", "https", "http"),
    [
        ({}, None, None),
        ({"HTTPS_PROXY": "http://p:3128"}, "p:3128", None),
        ({"https_proxy": "http://p:3128"}, "p:3128", None),
        ({"HTTP_PROXY": "http://p:3128"}, None, "p:3128"),
        ({"http_proxy": "http://p:3128"}, None, "p:3128"),
        ({"ALL_PROXY": "http://p:3128"}, "p:3128", "p:3128"),
        ({"ALL_PROXY": "http://all:1", "HTTPS_PROXY": "http://p:3128"}, "p:3128", "all:1"),
        ({"https_proxy": "http://lower:1", "HTTPS_PROXY": "http://upper:1"}, "lower:1", None),
        ({"https_proxy": "", "HTTPS_PROXY": "http://upper:1"}, "upper:1", None),
        ({"HTTPS_PROXY": "  "}, None, None),
        ({"HTTPS_PROXY": "p:3128"}, "p:3128", None),
        ({"HTTPS_PROXY": "10.0.0.1:3128"}, "10.0.0.1:3128", None),
        ({"HTTPS_PROXY": "http://[fd00::1]:3128/"}, "[fd00::1]:3128", None),
        ({"HTTPS_PROXY": "https://p"}, "p:443", None),
        ({"HTTPS_PROXY": "http://p"}, "p:80", None),
        # httpoxy: what a CGI script's client can set
        ({"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, None, None),
        ({"http_proxy": "http://p:1", "REQUEST_METHOD": "GET"}, None, "p:1"),
        ({"HTTPS_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, "p:1", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "example"}, None, None),
        ({"HTTPS_PROXY": "http://p:1", "no_proxy": "registry.example:443"}, None, None),
        ({"HTTPS_PROXY": "http://p:1", "no_proxy": "registry.example:5000"}, "p:1", None),
        ({"HTTPS_PROXY": "http://p:1", "no_proxy": "other", "NO_PROXY": "*"}, "p:1", None),
    ],
)
def test_the_environment_is_read_as_others_read_it(
    environ: Mapping[str, str], https: str | None, http: str | None
) -> None:
    proxies = from_environment(environ)
    assert (place(proxies, HTTPS), place(proxies, HTTP)) == (https, http)


def test_a_user_in_the_environments_url_becomes_a_header_and_is_told_nowhere() -> None:
    proxy = from_environment({"HTTPS_PROXY": f"http://us%40er:{SECRET}%3A%C3%A9@p:3128"}).https
    assert proxy is not None
    assert proxy.authorization is not None
    expected = b64encode(f"us@er:{SECRET}:\xe9".encode()).decode()
    assert proxy.authorization.get_secret_value() == f"Basic {expected}"
    for text in (repr(proxy), str(proxy), proxy.place, str(proxy.url)):
        assert SECRET not in text
        assert expected not in text
    only = from_environment({"HTTPS_PROXY": "http://user@p:3128"}).https
    assert only is not None
    assert only.authorization == SecretStr(f"Basic {b64encode(b'user:').decode()}")


@pytest.mark.parametrize(
    "value", [f"socks5://me:{SECRET}@p:1", f"http://{SECRET}:x", f"http://p:1/{SECRET}", "http://", "://", "http://p:0"]
)
def test_a_variable_that_cannot_be_used_is_named_and_not_repeated(value: str) -> None:
    with pytest.raises(ValueError, match=r"^ALL_PROXY: must look like") as caught:
        from_environment({"ALL_PROXY": value})
    assert SECRET not in str(caught.value)


def test_one_that_is_written_goes_for_everything_this_machine_included() -> None:
    proxies = everywhere("http://p:3128", "gate", SecretStr("opens"))
    for url in (HTTPS, HTTP, URL("http://127.0.0.1:5000"), URL("https://localhost")):
        assert place(proxies, url) == "p:3128"
    assert proxies.http == Proxy(URL("http://p:3128"), SecretStr(f"Basic {b64encode(b'gate:opens').decode()}"))
    assert not proxies.any_by_tls
    assert everywhere("https://p:3128", None, None).any_by_tls
    assert everywhere("https://p:3128", None, None).https == Proxy(URL("https://p:3128"))


ONE = '[[upstream]]\nregistry = "ghcr.io"\n'


def configured(tmp_path: Path, text: str, environ: Mapping[str, str]) -> Proxies:
    """What the first upstream goes through."""
    (tmp_path / "proxy.toml").write_text(text)
    config = load(tmp_path / "proxy.toml", environ)
    assert SECRET not in repr(config)
    assert SECRET not in config.model_dump_json()
    return config.upstream[0].proxies


@pytest.mark.parametrize(
    ("key", "expected"), [("", "env:1"), ('proxy = "none"', None), ('proxy = "http://written:1"', "written:1")]
)
def test_what_is_written_wins_over_the_environment(tmp_path: Path, key: str, expected: str | None) -> None:
    environ = {"HTTPS_PROXY": f"http://me:{SECRET}@env:1"}
    assert place(configured(tmp_path, ONE + key, environ), HTTPS) == expected


def test_a_variable_that_nobody_uses_may_be_wrong(tmp_path: Path) -> None:
    environ = {"ALL_PROXY": f"socks5://{SECRET}:1"}
    assert place(configured(tmp_path, ONE + 'proxy = "none"', environ), HTTPS) is None
    with pytest.raises(ConfigError, match=r"^ALL_PROXY: ") as caught:
        configured(tmp_path, ONE, environ)
    assert SECRET not in str(caught.value)


def test_the_environments_proxy_is_no_key_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="environment_proxies"):
        configured(tmp_path, ONE + 'environment_proxies = "http://p:1"', {})
