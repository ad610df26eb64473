"""proxy.toml and the environment: what each key may be, and what is said of one that is wrong."""

import contextlib
import ipaddress
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from yarl import URL

from proxy.config import Config, ConfigError, load
from proxy.registries import PUBLIC, ecr_region
from proxy.sections.account import Account
from proxy.sections.images import Lifecycle, Warm
from proxy.sections.server import Server
from proxy.sections.store import S3, StorageClass, Store
from proxy.sections.upstream import Upstream
from proxy.values import Listen

SECRET = "hunter2-do-not-tell"
ONE = '[[upstream]]\nregistry = "ghcr.io"\n'
WARM = '[[warm]]\nimages = ["nginx"]\n'
OWN = '[[upstream]]\nregistry = "own.example"\nurl = "https://own.example"\n'
EVERY_KEY = """
[server]
listen = "0.0.0.0:8443"
workers = 4
lb_delay = "1s"
advertise = "http://cache.example:8080/"
drain_timeout = "2m30s"
client_stall_timeout = "1m"
sealed = false
tls_certificate = "/tls/tls.crt"
tls_key = "/tls/tls.key"

[admin]
listen = "[::1]:9000"
token_env = "ADMIN_TOKEN"

[store]
path = "/data"
max_size = "1.5 TiB"
min_free = "10 GB"
keep_deleted = false
scrub_rate = "1 MiB"
scrub_interval = "7d"
verify_on_read = true
lifecycle_interval = "10m"

[log]
format = "console"
level = "debug"

[[upstream]]
registry = "Own.Example:5000"
url = "https://registry.own.example/prefix/"
aliases = ["old.example"]
hosts = ["cache.example"]
default = true
username = "someone"
password_env = "OWN_TOKEN"
tag_ttl = "500ms"
realm_hosts = ["auth.example"]
private_networks = ["10.0.0.0/8", "fd00::/8", "192.0.2.7"]
stall_timeout = "1h"
longest_tag_ttl = "2h"
rate_reserve = 0.25
proxy = "http://proxy.example:3128"
proxy_username = "gate"
proxy_password_env = "GATE"
ca_file = "/tls/ca.pem"
client_certificate = "/tls/client.crt"
client_key = "/tls/client.key"
insecure = true
connections_per_blob = 8
max_requests = 16
freeze = ["library/*"]
as_of = "2026-11-01"
prefetch = ["library/*", "acme/app"]

[[warm]]
images = ["library/app:v1"]
file = "/etc/entrepot/images.txt"
platforms = ["linux/arm/v7", "all"]
every = "6h"
keep = "7d"
"""
ACCOUNTS = """
[[upstream]]
registry = "docker.io"
[[upstream.account]]
name = "farm"
username = "one"
password_env = "OWN_TOKEN"
repositories = ["acme/*"]
[[upstream.account]]
docker_config = "/docker/config.json"
[[upstream.account]]
provider = "ecr"
region = "eu-west-1"
profile = "build"
role_arn = "arn:aws:iam::123456789012:role/pull"
endpoint_url = "http://127.0.0.1:9000"
[[upstream.account]]
provider = "google"
key_file = "/google/key.json"
[[upstream.account]]
provider = "acr"
tenant = "example"
[[upstream.account]]
anonymous = true
"""
LIFECYCLE = """
[[upstream]]
registry = "own.example:5000"
url = "https://own.example:5000"
[[upstream]]
registry = "docker.io"
[[lifecycle]]
repositories = ["own.example:5000/*", "docker.io/library/*", "*/app", "*"]
policy = '''POLICY'''
[[lifecycle]]
repositories = ["docker.io/acme/*"]
policy_file = "FILE"
"""
POLICY = """{"rules": [{
  "rulePriority": 3, "selection": {
    "tagStatus": "any", "countType": "sinceImagePulled", "countUnit": "days", "countNumber": 30
  }, "action": {"type": "expire"}
}]}"""


SECRETS = {"OWN_TOKEN": SECRET, "GATE": "opens", "ADMIN_TOKEN": "desk"}


def loaded(tmp_path: Path, text: str, environ: Mapping[str, str] | None = None) -> Config:
    """The configuration that this text makes."""
    path = tmp_path / "proxy.toml"
    path.write_text(text)
    return load(path, environ or {})


def problems(tmp_path: Path, text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    """What is said of this text, which must be refused."""
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path, text, environ)
    return list(refused.value.problems)


def test_without_a_file_the_nine_public_registries_are_known() -> None:
    config = load(None, {})
    assert [upstream.registry for upstream in config.upstream] == [
        "docker.io",
        "ghcr.io",
        "quay.io",
        "gcr.io",
        "registry.k8s.io",
        "mcr.microsoft.com",
        "public.ecr.aws",
        "registry.gitlab.com",
        "nvcr.io",
    ]
    assert config.default_upstream is not None
    assert config.default_upstream.registry == "docker.io"
    assert all(upstream.password is None and upstream.private_networks == () for upstream in config.upstream)


def test_the_defaults_are_what_the_design_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = load(None, {})
    assert config.server == Server(listen=Listen(host="127.0.0.1", port=5000), workers=1, drain_timeout=300)
    assert str(config.admin.listen) == "127.0.0.1:5001"
    assert config.store == Store(path=tmp_path / "entrepot", max_size=100 * 1024**3)
    assert (config.log.format, config.log.level) == ("auto", "info")
    assert (config.upstream[0].tag_ttl, config.upstream[0].stall_timeout) == (60, 60)


