"""Manifests: what two clients could understand differently is refused, and what is hostile stays cheap."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci import manifest
from proxy.oci.digest import Digest
from proxy.oci.manifest import (
    ACCEPT,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MAX_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ManifestInvalid,
    parse,
)

INDEXES = [OCI_INDEX, DOCKER_LIST]
IMAGES = [OCI_MANIFEST, DOCKER_MANIFEST]
ARTIFACT = "application/vnd.example.thing.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"
ONE, TWO, THREE = (Digest.of(body) for body in (b"one", b"two", b"three"))


def descriptor(digest: Digest | str, size: object, media_type: object = LAYER, **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(digest), "size": size, **more}


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


def image(**fields: object) -> dict[str, object]:
    config = descriptor(ONE, 1, CONFIG)
    layers = [descriptor(TWO, 2), descriptor(THREE, 3)]
    return {"schemaVersion": 2, "config": config, "layers": layers, **fields}


def index(*children: object, **fields: object) -> dict[str, object]:
    return {"schemaVersion": 2, "manifests": list(children), **fields}


def refused(body: bytes, declared: str = "") -> str:
    with pytest.raises(ManifestInvalid) as caught:
        parse(body, declared)
    return str(caught.value)


def test_the_types_asked_for_are_the_four_in_one_line() -> None:
    assert ACCEPT.split(", ") == [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST]


# What it names


@pytest.mark.parametrize("media_type", IMAGES)
def test_an_image_names_its_config_and_its_layers_in_order(media_type: str) -> None:
    body = encoded(image(mediaType=media_type))
    parsed = parse(body, media_type)
    assert parsed.body is body
    assert parsed.digest == Digest.of(body)
    assert parsed.media_type == media_type
    assert parsed.descriptors == (Descriptor(CONFIG, ONE, 1), Descriptor(LAYER, TWO, 2), Descriptor(LAYER, THREE, 3))


@pytest.mark.parametrize("media_type", INDEXES)
def test_an_index_names_its_children_in_order(media_type: str) -> None:
    body = encoded(index(descriptor(TWO, 2, OCI_MANIFEST), descriptor(ONE, 1, OCI_MANIFEST)))
    assert parse(body, media_type).descriptors == (Descriptor(OCI_MANIFEST, TWO, 2), Descriptor(OCI_MANIFEST, ONE, 1))


def test_the_digest_is_of_the_algorithm_that_was_asked() -> None:
    body = encoded(image())
    assert parse(body, OCI_MANIFEST, "sha512").digest == Digest.of(body, "sha512")


def test_a_subject_is_not_among_what_a_manifest_names() -> None:
    body = encoded(image(layers=[], subject=descriptor(TWO, 2)))
    assert parse(body, OCI_MANIFEST).descriptors == (Descriptor(CONFIG, ONE, 1),)


def test_urls_and_all_else_of_a_descriptor_are_ignored() -> None:
    body = encoded(index(descriptor(ONE, 1, urls=["http://canary/"], data="eA==", platform={"os": "linux"})))
    assert parse(body, OCI_INDEX).descriptors == (Descriptor(LAYER, ONE, 1),)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        1,
        "x",
        [],
        {},
        ["digest", str(ONE)],
        {"digest": str(ONE)},
        {"size": 1},
        descriptor("md5:" + "a" * 32, 1),
        descriptor("sha256:../../x", 1),
        descriptor("blake3:" + "a" * 64, 1),
        descriptor(ONE, -1),
        descriptor(ONE, 2**63),
        descriptor(ONE, 10**400),
        descriptor(ONE, True),
        descriptor(ONE, 1.0),
        descriptor(ONE, "1"),
        descriptor(ONE, None),
        {"digest": ["sha256"], "size": 1},
    ],
)
def test_a_malformed_descriptor_is_skipped_and_the_others_are_not(entry: object) -> None:
    body = encoded(index(entry, descriptor(TWO, 2)))
    assert parse(body, OCI_INDEX).descriptors == (Descriptor(LAYER, TWO, 2),)


@pytest.mark.parametrize("size", [0, 1, 2**63 - 1])
def test_a_size_is_any_that_a_file_can_have(size: int) -> None:
    assert parse(encoded(index(descriptor(ONE, size))), OCI_INDEX).descriptors == (Descriptor(LAYER, ONE, size),)


def test_a_sha512_descriptor_is_named() -> None:
    digest = Digest.of(b"", "sha512")
    assert parse(encoded(index(descriptor(digest, 0))), OCI_INDEX).descriptors == (Descriptor(LAYER, digest, 0),)


@pytest.mark.parametrize("media_type", [None, 1, "", "x", "a/b\r\nSet-Cookie: c", "caf\u00e9/x", "a/" + "b" * 300])
def test_a_descriptor_without_a_usable_media_type_still_counts(media_type: object) -> None:
    body = encoded(index(descriptor(ONE, 1, media_type)))
    assert parse(body, OCI_INDEX).descriptors == (Descriptor("", ONE, 1),)


def test_of_two_sizes_for_one_digest_none_is_believed() -> None:
    body = encoded(index(descriptor(ONE, 1), descriptor(TWO, 2), descriptor(ONE, 3)))
    assert parse(body, OCI_INDEX).descriptors == (Descriptor(LAYER, TWO, 2),)


def test_a_layer_that_is_there_twice_is_named_twice() -> None:
    body = encoded(image(config=None, layers=[descriptor(ONE, 1), descriptor(ONE, 1)]))
    assert parse(body, OCI_MANIFEST).descriptors == (Descriptor(LAYER, ONE, 1),) * 2


@pytest.mark.parametrize("listed", [None, 1, "x", {}, {"a": 1}])
def test_a_list_that_is_none_names_nothing(listed: object) -> None:
    assert parse(encoded({"manifests": listed}), OCI_INDEX).descriptors == ()
    assert parse(encoded({"layers": listed}), OCI_MANIFEST).descriptors == ()


# What it is


@pytest.mark.parametrize("declared", ["", "application/json", "text/plain; charset=utf-8", "application/octet-stream"])
def test_where_the_header_says_nothing_the_body_says_its_type(declared: str) -> None:
    assert parse(encoded(image(mediaType=DOCKER_MANIFEST)), declared).media_type == DOCKER_MANIFEST


def test_where_nothing_says_a_type_the_keys_do() -> None:
    assert parse(encoded(index()), "").media_type == OCI_INDEX
    assert parse(encoded(image()), "application/json").media_type == OCI_MANIFEST
    assert parse(encoded({"layers": []}), "").media_type == OCI_MANIFEST
    assert parse(encoded({"config": {}}), "").media_type == OCI_MANIFEST


def test_where_nothing_says_anything_it_is_refused() -> None:
    assert refused(b"{}") == "neither an index nor a manifest"


@pytest.mark.parametrize("declared", [f"{OCI_MANIFEST}; charset=utf-8", f" {OCI_MANIFEST} ;", OCI_MANIFEST.upper()])
def test_parameters_and_letter_case_of_a_header_do_not_matter(declared: str) -> None:
    assert parse(encoded(image()), declared).media_type == OCI_MANIFEST
    assert parse(encoded(image(mediaType=OCI_MANIFEST)), declared).media_type == OCI_MANIFEST


@pytest.mark.parametrize("media_type", [None, ""])
def test_an_empty_media_type_in_the_body_is_none(media_type: object) -> None:
    assert parse(encoded(image(mediaType=media_type)), DOCKER_MANIFEST).media_type == DOCKER_MANIFEST


def test_an_artifact_of_an_unknown_type_passes() -> None:
    assert parse(encoded({"mediaType": ARTIFACT, "blobs": []}), ARTIFACT).media_type == ARTIFACT
    assert parse(encoded({"anything": 1}), ARTIFACT).media_type == ARTIFACT
    assert parse(encoded({"mediaType": ARTIFACT}), "").media_type == ARTIFACT


@pytest.mark.parametrize("inner", [OCI_INDEX, DOCKER_MANIFEST, ARTIFACT, OCI_MANIFEST + ";a=b", "x"])
def test_a_body_that_contradicts_its_header_is_refused(inner: str) -> None:
    assert refused(encoded(image(mediaType=inner)), OCI_MANIFEST) == "mediaType differs from the Content-Type"


@pytest.mark.parametrize(
    "inner", [1, True, False, 0, [], {}, [OCI_MANIFEST], OCI_MANIFEST.replace("k", "\u212a") + "\u212a"]
)
def test_a_media_type_that_is_no_ascii_text_is_refused(inner: object) -> None:
    assert refused(encoded(image(mediaType=inner)), OCI_MANIFEST) == "a media type that is no ASCII text"


def test_the_kelvin_sign_is_no_letter_of_a_known_type() -> None:
    assert "ASCII" in refused(encoded(image(mediaType=DOCKER_MANIFEST.replace("k", "\u212a"))), DOCKER_MANIFEST)


@pytest.mark.parametrize(
    "declared", ["x", "a/", "/b", "a/b/c", "a b/c", "a/b\r\nc", "a/b\x00", "a/" + "b" * 254, "a/\x7f", '"a"/b']
)
def test_a_malformed_media_type_is_refused(declared: str) -> None:
    assert refused(b"{}", declared) == "malformed media type"
    assert refused(encoded({"mediaType": declared})) == "malformed media type"


def test_the_longest_media_type_passes() -> None:
    assert parse(b"{}", "a/" + "b" * 253).media_type == "a/" + "b" * 253


@pytest.mark.parametrize("declared", ["", ARTIFACT, *INDEXES, *IMAGES])
@pytest.mark.parametrize("more", [{"layers": []}, {"config": {}}, {"layers": None}, {"layers": [], "config": {}}])
def test_an_index_that_is_a_manifest_too_is_refused(declared: str, more: dict[str, object]) -> None:
    assert refused(encoded({"manifests": [], **more}), declared) == "an index and a manifest at once"


@pytest.mark.parametrize("declared", INDEXES)
def test_an_index_must_have_children(declared: str) -> None:
    assert refused(b"{}", declared) == "an index without manifests"
    assert refused(encoded(image()), declared) == "an index without manifests"


@pytest.mark.parametrize("declared", IMAGES)
def test_a_manifest_must_not_have_children(declared: str) -> None:
    assert refused(encoded(index()), declared) == "a manifest with manifests"


@pytest.mark.parametrize("declared", ["prettyjws", "json"])
def test_schema_1_is_refused_by_its_header(declared: str) -> None:
    assert "schema 1" in refused(b"{}", f"application/vnd.docker.distribution.manifest.v1+{declared}; charset=utf-8")


@pytest.mark.parametrize("declared", ["", "text/plain", DOCKER_MANIFEST, ARTIFACT])
def test_schema_1_is_refused_by_its_body(declared: str) -> None:
    assert "schema 1" in refused(b'{"schemaVersion": 1, "fsLayers": [], "history": []}', declared)


# What two parsers would read differently


@pytest.mark.parametrize("key", ["mediaType", "manifests", "layers", "config", "subject", "schemaVersion"])
def test_a_decisive_key_must_not_stand_there_twice(key: str) -> None:
    assert key in refused(b'{"%b":null,"x":1,"%b":null}' % (key.encode(), key.encode()), ARTIFACT)


@pytest.mark.parametrize(
    "key",
    [
        "MediaType",
        "mediatype",
        "MANIFESTS",
        "Layers",
        "conFig",
        "Subject",
        "schemaversion",
        "manife\u017fts",
        "layer\u017f",
        "\u017fubject",
    ],
)
def test_a_decisive_key_must_not_stand_there_in_another_letter_case(key: str) -> None:
    assert "letter case" in refused(json.dumps({key: None}).encode(), ARTIFACT)
    assert "letter case" in refused(json.dumps({key: None}, ensure_ascii=False).encode(), ARTIFACT)


def test_an_escaped_key_is_the_same_key() -> None:
    assert "twice" in refused(rb'{"layers":[],"l\u0061yers":[]}', ARTIFACT)


def test_other_keys_may_repeat_and_below_the_top_all_may() -> None:
    inner = b'{"mediaType":"x","mediaType":"%b","DIGEST":1,"digest":"%b","size":9,"size":1}' % (
        LAYER.encode(),
        str(ONE).encode(),
    )
    body = b'{"annotations":1,"annotations":{"Layers":1,"layers":2},"Annotations":3,"layers":[' + inner + b"]}"
    assert parse(body, OCI_MANIFEST).descriptors == (Descriptor(LAYER, ONE, 1),)


# Bombs and garbage


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xef\xbb\xbf{}", id="byte order mark"),
        pytest.param("{}".encode("utf-16"), id="utf-16"),
        pytest.param("{}".encode("utf-16-le"), id="utf-16 without a mark"),
        pytest.param(b'{"a":"\xff"}', id="not utf-8"),
        pytest.param(b'{"a":"\xed\xa0\x80"}', id="a surrogate in utf-8"),
        pytest.param(b'{"a":"\xc0\xaf"}', id="overlong utf-8"),
        pytest.param(b'{"a":NaN}', id="NaN"),
        pytest.param(b'{"a":Infinity}', id="Infinity"),
        pytest.param(b'{"a":-Infinity}', id="-Infinity"),
        pytest.param(b'{"a":1e400}', id="1e400"),
        pytest.param(b'{"a":-1e400}', id="-1e400"),
        pytest.param(b'{"a":' + b"9" * 5000 + b"}", id="5000 digits"),
        pytest.param(b"{} {}", id="two documents"),
        pytest.param(b"{}x", id="a tail"),
        pytest.param(b"{", id="half a document"),
        pytest.param(b"{'a':1}", id="python"),
        pytest.param(b'{"a":1,}', id="trailing comma"),
        pytest.param(b'{"a":"\n"}', id="newline in a string"),
        pytest.param(b'{"a":"\x00"}', id="NUL in a string"),
        pytest.param(b"<html></html>", id="html"),
        pytest.param(b'\\"{"a":1}', id="escape outside a string"),
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    assert refused(body, ARTIFACT) == "not valid JSON"


@pytest.mark.parametrize("body", [b"[]", b"[{}]", b"null", b"1", b'"x"', b"true", b'[["mediaType","x/y"]]'])
def test_what_is_not_an_object_is_refused(body: bytes) -> None:
    assert refused(body, ARTIFACT) == "not a JSON object"


@pytest.mark.parametrize(
    "text", [rb"\ud800", rb"\uDFFF", rb"\ud83d\ud83d\ude00", rb"\ude00\ud83d", rb"\ud83d\\\ude00", rb"\\\ud800"]
)
def test_a_lone_surrogate_is_refused(text: bytes) -> None:
    assert refused(b'{"a":"' + text + b'"}', ARTIFACT) == "has a lone surrogate"


@pytest.mark.parametrize(
    "text", [rb"\ud83d\ude00", rb"\uD83D\uDE00\ud83d\ude00", rb"\\ud800", rb"\\\\ud800", rb"\u00e9"]
)
def test_a_pair_of_surrogates_or_what_only_looks_like_one_passes(text: bytes) -> None:
    assert parse(b'{"a":"' + text + b'"}', ARTIFACT).media_type == ARTIFACT


def padded(size: int) -> bytes:
    return b'{"a":"' + b"x" * (size - 8) + b'"}'


def test_a_manifest_of_exactly_the_limit_passes() -> None:
    assert len(parse(padded(MAX_BYTES), ARTIFACT).body) == MAX_BYTES


def test_a_manifest_of_one_byte_more_is_refused() -> None:
    assert "larger" in refused(padded(MAX_BYTES + 1), ARTIFACT)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_ends_at_sixty_four_levels(opening: bytes, closing: bytes) -> None:
    deepest = b'{"a":' + opening * 63 + b"1" + closing * 63 + b"}"
    deeper = b'{"a":' + opening * 64 + b"1" + closing * 64 + b"}"
    assert parse(deepest, ARTIFACT).body == deepest
    assert refused(deeper, ARTIFACT) == "nested deeper than 64 levels"


@pytest.mark.parametrize("text", ["[" * 99, "{" * 99, '\\"' + "[" * 99, "\\\\" + '\\"' + "[" * 99 + "\\\\"])
def test_brackets_in_a_string_do_not_nest(text: str) -> None:
    body = b'{"a":"' + text.encode() + b'","b":"' + text.encode() + b'"}'
    assert parse(body, ARTIFACT).body == body


def test_a_string_can_not_hide_brackets_behind_an_escape() -> None:
    body = b'{"a":"\\\\","b":' + b"[" * 100 + b"]" * 100 + b',"c":"\\\\"}'
    assert "nested" in refused(body, ARTIFACT)


@pytest.mark.parametrize(
    "bomb",
    [
        pytest.param(b"[" * 100_000, id="100,000 levels"),
        pytest.param(b'{"a":' * 100_000, id="100,000 objects"),
        pytest.param(b"[" * MAX_BYTES, id="4 MiB of ["),
        pytest.param(b"{}" * (MAX_BYTES // 2), id="4 MiB of {}"),
        pytest.param(b"[" + b"{}," * (MAX_BYTES // 3 - 1) + b"{}]", id="4 MiB of objects"),
        pytest.param(b'"["[]' * (MAX_BYTES // 5), id="4 MiB of strings and arrays"),
        pytest.param(b'"' + b'\\"' * (MAX_BYTES // 2 - 1), id="4 MiB of escapes"),
        pytest.param(b'"' + b"\\ud83d" * (MAX_BYTES // 6 - 1), id="4 MiB of half characters"),
    ],
)
def test_a_bomb_of_the_largest_size_is_refused(bomb: bytes) -> None:
    refused(bomb, OCI_MANIFEST)


@given(st.binary() | st.text('{}[]",:\\ 1u').map(str.encode), st.sampled_from(["", ARTIFACT, OCI_INDEX]) | st.text())
def test_arbitrary_bytes_are_a_manifest_or_invalid(body: bytes, declared: str) -> None:
    for text in (body, b'{"layers":[],"a":' + body + b"}"):
        try:
            parsed = parse(text, declared)
        except ManifestInvalid:
            continue
        assert parsed.body == text
        assert parsed.digest == Digest.of(text)


SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON = st.recursive(SCALAR, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)
DESCRIPTOR = st.fixed_dictionaries(
    {},
    optional={
        "mediaType": st.just(LAYER) | JSON,
        "digest": st.sampled_from([str(ONE), str(TWO), "sha256:x"]) | JSON,
        "size": st.integers(-1, 3) | JSON,
    },
)
DOCUMENT = st.fixed_dictionaries(
    {},
    optional={
        "schemaVersion": st.just(2) | JSON,
        "mediaType": st.sampled_from([*INDEXES, *IMAGES]) | JSON,
        "manifests": st.lists(DESCRIPTOR | JSON) | JSON,
        "layers": st.lists(DESCRIPTOR | JSON) | JSON,
        "config": DESCRIPTOR | JSON,
        "annotations": JSON,
    },
)


@given(DOCUMENT, st.sampled_from(["", "text/plain", ARTIFACT, *INDEXES, *IMAGES]))
def test_whatever_passes_is_consistent_in_itself(document: dict[str, object], declared: str) -> None:
    body = encoded(document)
    try:
        parsed = parse(body, declared)
    except ManifestInvalid:
        return
    assert parsed.media_type in {declared, document.get("mediaType")} or declared in {"", "text/plain"}
    assert ("manifests" in document) + bool({"layers", "config"} & set(document)) <= 1
    assert ("manifests" in document) >= (parsed.media_type in INDEXES)
    assert ("manifests" not in document) >= (parsed.media_type in IMAGES)
    sizes = {one.digest: one.size for one in parsed.descriptors}
    assert all(sizes[one.digest] == one.size >= 0 for one in parsed.descriptors)


def slow_depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(slow_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(slow_depth, value), default=0)
    return 0


NASTY = st.text('[]{}"\\', max_size=6)
NESTED = st.recursive(
    SCALAR | NASTY, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NASTY, inner, max_size=4), max_leaves=25
)


@given(st.lists(NESTED) | st.dictionaries(NASTY, NESTED))
def test_the_depth_of_a_document_is_its_depth(document: object) -> None:
    text = encoded(document)
    assert manifest._depth(text.replace(rb"\\", b"__")) == slow_depth(document)
