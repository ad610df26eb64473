"""The TLS files of an upstream: what is said of one that is no use, and what the contexts are made of."""

import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from proxy.config import Config
from proxy.sections.upstream import Upstream
from proxy.trust import Contexts, _contexts, problems


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    """An authority."""
    return trustme.CA()


@pytest.fixture
def files(ca: trustme.CA, tmp_path: Path) -> dict[str, Any]:
    """Files that are right."""
    pair = ca.issue_cert("client.test")
    (tmp_path / "ca.pem").write_bytes(ca.cert_pem.bytes())
    (tmp_path / "client.crt").write_bytes(pair.cert_chain_pems[0].bytes())
    (tmp_path / "client.key").write_bytes(pair.private_key_pem.bytes())
    names = {"ca_file": "ca.pem", "client_certificate": "client.crt", "client_key": "client.key"}
    return {key: tmp_path / name for key, name in names.items()}


def upstream(registry: str = "own.example", **keys: Any) -> Upstream:
    """An upstream with these keys."""
    return Upstream.model_validate({"registry": registry, "url": f"https://{registry}", **keys})


def said(**keys: Any) -> list[str]:
    """What is wrong with the second of two upstreams."""
    return problems(Config(upstream=(upstream("first.example"), upstream(**keys))))


def encrypted(key: bytes) -> bytes:
    """The same key behind a passphrase."""
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"passphrase"),
    )


def test_files_that_are_right_are_no_problem(files: dict[str, Any]) -> None:
    assert said(**files) == []
    assert said(**files, insecure=True) == []


@pytest.mark.parametrize("key", ["ca_file", "client_certificate", "client_key"])
def test_a_file_that_is_missing_is_named_with_its_key(files: dict[str, Any], key: str) -> None:
    files[key].unlink()
    assert said(**files) == [f"upstream[1].{key}: {files[key]} cannot be read (No such file or directory)"]


@pytest.mark.parametrize("key", ["ca_file", "client_certificate", "client_key"])
def test_so_is_one_that_is_a_directory(files: dict[str, Any], key: str) -> None:
    files[key].unlink()
    files[key].mkdir()
    (line,) = said(**files)
    assert line.startswith(f"upstream[1].{key}: {files[key]} ")


@pytest.mark.parametrize("content", [b"", b"what is no PEM\n", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
@pytest.mark.parametrize("key", ["ca_file", "client_certificate", "client_key"])
def test_so_is_one_that_holds_something_else(files: dict[str, Any], key: str, content: bytes) -> None:
    files[key].write_bytes(content)
    (line,) = said(**files)
    assert line.startswith(
        (f"upstream[1].{key}: {files[key]} holds no ", "upstream[1].client_certificate, client_key: ")
    )


def test_a_bundle_that_breaks_off_is_refused_whole(ca: trustme.CA, files: dict[str, Any]) -> None:
    files["ca_file"].write_bytes(ca.cert_pem.bytes() + trustme.CA().cert_pem.bytes()[:-60])
    assert said(**files) == [f"upstream[1].ca_file: {files['ca_file']} holds no certificate in PEM, or a broken one"]


def test_a_bundle_may_say_what_it_holds(ca: trustme.CA, files: dict[str, Any]) -> None:
    files["ca_file"].write_bytes(
        "# Müllers Zertifikat\n".encode() + ca.cert_pem.bytes() + trustme.CA().cert_pem.bytes()
    )
    assert said(**files) == []


def test_a_certificate_with_another_key_is_refused(ca: trustme.CA, files: dict[str, Any]) -> None:
    files["client_key"].write_bytes(ca.issue_cert("x.test").private_key_pem.bytes())
    (line,) = said(**files)
    assert line.startswith("upstream[1].client_certificate, client_key: ")
    assert "do not belong together" in line


def test_a_key_behind_a_passphrase_is_refused_and_nobody_is_asked_for_it(files: dict[str, Any]) -> None:
    files["client_key"].write_bytes(encrypted(files["client_key"].read_bytes()))
    assert said(**files) == [
        f"upstream[1].client_key: {files['client_key']} is encrypted: give one without a passphrase"
    ]


def test_every_upstream_has_its_say(files: dict[str, Any]) -> None:
    lost = [upstream(registry, ca_file=Path("/nowhere")) for registry in ("a.example", "b.example")]
    config = Config(upstream=(lost[0], upstream(**files), lost[1]))
    assert [line.partition(":")[0] for line in problems(config)] == ["upstream[0].ca_file", "upstream[2].ca_file"]


def test_with_no_file_there_is_no_context_of_our_own() -> None:
    assert _contexts(upstream()) == Contexts(own=True, realm=True, foreign=True, proxy=None)
    assert _contexts(upstream(insecure=True)) == Contexts(own=False, realm=True, foreign=True, proxy=None)
    assert _contexts(upstream(proxy="https://p:1")).proxy is not None


def context_of(context: ssl.SSLContext | bool | None) -> ssl.SSLContext:
    """One that is made here."""
    assert isinstance(context, ssl.SSLContext)
    return context


def test_ca_file_is_added_to_the_systems_roots(ca: trustme.CA, files: dict[str, Any]) -> None:
    system = {one["serialNumber"] for one in ssl.create_default_context().get_ca_certs()}
    contexts = _contexts(upstream(**files, proxy="https://p:1"))
    for context in map(context_of, (contexts.own, contexts.realm, contexts.foreign, contexts.proxy)):
        known = {one["serialNumber"] for one in context.get_ca_certs()}
        assert system < known
        assert len(known) == len(system) + 1
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_insecure_is_a_matter_of_the_own_origin_alone(files: dict[str, Any]) -> None:
    contexts = _contexts(upstream(**files, insecure=True))
    assert context_of(contexts.own).verify_mode == ssl.CERT_NONE
    for context in map(context_of, (contexts.realm, contexts.foreign)):
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