def test_every_key_can_be_set(tmp_path: Path) -> None:
    config = loaded(tmp_path, EVERY_KEY, SECRETS)
    server, (upstream,) = config.server, config.upstream
    assert (str(server.listen), server.workers, server.lb_delay) == ("0.0.0.0:8443", 4, 1)
    assert server.advertise == "http://cache.example:8080"
    assert (server.drain_timeout, server.client_stall_timeout) == (150, 60)
    assert (server.tls_certificate, server.tls_key) == (Path("/tls/tls.crt"), Path("/tls/tls.key"))
    assert str(config.admin.listen) == "[::1]:9000"
    assert config.admin.token is not None
    assert config.admin.token.get_secret_value() == "desk"
    assert config.store == Store(
        path=Path("/data"), max_size=3 * 1024**4 // 2, min_free=10**10, keep_deleted=False, scrub_rate=1024**2,
        scrub_interval=7 * 86400.0, verify_on_read=True, lifecycle_interval=600,
    )  # fmt: skip
    assert (config.log.format, config.log.level) == ("console", "debug")
    assert upstream.names == ("own.example:5000", "old.example")
    assert upstream.base == URL("https://registry.own.example/prefix")
    assert (upstream.hosts, upstream.realm_hosts, upstream.default) == (("cache.example",), ("auth.example",), True)
    assert (upstream.tag_ttl, upstream.stall_timeout) == (0.5, 3600)
    assert upstream.private_networks == tuple(
        map(ipaddress.ip_network, ("10.0.0.0/8", "fd00::/8", "192.0.2.7/32")),
    )
    assert upstream.username == "someone"
    assert upstream.password is not None
    assert upstream.password.get_secret_value() == SECRET
    assert (upstream.longest_tag_ttl, upstream.rate_reserve) == (7200, 0.25)
    assert (upstream.proxy, upstream.proxy_username) == ("http://proxy.example:3128", "gate")
    assert upstream.proxy_password is not None
    assert upstream.proxy_password.get_secret_value() == "opens"
    assert (upstream.ca_file, upstream.insecure) == (Path("/tls/ca.pem"), True)
    assert (upstream.client_certificate, upstream.client_key) == (Path("/tls/client.crt"), Path("/tls/client.key"))
    assert upstream.connections_per_blob == 8
    assert upstream.max_requests == 16
    assert (upstream.freeze, upstream.as_of) == (("library/*",), 1793491200.0)
    assert upstream.prefetch == ("library/*", "acme/app")


def test_every_key_of_a_wish_can_be_set(tmp_path: Path) -> None:
    (warm,) = loaded(tmp_path, EVERY_KEY, SECRETS).warm
    assert (warm.images, warm.file) == (("library/app:v1",), Path("/etc/entrepot/images.txt"))
    assert (warm.platforms, warm.every, warm.keep) == (("linux/arm/v7", "all"), 21600, 604800)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('"2026-11-01"', 1793491200.0),
        ("2026-11-01", 1793491200.0),
        ("2026-11-01T12:00:00Z", 1793534400.0),
        ('"2026-11-01T13:00:00+01:00"', 1793534400.0),
        ("1793491200.0", 1793491200.0),
    ],
)
def test_a_time_is_written_as_toml_or_people_do(tmp_path: Path, written: str, meant: float) -> None:
    assert loaded(tmp_path, f"{ONE}as_of = {written}").upstream[0].as_of == meant


def test_a_sealed_server_has_sealed_upstreams_only(tmp_path: Path) -> None:
    assert [one.sealed for one in loaded(tmp_path, f"[server]\nsealed = true\n{ONE}").upstream] == [True]
    assert [one.sealed for one in loaded(tmp_path, f"{ONE}sealed = true").upstream] == [True]
    assert [one.sealed for one in loaded(tmp_path, ONE).upstream] == [False]


def test_accounts_keep_their_order_and_have_a_name_each(tmp_path: Path) -> None:
    (upstream,) = loaded(tmp_path, ACCOUNTS, {"OWN_TOKEN": SECRET}).upstream
    labels = [account.label for account in upstream.accounts]
    assert labels == ["farm", "docker_config", "ecr", "google", "acr", "anonymous"]
    farm, docker, ecr, google, acr, _ = upstream.accounts
    assert farm.password is not None
    assert farm.password.get_secret_value() == SECRET
    assert farm.repositories == ("acme/*",)
    assert docker.docker_config == Path("/docker/config.json")
    assert (ecr.region, ecr.profile, ecr.endpoint_url) == ("eu-west-1", "build", "http://127.0.0.1:9000")
    assert ecr.role_arn == "arn:aws:iam::123456789012:role/pull"
    assert (google.key_file, acr.tenant) == (Path("/google/key.json"), "example")
    assert SECRET not in repr(upstream)


def test_a_username_is_an_account_in_short(tmp_path: Path) -> None:
    (upstream,) = loaded(tmp_path, EVERY_KEY, SECRETS).upstream
    (account,) = upstream.accounts
    assert (account.label, account.username, account.password) == ("someone", "someone", upstream.password)


def test_without_an_account_an_upstream_is_asked_anonymously(tmp_path: Path) -> None:
    (upstream,) = loaded(tmp_path, ONE).upstream
    assert [account.anonymous for account in upstream.accounts] == [True]


@pytest.mark.parametrize(
    ("registry", "region"),
    [
        ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", "eu-west-1"),
        ("123456789012.dkr.ecr-fips.us-east-1.amazonaws.com", "us-east-1"),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("123456789012.dkr-ecr.eu-central-1.on.aws", "eu-central-1"),
    ],
)
def test_a_private_ecr_registry_is_known_by_its_name(tmp_path: Path, registry: str, region: str) -> None:
    (upstream,) = loaded(tmp_path, f'[[upstream]]\nregistry = "{registry}"').upstream
    assert (upstream.url, upstream.accounts[0].provider) == (f"https://{registry}", "ecr")
    assert ecr_region(registry) == region


