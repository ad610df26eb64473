"""Links, tags and histories as they are read: whoever may write to a bucket can write anything there."""

import json

from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.digest import Digest
from proxy.oci.history import END
from proxy.stores.records import parse_history, parse_link, parse_record, parse_tag

DIGEST = str(Digest.of(b"", "sha256"))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(DIGEST)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
RECORDS = st.dictionaries(
    st.sampled_from(["size", "mediaType", "cached", "digest", "checked", "frozen", "moves"]),
    VALUES | st.lists(st.tuples(SCALARS, SCALARS)),
)


@given(
    st.binary()
    | (RECORDS | VALUES).map(lambda value: json.dumps(value).encode())
    | st.integers(0, 100_000).map(lambda depth: b'{"size":' + b"[" * depth)
    | st.integers(0, 6_000).map(lambda digits: b'{"size":' + b"9" * digits + b"}")
)
def test_whatever_a_record_holds_it_is_a_right_one_or_none(body: bytes) -> None:
    record = parse_record(body)
    if record is None:
        return
    link, tag = parse_link(record), parse_tag(record)
    assert link is None or link.size is None or 0 <= link.size < 2**63
    assert tag is None or 0 <= tag.checked < END
    assert all(0 <= move.at < END for move in parse_history(record))
