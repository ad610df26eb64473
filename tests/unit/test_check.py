"""`entrepot check`: what it says, and that it says it in any width."""

import io
import json
import os
from pathlib import Path

import pytest
import trustme
from rich.console import Console

from proxy import check
from proxy.config import load

OWN = '[[upstream]]\nregistry = "own.example"\nurl = "https://registry.own.example"\n'


def said(tmp_path: Path, text: str = "", width: int = 80, environ: dict[str, str] | None = None) -> tuple[bool, str]:
    """Whether `serve` would start, and all that is printed."""
    path = tmp_path / "proxy.toml"
    path.write_text(text)
    config = load(path, {"ENTREPOT_STORE_PATH": str(tmp_path / "cache"), **(environ or {})})
    stream = io.StringIO()
    good = check.report(config, Console(file=stream, width=width, highlight=False))
    return good, stream.getvalue()


def test_the_defaults_would_start_and_nothing_is_created(tmp_path: Path) -> None:
    good, text = said(tmp_path)
    assert good
    assert text.endswith("would start\n")
    assert f"cache in {tmp_path}/cache" in text
    assert "At most 100.0 GiB" in text
    assert "clients at http://127.0.0.1:5000" in text
    assert "http://127.0.0.1:5001/metrics" in text
    assert "docker.io from https://registry-1.docker.io, the default" in text
    assert sorted(os.listdir(tmp_path)) == ["proxy.toml"]


def test_who_is_sent_to_the_bucket_is_said(tmp_path: Path) -> None:
    bucket = '[store.s3]\nbucket = "images"\nregion = "eu-central-1"\n'
    assert "sent to" not in said(tmp_path, bucket)[1]
    _, text = said(tmp_path, f'{bucket}redirect_networks = ["10.0.0.0/8", "::1"]\nredirect_for = "5m"', width=200)
    sentence = "Clients from 10.0.0.0/8, ::1/128 are sent to Amazon S3 in eu-central-1 for blobs"
    assert f"{sentence}, with a URL that is good for 300 s." in text


def test_what_goes_from_the_bucket_is_said(tmp_path: Path) -> None:
    bucket = '[store.s3]\nbucket = "images"\n'
    assert "used" not in said(tmp_path, bucket)[1]
    _, text = said(tmp_path, f'{bucket}keep_unused = "90d"\nmax_size = "2 TB"', width=200)
    assert "What no replica used for 90 days goes from there." in text
    assert "At most 2.0 TB of blobs are kept there: what was used longest ago goes." in text