@pytest.mark.parametrize("registry", ["acme.azurecr.io", "europe-docker.pkg.dev", "eu.gcr.io"])
def test_the_clouds_registries_are_where_their_name_says(tmp_path: Path, registry: str) -> None:
    (upstream,) = loaded(tmp_path, f'[[upstream]]\nregistry = "{registry}"').upstream
    assert (upstream.url, upstream.accounts[0].label) == (f"https://{registry}", "anonymous")


@pytest.mark.parametrize("registry", ["dkr.ecr.eu-west-1.amazonaws.com", "1.dkr.ecr.x.amazonaws.com.evil.example"])
def test_a_name_that_only_looks_like_ecr_is_not_known(tmp_path: Path, registry: str) -> None:
    (problem,) = problems(tmp_path, f'[[upstream]]\nregistry = "{registry}"')
    assert problem == "upstream[0].url: is required"
    assert ecr_region(registry) is None


TABLES = {"upstream", "lifecycle", "warm"}


def test_every_key_that_exists_is_in_the_test_above() -> None:
    sections = {name: field.annotation for name, field in Config.model_fields.items() if name not in TABLES}
    keys: set[str] = set()
    for model in (*sections.values(), Upstream, Account, Lifecycle, Warm, S3, StorageClass):
        keys |= {key for key, field in model.model_fields.items() if not field.exclude}  # type: ignore[union-attr]
    unset = {key for key in keys if f"{key} = " not in EVERY_KEY + ACCOUNTS + LIFECYCLE + BUCKET}
    assert unset == {"password_file", "proxy_password_file", "token_file", "account", "s3"}, "new keys want a test"


BUCKET = """
[store.s3]
bucket = "images"
prefix = "entrepot"
endpoint_url = "https://ceph.example.com"
region = "eu-central-1"
profile = "cache"
addressing = "path"
ca_file = "/etc/ca.crt"
expected_bucket_owner = "123456789012"
encryption = "aws:kms"
kms_key_id = "alias/cache"
storage_class = [{ name = "STANDARD" }, { name = "STANDARD_IA", min_size = "1 MiB" }]
checksums = "when_supported"
redirect_networks = ["10.0.0.0/8", "2001:db8::/32"]
redirect_for = "5m"
redirect_endpoint_url = "https://s3.example.com"
keep_unused = "90d"
max_size = "2 TB"
"""


def test_a_bucket_can_be_told_everything(tmp_path: Path) -> None:
    s3 = loaded(tmp_path, BUCKET).store.s3
    assert s3 is not None
    assert s3.prefix == "entrepot/"
    assert s3.model_dump(exclude={"storage_class", "ca_file", "prefix", "redirect_networks"}) == {
        "bucket": "images", "endpoint_url": "https://ceph.example.com", "region": "eu-central-1", "profile": "cache",
        "addressing": "path", "expected_bucket_owner": "123456789012", "encryption": "aws:kms",
        "kms_key_id": "alias/cache", "checksums": "when_supported", "redirect_for": 300.0,
        "redirect_endpoint_url": "https://s3.example.com", "keep_unused": 90 * 86400.0, "max_size": 2 * 10**12,
    }  # fmt: skip
    assert [str(network) for network in s3.redirect_networks] == ["10.0.0.0/8", "2001:db8::/32"]
    assert [(rule.name, rule.min_size) for rule in s3.storage_class] == [("STANDARD_IA", 2**20), ("STANDARD", 0)]
    assert loaded(tmp_path, "").store.s3 is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('bucket = "s3://images"', "store.s3.bucket: 's3://images' is no name of a bucket"),
        ('prefix = "/a"', "store.s3.prefix: '/a' is no prefix of keys"),
        ('prefix = "a/../b"', "store.s3.prefix: 'a/../b' is no prefix of keys"),
        ('endpoint_url = "ceph:7480"', "endpoint_url must look like"),
        ('endpoint_url = "https://a:b@ceph"', "endpoint_url holds a user or a password"),
        ('expected_bucket_owner = "1234"', "store.s3.expected_bucket_owner: '1234' is no AWS account"),
        ('encryption = "AES256"', 'kms_key_id goes with encryption = "aws:kms"'),
        ('encryption = "rot13"', "store.s3.encryption: must be 'AES256', 'aws:kms' or 'aws:kms:dsse'"),
        ('storage_class = [{ name = "GLACIER" }]', "gives nothing back for hours"),
        ('storage_class = [{ name = "cheap" }]', "store.s3.storage_class[0].name: 'cheap' is no class of storage"),
        ('secret_key = "x"', "store.s3.secret_key: no such key"),
        ('buckets = "x"', "store.s3.buckets: no such key; did you mean 'bucket'?"),
        ('storage_class = [{ title = "STANDARD" }]', "store.s3.storage_class[0].name: is required"),
        ('redirect_networks = ["10.0.0.1/8"]', "store.s3.redirect_networks[0]: 10.0.0.1/8 has host bits set"),
        ('redirect_networks = "10.0.0.0/8"', "store.s3.redirect_networks: must be a list"),
        ('keep_unused = "1d"', "store.s3.keep_unused: must be greater than or equal to 172800"),
        ("redirect_networks = []", "redirect_endpoint_url goes with redirect_networks"),
        ('redirect_for = "500ms"', "store.s3.redirect_for: must be greater than or equal to 1"),
        ('redirect_for = "2h"', "store.s3.redirect_for: must be less than or equal to 3600"),
        ('redirect_endpoint_url = "s3.example.com"', "redirect_endpoint_url must look like"),
    ],
)
def test_a_bucket_that_cannot_be_is_refused_with_the_key(tmp_path: Path, line: str, message: str) -> None:
    key = line.partition(" ")[0]
    text = "\n".join(other for other in BUCKET.splitlines() if other.partition(" ")[0] != key)
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, f"{text}\n{line}\n")
    assert message in str(error.value)


