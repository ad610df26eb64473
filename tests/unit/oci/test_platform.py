"""Platforms, as people write them, and as indexes and configs do."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.platform import Platform, of_config, of_index

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["manifests", "digest", "platform", "os"]), inner),
)


def index(*platforms: object) -> bytes:
    """An index of manifests for these."""
    listed = [{"digest": f"sha256:{number:064x}", "platform": one} for number, one in enumerate(platforms)]
    return json.dumps({"manifests": listed}).encode()


@pytest.mark.parametrize("text", ["linux/amd64", "linux/arm/v7", "windows/amd64"])
def test_a_platform_is_written_as_it_is_read(text: str) -> None:
    assert str(Platform.parse(text)) == text


@pytest.mark.parametrize("text", ["", "linux", "/", "linux/", "a/b/c/d", "linux/\u00e9"])
def test_what_is_no_platform_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="linux/amd64"):
        Platform.parse(text)


def test_without_a_variant_any_is_meant() -> None:
    assert Platform.parse("linux/arm").covers(Platform("linux", "arm", "v7"))
    assert not Platform.parse("linux/arm/v6").covers(Platform("linux", "arm", "v7"))
    assert not Platform.parse("linux/arm").covers(Platform("linux", "arm64"))


def test_an_index_says_which_of_its_manifests_is_for_which_platform() -> None:
    unknown = {"os": "unknown", "architecture": "unknown"}  # an attestation
    body = index({"os": "linux", "architecture": "arm", "variant": "v7"}, unknown, None)
    assert [platform for _, platform in of_index(body)] == [Platform("linux", "arm", "v7"), None, None]


def test_a_config_says_what_its_image_runs_on() -> None:
    assert of_config(b'{"os": "linux", "architecture": "amd64", "rootfs": {}}') == Platform("linux", "amd64")
    assert of_config(b"{}") is None


@given(JSON)
def test_any_json_is_read_without_an_error(value: Any) -> None:
    body = json.dumps(value).encode()
    list(of_index(body))
    of_config(body)


@given(st.binary())
def test_any_bytes_are_read_without_an_error(body: bytes) -> None:
    list(of_index(body))
    of_config(body)