def test_which_repositories_have_which_lifecycle_policy_is_said_rule_by_rule(tmp_path: Path) -> None:
    counts: list[dict[str, object]] = [
        {"tagStatus": "tagged", "tagPatternList": ["v*", "*-arm"], "countType": "imageCountMoreThan"},
        {"tagStatus": "untagged", "countType": "sinceImageCached", "countUnit": "hours"},
        {"tagStatus": "any", "countType": "sinceImagePulled", "countUnit": "days"},
    ]
    rules = [
        {"rulePriority": place, "selection": {**count, "countNumber": 1000 // place}, "action": {"type": "expire"}}
        for place, count in enumerate(counts, 1)
    ]
    policy = json.dumps({"rules": rules})
    entry = f"[[lifecycle]]\nrepositories = ['own.example/*', '*/app']\npolicy = '{policy}'"
    good, text = said(tmp_path, f"{OWN}{entry}")
    assert good
    assert (
        "lifecycle[0] for own.example/*, */app\n"
        "  Rule 1: images with tags like v* and *-arm go, but the newest 1,000.\n"
        "  Rule 2: images without a tag go, once cached for more than 500 hours.\n"
        "  Rule 3: images go, once not pulled for more than 333 days.\n"
    ) in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_upstream_is_told_in_full_whatever_the_width(tmp_path: Path, width: int) -> None:
    _, text = said(tmp_path, width=width)
    words = set(text.split())
    for upstream in load(None, {}).upstream:
        assert {upstream.registry, f"/v2/{upstream.registry}/IMAGE"} <= words
        assert upstream.url in words | {word.rstrip(",") for word in words}
    assert "…" not in text
    sentences = [line for line in text.splitlines() if line.startswith("  ")]
    assert all(len(line) <= width for line in sentences if len(line.split()) > 1)


def test_what_is_special_about_an_upstream_is_said(tmp_path: Path) -> None:
    text = OWN.replace("https", "http") + "\n".join(
        [
            'aliases = ["old.example"]',
            'hosts = ["cache.example"]',
            'username = "someone"',
            'password_env = "OWN_TOKEN"',
            'tag_ttl = "5m"',
            'realm_hosts = ["auth.example"]',
            'private_networks = ["10.0.0.0/8"]',
        ]
    )
    good, output = said(tmp_path, text, width=200, environ={"OWN_TOKEN": "hunter2"})
    assert good
    for sentence in (
        "own.example from http://registry.own.example, the default",
        "Clients ask for /v2/own.example/IMAGE or ?ns=own.example, or at the host name cache.example.",
        "It is also called old.example.",
        "Pulled as someone with the password from $OWN_TOKEN.",
        "Whoever reaches this cache can pull what these accounts may read.",
        "Tokens may come from registry.own.example or auth.example.",
        "Upstream is asked again for a tag after 300 s.",
        "Redirects and tokens may lead to 10.0.0.0/8.",
        "No TLS",
    ):
        assert sentence in output
    assert "hunter2" not in output


def test_without_a_default_it_says_what_becomes_of_bare_names(tmp_path: Path) -> None:
    _, text = said(tmp_path, OWN + OWN.replace("own", "other"))
    assert "A name without a registry is refused" in text
    assert ", the default" not in text


def test_no_limit_is_said_to_end_with_the_disk(tmp_path: Path) -> None:
    _, text = said(tmp_path, "[store]\nmax_size = 0")
    assert "At most what the disk has" in text
    assert "passed through" in text


def test_brackets_in_a_path_are_no_markup(tmp_path: Path) -> None:
    _, text = said(tmp_path, environ={"ENTREPOT_STORE_PATH": f"{tmp_path}/[red]x[/]"}, width=300)
    assert f"cache in {tmp_path}/[red]x[/]\n" in text


@pytest.mark.parametrize(
    ("below", "what"), [("file/cache", "is no directory"), ("file", "is no directory"), ("open", "everybody")]
)
def test_a_store_that_serve_would_refuse_would_not_start(tmp_path: Path, below: str, what: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    good, text = said(tmp_path, environ={"ENTREPOT_STORE_PATH": str(tmp_path / below)}, width=300)
    assert not good
    assert text.endswith("would not start\n")
    assert "entrepot: store.path: " in text
    assert what in text


def test_a_certificate_that_does_not_fit_its_key_would_not_start(tmp_path: Path) -> None:
    authority = trustme.CA()
    pair, other = authority.issue_cert("127.0.0.1"), authority.issue_cert("127.0.0.1")
    pair.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    other.private_key_pem.write_to_path(tmp_path / "tls.key")
    text = f'[server]\ntls_certificate = "{tmp_path}/tls.crt"\ntls_key = "{tmp_path}/tls.key"\n'
    good, output = said(tmp_path, text, width=300)
    assert not good
    assert "entrepot: server.tls_certificate, server.tls_key: cannot be used together" in output
    pair.private_key_pem.write_to_path(tmp_path / "tls.key")
    good, output = said(tmp_path, text, width=300)
    assert good
    assert "clients at https://127.0.0.1:5000" in output


def test_what_is_brought_in_by_itself_is_said(tmp_path: Path) -> None:
    text = '[[warm]]\nimages = ["nginx", "redis"]\nfile = "/etc/images"\nplatforms = ["all"]\nevery = "6h"\nkeep = "7d"'
    good, told = said(tmp_path, text)
    assert good
    assert "brought in every 6 h\n  nginx, redis, what /etc/images lists, for all.\n  Pinned for 7 d each time." in told


def test_what_is_asked_nothing_is_said(tmp_path: Path) -> None:
    table = '[[upstream]]\nregistry = "ghcr.io"\n'
    assert "is asked nothing" in said(tmp_path, f"{table}sealed = true")[1]
    assert "asked again for a tag" not in said(tmp_path, f"{table}sealed = true")[1]
    assert "the tags of library/* stay" in said(tmp_path, f'{table}freeze = ["library/*"]')[1]