def lifecycle(tmp_path: Path, policy: str = POLICY, in_file: str = POLICY) -> str:
    """A configuration with two lifecycle policies, one of them in a file."""
    file = tmp_path / "policy.json"
    file.write_text(in_file)
    return LIFECYCLE.replace("POLICY", policy).replace("FILE", str(file))


def test_lifecycle_policies_are_read_from_the_file_or_one_of_their_own(tmp_path: Path) -> None:
    config = loaded(tmp_path, lifecycle(tmp_path, in_file=POLICY.replace("30", "7")))
    assert config.store.lifecycle_interval == 3600
    assert [entry.repositories[0] for entry in config.lifecycle] == ["own.example:5000/*", "docker.io/acme/*"]
    assert [entry.policy and entry.policy.rules[0].number for entry in config.lifecycle] == [30, 7]
    assert "number=7" in repr(loaded(tmp_path, lifecycle(tmp_path, in_file=POLICY.replace("30", "7"))))


def test_a_policy_that_is_none_is_named_with_the_place_in_it(tmp_path: Path) -> None:
    wrong = POLICY.replace("30", "0")
    said = "rules[0].selection.countNumber: must be a whole number from 1 to 999,999,999 (it is 0)"
    assert problems(tmp_path, lifecycle(tmp_path, wrong)) == [f"lifecycle[0].policy: {said}"]
    assert problems(tmp_path, lifecycle(tmp_path, in_file=wrong)) == [
        f"lifecycle[1].policy_file: {tmp_path}/policy.json: {said}"
    ]
    gone = lifecycle(tmp_path).replace("policy.json", "none.json")
    assert problems(tmp_path, gone) == [
        f"lifecycle[1].policy_file: {tmp_path}/none.json cannot be read (No such file or directory)"
    ]
    (tmp_path / "none.json").write_bytes(b"\xff")
    assert problems(tmp_path, gone) == [
        f"lifecycle[1].policy_file: {tmp_path}/none.json is no text: write the policy's JSON"
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('lifecycle = "x"', "lifecycle: must be a list of tables: write [[lifecycle]], with two brackets"),
        ("[lifecycle]\na = 1", "lifecycle: must be a list of tables: write [[lifecycle]], with two brackets"),
        ("[[lifecycle]]\npolicy_file = 'x'", "lifecycle[0].repositories: is required"),
        (
            "[[lifecycle]]\nrepositories = []\npolicy_file = 'x'",
            'lifecycle[0].repositories: must be a list of repositories such as ["docker.io/library/*"]',
        ),
        (
            "[[lifecycle]]\nrepositories = ['docker.io/A?']\npolicy_file = 'x'",
            "lifecycle[0].repositories: 'docker.io/A?' is no pattern of repositories: write \"docker.io/library/*\"",
        ),
        (
            "[[lifecycle]]\nrepositories = ['*', 'library/*']\npolicy_file = 'x'",
            "lifecycle[0].repositories[1]: 'library/*' is of no upstream: write one in front, as in docker.io/*",
        ),
        (
            "[[lifecycle]]\nrepositories = ['*']",
            "lifecycle[0]: needs one of policy, which is JSON, and policy_file",
        ),
        (
            "[[lifecycle]]\nrepositories = ['*']\npolicy_file = 'x'\npolicy = 3",
            "lifecycle[0].policy: must be text: the JSON of a policy, in quotes",
        ),
        (
            "[[lifecycle]]\nrepositories = ['*']\npolcy = 'x'",
            "lifecycle[0].polcy: no such key; did you mean 'policy'?",
        ),
    ],
)
def test_a_lifecycle_that_cannot_be_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert problems(tmp_path, text) == [said]


def test_a_configuration_cannot_be_changed_later(tmp_path: Path) -> None:
    config = loaded(tmp_path, "")
    with pytest.raises(ValueError, match="frozen"):
        config.server.workers = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nlisten = 5000", ["server.listen", "127.0.0.1:5000"]),
        ('[server]\nlisten = "5000"', ["server.listen", "127.0.0.1:5000"]),
        ('[server]\nlisten = ":5000"', ["server.listen", "0.0.0.0:5000"]),
        ('[server]\nlisten = "127.0.0.1:65536"', ["server.listen", "127.0.0.1:5000"]),
        ('[server]\nlisten = "127.0.0.1:-1"', ["server.listen", "127.0.0.1:5000"]),
        ('[server]\nlisten = "127.0.0.1:\u0665"', ["server.listen", "127.0.0.1:5000"]),
        ('[server.listen]\nhost = "a"\nport = 1', ["server.listen", "127.0.0.1:5000"]),
        ('[server]\nadvertise = "10.0.0.5:5000"', ["server.advertise", "must look like"]),
        ('[server]\nadvertise = "http://10.0.0.5:5000/v2"', ["server.advertise", "http://10.0.0.5:5000"]),
        ('[server]\nadvertise = "http://0.0.0.0:5000"', ["server.advertise", "http://10.0.0.5:5000"]),
        ('[server]\nadvertise = "http://me:it@10.0.0.5:5000"', ["server.advertise", "do not belong in a URL"]),
        ("[server]\nworkers = 0", ["server.workers", "greater than or equal to 1", "0"]),
        ("[server]\nworkers = 65", ["server.workers", "less than or equal to 64"]),
        ('[server]\nworkers = "two"', ["server.workers", "must be a valid integer", "'two'"]),
        ("[server]\nworkers = true", ["server.workers", "must be a valid integer"]),
        ('[server]\ndrain_timeout = "60"', ["server.drain_timeout", '"60s"']),
        ('[server]\ndrain_timeout = ""', ["server.drain_timeout", '"60s"']),
        ('[server]\ndrain_timeout = "-1s"', ["server.drain_timeout", '"60s"']),
        ("[server]\ndrain_timeout = -1", ["server.drain_timeout", "greater than or equal to 0"]),
        ("[server]\ndrain_timeout = nan", ["server.drain_timeout", "greater than or equal to 0"]),
        ('[server]\nlb_delay = "9999999h"', ["server.lb_delay", "less than or equal to"]),
        ("[server]\nclient_stall_timeout = 0", ["server.client_stall_timeout", "greater than 0"]),
        ('[server]\ntls_key = "a"', ["server", "tls_certificate", "set both"]),
        ('[server]\ntls_certificate = "a"', ["server", "tls_key", "set both"]),
        ('[server]\ntls_certificate = ""\ntls_key = "a"', ["server.tls_certificate", "is empty"]),
        ('[admin]\nlisten = "localhost"', ["admin.listen", "127.0.0.1:5000"]),
        ("[store]\npath = 3", ["store.path", "must be a path"]),
        ('[store]\npath = ""', ["store.path", "is empty"]),
        ('[store]\nmax_size = "lots"', ["store.max_size", "100 GiB"]),
        ('[store]\nmax_size = "1 PB"', ["store.max_size", "100 GiB"]),
        ('[admin]\ntoken = "secret"', ["admin", "token: a secret does not belong"]),
        ('[admin]\ntoken_env = "A"\ntoken_file = "/b"', ["admin", "token_env and token_file exclude each other"]),
        ('[admin]\ntoken_env = "NOT_SET"', ["admin.token_env", "NOT_SET"]),
        (f'{ONE}as_of = "yesterday"', ["upstream[0].as_of", "2026-11-01"]),
        (f"{ONE}as_of = -1", ["upstream[0].as_of", "greater than or equal to 0"]),
        ('[store]\nmin_free = "some"', ["store.min_free", "500 MiB"]),
        ('[store]\nkeep_deleted = "no"', ["store.keep_deleted"]),
        ('[store]\nscrub_rate = "fast"', ["store.scrub_rate", "100 GiB"]),
        ('[store]\nscrub_interval = "0s"', ["store.scrub_interval"]),
        ('[store]\nverify_on_read = "no"', ["store.verify_on_read"]),
        ("[store]\nmax_size = -1", ["store.max_size", "greater than or equal to 0"]),
        ("[store]\nmax_size = 1.5", ["store.max_size", "must be a valid integer"]),
        (f'[store]\nmax_size = "{"9" * 400} TiB"', ["store.max_size", "more than any disk"]),
        ('[log]\nformat = "xml"', ["log.format", "'auto'", "'console'", "'json'"]),
        ('[log]\nlevel = "INFO"', ["log.level", "'info'"]),
        ("server = 1", ["server", "must be a table"]),
        ("upstream = []", ["upstream", "leave the key out"]),
        ('[upstream]\nregistry = "ghcr.io"', ["upstream", "[[upstream]]"]),
        ("upstream = [1]", ["upstream[0]", "must be a table"]),
        ('[[upstream]]\nurl = "https://ghcr.io"', ["upstream[0].registry", "is required"]),
        ('[[upstream]]\nregistry = "own.example"', ["upstream[0].url", "is required"]),
        (ONE + '[[upstream]]\nregistry = "own.example"', ["upstream[1].url", "is required"]),
        ('[[upstream]]\nurl = "http://a"\nregistry = "https://ghcr.io"', ["upstream[0].registry", '"ghcr.io"']),
        ('[[upstream]]\nurl = "http://a"\nregistry = ""', ["upstream[0].registry", '"ghcr.io"']),
        ('[[upstream]]\nurl = "http://a"\nregistry = "ghcr.io\\n"', ["upstream[0].registry", '"ghcr.io"']),
        ('[[upstream]]\nurl = "http://a"\nregistry = 5', ["upstream[0].registry", "must be a valid string"]),
        (ONE + 'url = "ghcr.io"', ["upstream[0]", "url", "https://registry.example.com"]),
        (ONE + 'url = "ftp://ghcr.io"', ["upstream[0]", "url", "https://registry.example.com"]),
        (ONE + 'url = "https://"', ["upstream[0]", "url", "https://registry.example.com"]),
        (ONE + 'url = "https://ghcr.io?a=b"', ["upstream[0]", "url", "no query"]),
        (ONE + 'url = "https://[::1"', ["upstream[0]", "url", "https://registry.example.com"]),
        (ONE + 'aliases = "old.example"', ["upstream[0].aliases", "must be a list"]),
        (ONE + 'aliases = ["old example"]', ["upstream[0].aliases[0]", '"ghcr.io"']),
        (ONE + 'hosts = ["a/b"]', ["upstream[0].hosts[0]", '"ghcr.io"']),
        (ONE + 'realm_hosts = ["https://auth.example"]', ["upstream[0].realm_hosts[0]", '"ghcr.io"']),
        (ONE + 'private_networks = ["10.0.0.1/8"]', ["upstream[0].private_networks[0]", '"10.0.0.0/8"']),
        (ONE + 'private_networks = ["inside"]', ["upstream[0].private_networks[0]", '"10.0.0.0/8"']),
        (ONE + 'default = "yes"', ["upstream[0].default", "must be a valid boolean"]),
        (ONE + "tag_ttl = -1", ["upstream[0].tag_ttl", "greater than or equal to 0"]),
        (ONE + 'stall_timeout = "0s"', ["upstream[0].stall_timeout", "greater than 0"]),
        (ONE + 'username = "me"', ["upstream[0]", "username needs password_env or password_file"]),
        (ONE + 'password_env = "A"', ["upstream[0]", "they need username"]),
        (ONE + 'username = "me"\npassword_env = "A"\npassword_file = "b"', ["upstream[0]", "set one of them"]),
        (ONE + 'username = "me"\npassword_file = ""', ["upstream[0].password_file", "is empty"]),
        (ONE + "[[upstream.account]]", ["upstream[0].account[0]", "needs one of username"]),
        (ONE + '[[upstream.account]]\nanonymous = true\nprovider = "ecr"', ["upstream[0].account[0]", "needs one of"]),
        (ONE + '[[upstream.account]]\nanonymous = true\nregion = "x"', ["upstream[0].account[0]", 'provider = "ecr"']),
        (ONE + '[[upstream.account]]\nprovider = "gcp"', ["upstream[0].account[0].provider", "'google'"]),
        (ONE + 2 * "[[upstream.account]]\nanonymous = true\n", ["upstream[0]", "two are called 'anonymous'"]),
        (ONE + '[[upstream.account]]\nname = "a b"\nanonymous = true', ["upstream[0].account[0].name", "is no name"]),
        (
            ONE + '[[upstream.account]]\nanonymous = true\nrepositories = ["A"]',
            ["upstream[0].account[0].repositories[0]", "library/*"],
        ),
        (
            ONE + 'username = "me"\npassword_env = "A"\n[[upstream.account]]\nanonymous = true',
            ["upstream[0]", "exclude each other"],
        ),
        (ONE + 'client_key = "a"', ["upstream[0]", "client_certificate and client_key belong together"]),
        (ONE + 'proxy = "socks5://a:1"', ["upstream[0].proxy", "http://proxy.example:3128"]),
        (ONE + 'proxy = "http://me:secret@a:1"', ["upstream[0].proxy", "proxy_username"]),
        (ONE + 'proxy_username = "me"', ["upstream[0]", "proxy_password_env or proxy_password_file"]),
        (ONE + "max_requests = 1", ["upstream[0].max_requests", "greater than or equal to 2"]),
        (ONE + "connections_per_blob = 0", ["upstream[0].connections_per_blob", "greater than or equal to 1"]),
        (ONE + "connections_per_blob = 17", ["upstream[0].connections_per_blob", "less than or equal to 16"]),
        (ONE + "rate_reserve = 1.5", ["upstream[0].rate_reserve", "less than or equal to 1"]),
        (ONE + 'prefetch = "some"', ["upstream[0].prefetch", '"off", "on"']),
    ],
)
def test_what_is_wrong_is_refused_with_the_key_and_the_remedy(tmp_path: Path, text: str, said: list[str]) -> None:
    (problem,) = problems(tmp_path, text)
    key, *rest = said
    assert problem.startswith(f"{key}: "), problem
    assert all(word in problem for word in rest), problem
    assert "Traceback" not in problem


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    text = '[server]\nworkers = 0\n[store]\nmax_size = "x"\n[log]\nlevel = "loud"\n' + ONE + "tag_ttl = -1"
    assert [problem.partition(":")[0] for problem in problems(tmp_path, text)] == [
        "server.workers",
        "store.max_size",
        "log.level",
        "upstream[0].tag_ttl",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sever]", "sever: no such key; did you mean 'server'?"),
        ("[[upstreams]]", "upstreams: no such key; did you mean 'upstream'?"),
        ("[server]\nworker = 2", "server.worker: no such key; did you mean 'workers'?"),
        ("[store]\nmaxsize = 2", "store.maxsize: no such key; did you mean 'max_size'?"),
        ("[admin]\nzzz = 2", "admin.zzz: no such key; the keys here are listen, token_env, token_file"),
        (WARM + "evry = 2", "warm[0].evry: no such key; did you mean 'every'?"),
        (ONE + "tag_tll = 2", "upstream[0].tag_tll: no such key; did you mean 'tag_ttl'?"),
        (ONE + f'pasword = "{SECRET}"', "upstream[0].pasword: no such key; did you mean 'password_env'?"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(tmp_path: Path, text: str, said: str) -> None:
    assert problems(tmp_path, text) == [said]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"nowhere\.toml: cannot be read \(No such file or directory\); give --config"
    ):
        load(tmp_path / "nowhere.toml", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path, {})


@pytest.mark.parametrize("body", [b"server", b"[server]\nworkers = 1\nworkers = 2", b"a = '\xff'"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "proxy.toml"
    path.write_bytes(body)
    with pytest.raises(ConfigError, match=r"proxy\.toml: is no TOML"):
        load(path, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[warm]]", "warm[0]: names no images: give images, or a file of them"),
        ("warm = 1", "warm: must be a list of tables: write [[warm]], with two brackets"),
        (WARM + 'keep = "1h"', "warm[0]: keep is no longer than every"),
        (WARM + 'every = "1s"', "warm[0].every: must be greater than or equal to 60"),
        (WARM + 'platforms = ["linux"]', "warm[0].platforms[0]: 'linux' is no platform"),
        ('[[warm]]\nimages = ["A b"]', "warm[0].images: 'A b': invalid repository name"),
        ('[[warm]]\nimages = ["quay.example/a"]', "warm[0].images: 'quay.example/a': the registry quay.example is not"),
    ],
)
def test_a_wish_that_cannot_be_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path, text)
    assert str(refused.value).startswith(said)


class TestDurationsAndSizes:
    """Durations are seconds, sizes are bytes; both are written as people write them."""

    @given(st.integers(0, 50), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
    def test_a_duration_is_the_sum_of_its_parts(self, hours: int, minutes: int, seconds: int, millis: int) -> None:
        text = f"{hours}h{minutes}m{seconds}s{millis}ms"
        assert Server.model_validate({"drain_timeout": text}).drain_timeout == pytest.approx(
            hours * 3600 + minutes * 60 + seconds + millis / 1000
        )

    @given(st.floats(0, 366 * 86400))
    def test_a_number_is_seconds(self, seconds: float) -> None:
        assert Server.model_validate({"drain_timeout": seconds}).drain_timeout == seconds

    @given(st.integers(0, 10**6), st.sampled_from(["B", "KB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"]))
    def test_a_size_is_a_number_and_a_unit(self, number: int, unit: str) -> None:
        power = "BKMGT".index(unit[0])
        expected = number * (1024 if "i" in unit else 1000) ** power
        for text in (f"{number} {unit}", f"{number}{unit}"):
            assert Store.model_validate({"max_size": text}).max_size == expected

    @given(st.integers(0, 2**60))
    def test_a_number_is_bytes(self, number: int) -> None:
        assert Store.model_validate({"max_size": number}).max_size == number

    @given(st.text(max_size=40))
    def test_whatever_is_written_is_understood_or_refused(self, text: str) -> None:
        for model, key in ((Server, "drain_timeout"), (Store, "max_size"), (Server, "listen")):
            with contextlib.suppress(ValidationError):  # and nothing else
                model.model_validate({key: text})


class TestTheEnvironment:
    """ENTREPOT_SECTION_KEY goes before the file."""

    def test_it_goes_before_the_file(self, tmp_path: Path) -> None:
        config = loaded(
            tmp_path,
            '[server]\nlisten = "127.0.0.1:1"\nworkers = 2\n' + ONE,
            {"ENTREPOT_SERVER_LISTEN": "0.0.0.0:5000", "ENTREPOT_STORE_PATH": "/elsewhere"},
        )
        assert str(config.server.listen) == "0.0.0.0:5000"
        assert config.server.workers == 2
        assert config.store.path == Path("/elsewhere")

    @pytest.mark.parametrize(
        ("variable", "value", "section", "key", "expected"),
        [
            ("ENTREPOT_SERVER_WORKERS", "3", "server", "workers", 3),
            ("ENTREPOT_SERVER_LB_DELAY", "0s", "server", "lb_delay", 0),
            ("ENTREPOT_SERVER_DRAIN_TIMEOUT", "1m", "server", "drain_timeout", 60),
            ("ENTREPOT_SERVER_CLIENT_STALL_TIMEOUT", "1m", "server", "client_stall_timeout", 60),
            ("ENTREPOT_ADMIN_LISTEN", "127.0.0.1:2", "admin", "listen", Listen(host="127.0.0.1", port=2)),
            ("ENTREPOT_STORE_MAX_SIZE", "1 GB", "store", "max_size", 10**9),
            ("ENTREPOT_STORE_MAX_SIZE", "1000", "store", "max_size", 1000),
            ("ENTREPOT_STORE_KEEP_DELETED", "false", "store", "keep_deleted", False),
            ("ENTREPOT_LOG_FORMAT", "json", "log", "format", "json"),
            ("ENTREPOT_LOG_LEVEL", "error", "log", "level", "error"),
        ],
    )
    def test_it_sets_any_key_of_a_section(
        self, variable: str, value: str, section: str, key: str, expected: Any
    ) -> None:
        assert getattr(getattr(load(None, {variable: value}), section), key) == expected

    def test_it_sets_the_certificate_and_its_key(self) -> None:
        config = load(None, {"ENTREPOT_SERVER_TLS_CERTIFICATE": "/a", "ENTREPOT_SERVER_TLS_KEY": "/b"})
        assert (config.server.tls_certificate, config.server.tls_key) == (Path("/a"), Path("/b"))

    @pytest.mark.parametrize(
        ("variable", "value", "said"),
        [
            ("ENTREPOT_SERVER_LISTN", "x", "ENTREPOT_SERVER_LISTN: sets no key that exists"),
            ("ENTREPOT_STORE", "x", "ENTREPOT_STORE: sets no key that exists"),
            ("ENTREPOT_SERVER_WORKERS", "many", "server.workers: must be a valid integer"),
            ("ENTREPOT_SERVER_WORKERS", "²", "server.workers: must be a valid integer"),
            ("ENTREPOT_SERVER_WORKERS", "", "server.workers: must be a valid integer"),
            ("ENTREPOT_STORE_PATH", "", "store.path: is empty"),
            ("ENTREPOT_SERVER_LISTEN", "", "server.listen: '' is no address"),
            ("ENTREPOT_SERVER_DRAIN_TIMEOUT", "60", "server.drain_timeout: '60' is no duration"),
        ],
    )
    def test_what_it_says_wrong_is_refused(self, variable: str, value: str, said: str) -> None:
        with pytest.raises(ConfigError) as refused:
            load(None, {variable: value})
        assert str(refused.value).startswith(said)

    @pytest.mark.parametrize("service", ["ENTREPOT", "ENTREPOT_ADMIN", "ENTREPOT_SERVER", "ENTREPOT_STORE"])
    def test_what_kubernetes_sets_for_a_service_of_that_name_is_ignored(self, service: str) -> None:
        environ = {
            f"{service}_SERVICE_HOST": "10.0.0.7",
            f"{service}_SERVICE_PORT": "5000",
            f"{service}_SERVICE_PORT_HTTP": "5000",
            f"{service}_SERVICE_PORT_HTTP_METRICS": "5001",
            f"{service}_PORT": "tcp://10.0.0.7:5000",
            f"{service}_PORT_5000_TCP": "tcp://10.0.0.7:5000",
            f"{service}_PORT_5000_TCP_PROTO": "tcp",
            f"{service}_PORT_5000_TCP_PORT": "5000",
            f"{service}_PORT_5000_TCP_ADDR": "10.0.0.7",
        }
        assert load(None, environ) == load(None, {})

    def test_other_variables_are_nobodys_business(self) -> None:
        environ = {"ENTREPOT_CONFIG": "/etc/entrepot/proxy.toml", "ENTREPOT_VERSION": "1", "SERVER_LISTEN": "x"}
        assert load(None, environ) == load(None, {})


class TestPasswords:
    """They come from the environment or from a file, and show up nowhere."""

    LOGIN = ONE + 'username = "someone"\n'

    def test_from_the_environment_just_as_it_is(self, tmp_path: Path) -> None:
        config = loaded(tmp_path, self.LOGIN + 'password_env = "TOKEN"', {"TOKEN": f" {SECRET} "})
        assert config.upstream[0].password is not None
        assert config.upstream[0].password.get_secret_value() == f" {SECRET} "

    def test_from_a_file_without_the_line_end(self, tmp_path: Path) -> None:
        (tmp_path / "token").write_text(f"{SECRET}\n")
        config = loaded(tmp_path, self.LOGIN + f'password_file = "{tmp_path}/token"')
        assert config.upstream[0].password is not None
        assert config.upstream[0].password.get_secret_value() == SECRET

    @pytest.mark.parametrize("environ", [{}, {"TOKEN": ""}])
    def test_a_missing_variable_is_named(self, tmp_path: Path, environ: dict[str, str]) -> None:
        (problem,) = problems(tmp_path, self.LOGIN + 'password_env = "TOKEN"', environ)
        assert problem == "upstream[0].password_env: the environment has no TOKEN, or it is empty"

    @pytest.mark.parametrize(
        ("body", "said"),
        [(None, "cannot be read (No such file or directory)"), (b"\n", "is empty"), (b"\xff" * 9, "is no text")],
    )
    def test_a_file_without_a_password_is_named(self, tmp_path: Path, body: bytes | None, said: str) -> None:
        path = tmp_path / "token"
        if body is not None:
            path.write_bytes(body)
        (problem,) = problems(tmp_path, self.LOGIN + f'password_file = "{path}"')
        assert problem.startswith(f"upstream[0].password_file: {path} {said}")

    def test_every_missing_password_is_told_at_once(self, tmp_path: Path) -> None:
        second = OWN + 'username = "someone"\npassword_env = "OTHER"'
        said = problems(tmp_path, self.LOGIN + 'password_env = "TOKEN"\n' + second)
        assert [problem.partition(":")[0] for problem in said] == [
            "upstream[0].password_env",
            "upstream[1].password_env",
        ]

    @pytest.mark.parametrize(
        "text",
        [
            ONE + f'password = "{SECRET}"',
            ONE + f'username = "me"\npassword = "{SECRET}"',
            ONE + f'secret = "{SECRET}"',
            ONE + f'url = "https://me:{SECRET}@ghcr.io"',
            ONE + f'url = "ftp://me:{SECRET}@ghcr.io"',
            ONE + f'url = "me:{SECRET}@ghcr.io"',
            f'[[upstream]]\nregistry = "https://me:{SECRET}@ghcr.io"',
            f'[[upstream]]\nregistry = "me:{SECRET}@ghcr.io"',
            f'[server]\npassword = "{SECRET}"',
            f'password = "{SECRET}"',
        ],
    )
    def test_a_secret_in_the_file_is_refused_and_not_repeated(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(ConfigError) as refused:
            loaded(tmp_path, text)
        assert SECRET not in "".join(traceback.format_exception(refused.value))
        assert SECRET not in repr(refused.value)

    def test_a_password_is_in_no_representation(self, tmp_path: Path) -> None:
        config = loaded(tmp_path, self.LOGIN + 'password_env = "TOKEN"', {"TOKEN": SECRET})
        upstream = config.upstream[0]
        for shown in (repr(config), str(config), repr(upstream), f"{upstream.password}", config.model_dump_json()):
            assert SECRET not in shown


class TestUpstreams:
    """Known registries need only a name; a name leads to one upstream."""

    @pytest.mark.parametrize("registry", PUBLIC)
    def test_a_known_registry_needs_only_its_name(self, tmp_path: Path, registry: str) -> None:
        (upstream,) = loaded(tmp_path, f'[[upstream]]\nregistry = "{registry}"').upstream
        assert upstream.url == PUBLIC[registry]["url"]
        assert upstream.realm_hosts == tuple(PUBLIC[registry].get("realm_hosts", ()))

    def test_what_is_said_of_a_known_registry_goes_before_what_is_known(self, tmp_path: Path) -> None:
        text = '[[upstream]]\nregistry = "Docker.IO"\nurl = "http://127.0.0.1:1"\nrealm_hosts = []'
        (upstream,) = loaded(tmp_path, text).upstream
        assert (upstream.registry, upstream.url, upstream.realm_hosts) == ("docker.io", "http://127.0.0.1:1", ())
        assert "index.docker.io" in upstream.names

    def test_naming_one_forgets_the_others(self, tmp_path: Path) -> None:
        assert [upstream.registry for upstream in loaded(tmp_path, ONE).upstream] == ["ghcr.io"]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (ONE + ONE, "'ghcr.io' names both ghcr.io and ghcr.io"),
            (OWN + 'aliases = ["ghcr.io"]\n' + ONE, "'ghcr.io' names both own.example and ghcr.io"),
            (OWN + 'hosts = ["a"]\n' + ONE + 'hosts = ["A"]\n', "'a' names both own.example and ghcr.io"),
            (OWN + "default = true\n" + ONE + "default = true\n", "more than one is marked default"),
        ],
    )
    def test_what_is_ambiguous_is_refused(self, tmp_path: Path, text: str, said: str) -> None:
        (problem,) = problems(tmp_path, text)
        assert problem.startswith(f"upstream: {said}")

    @pytest.mark.parametrize(
        ("text", "default"),
        [
            (ONE, "ghcr.io"),
            (ONE + OWN, None),
            (ONE + OWN + "default = true", "own.example"),
            (ONE + '[[upstream]]\nregistry = "docker.io"', "docker.io"),
            ('[[upstream]]\nregistry = "docker.io"\n' + ONE + "default = true", "ghcr.io"),
        ],
    )
    def test_the_default_is_the_marked_one_else_docker_hub_else_the_only_one(
        self, tmp_path: Path, text: str, default: str | None
    ) -> None:
        upstream = loaded(tmp_path, text).default_upstream
        assert (None if upstream is None else upstream.registry) == default
