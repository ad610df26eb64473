"""Ranges: half-open, within the file, and ignored rather than refused."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.oci.byterange import RangeSpec, Span, content_range, parse, parse_content_range, unsatisfied

OFFSET = st.integers(0, 2**63 - 2)
SMALL = st.integers(0, 40)


@pytest.mark.parametrize(
    ("header", "spec"),
    [
        ("bytes=5-9", RangeSpec(5, 9)),
        ("bytes=5-", RangeSpec(5, None)),
        ("bytes=-7", RangeSpec(None, 7)),
        ("bytes=0-0", RangeSpec(0, 0)),
        ("bytes=-0", RangeSpec(None, 0)),
        ("Bytes=1-2", RangeSpec(1, 2)),
        ("BYTES=007-0009", RangeSpec(7, 9)),
        ("bytes=0-9999999999999999999", RangeSpec(0, 9999999999999999999)),
    ],
)
def test_a_single_range_is_read(header: str, spec: RangeSpec) -> None:
    assert parse([header]) == spec


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=--1",
        "bytes=1--2",
        "bytes=9-5",
        "bytes=500-0",
        "bytes=a-b",
        "bytes=0x1-0x2",
        "bytes=+1-2",
        "bytes=1_0-2_0",
        "bytes=1.5-2",
        "bytes = 1-2",
        "bytes=1 - 2",
        "bytes=0-1\n",
        "bytes=0-1,",
        "bytes=0-1,3-4",
        "bytes=0-1, -2",
        "items=0-1",
        "kilobytes=0-1",
        "bytes:0-1",
        "bytes=\u0661-\u0662",  # Arabic-Indic digits
        "bytes=\u00b2-",
        "\u212abytes=0-1",
        f"bytes=0-{'9' * 20}",
        f"bytes={'0' * 20}-",
        f"bytes=-{'9' * 5000}",
    ],
)
def test_an_odd_range_is_ignored_and_not_an_error(header: str) -> None:
    assert parse([header]) is None


def test_no_range_or_a_repeated_one_is_ignored() -> None:
    assert parse([]) is None
    assert parse(["bytes=0-1", "bytes=0-1"]) is None
    assert parse(["bytes=0-1", ""]) is None


@given(st.lists(st.text(st.characters(exclude_categories=()))))
def test_arbitrary_headers_never_raise(headers: list[str]) -> None:
    parse(headers)


@given(st.text("bytes=0123456789-, "))
def test_text_that_nearly_is_a_range_never_raises(text: str) -> None:
    parse([text])
    spec = parse([f"bytes={text}"])
    assert spec is None or spec.resolve(0) is None


@pytest.mark.parametrize(
    ("spec", "size", "span"),
    [
        (RangeSpec(0, 0), 10, Span(0, 1)),
        (RangeSpec(5, 9), 10, Span(5, 10)),
        (RangeSpec(9, None), 10, Span(9, 10)),
        (RangeSpec(0, None), 10, Span(0, 10)),
        (RangeSpec(None, 1), 10, Span(9, 10)),
    ],
)
def test_a_range_within_the_file_is_what_it_says(spec: RangeSpec, size: int, span: Span) -> None:
    assert spec.resolve(size) == span


def test_a_suffix_longer_than_the_file_is_the_whole_file() -> None:
    assert RangeSpec(None, 500).resolve(100) == Span(0, 100)


def test_a_last_byte_beyond_the_end_is_clipped() -> None:
    assert RangeSpec(90, 9999999999999999999).resolve(100) == Span(90, 100)


@pytest.mark.parametrize("first", [100, 101, 9999999999999999999])
def test_a_first_byte_beyond_the_end_is_unsatisfiable(first: int) -> None:
    assert RangeSpec(first, None).resolve(100) is None
    assert RangeSpec(first, first).resolve(100) is None


@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_suffix_of_no_bytes_is_unsatisfiable(size: int) -> None:
    assert RangeSpec(None, 0).resolve(size) is None


@pytest.mark.parametrize("spec", [RangeSpec(0, None), RangeSpec(0, 0), RangeSpec(None, 1), RangeSpec(7, 8)])
def test_an_empty_file_satisfies_no_range(spec: RangeSpec) -> None:
    assert spec.resolve(0) is None


@given(SMALL, SMALL, SMALL)
def test_a_range_means_the_bytes_that_python_would_slice(first: int, more: int, size: int) -> None:
    body = bytes(range(size))
    for header, wanted in (
        (f"bytes={first}-{first + more}", body[first : first + more + 1]),
        (f"bytes={first}-", body[first:]),
        (f"bytes=-{more}", body[-more:] if more else b""),
    ):
        spec = parse([header])
        assert spec is not None
        span = spec.resolve(size)
        assert (b"" if span is None else body[span.start : span.stop]) == wanted
        assert span is None or span.length == len(span) == len(wanted) > 0


@given(st.none() | OFFSET, OFFSET, OFFSET)
def test_a_resolved_range_stays_within_the_file(first: int | None, last: int, size: int) -> None:
    span = RangeSpec(first, last).resolve(size) if first is None or first <= last else None
    assert span is None or 0 <= span.start < span.stop <= size


@given(OFFSET, OFFSET)
def test_the_specification_of_a_span_resolves_to_that_span(one: int, other: int) -> None:
    span = Span(min(one, other), max(one, other) + 1)
    spec = parse([f"bytes={span.start}-{span.stop - 1}"])
    assert spec is not None
    assert spec.resolve(span.stop) == span


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (2, 1), (-2, -1)])
def test_a_span_that_runs_backwards_can_not_be_made(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="not a span"):
        Span(start, stop)


def test_a_span_may_be_empty() -> None:
    assert Span(5, 5).length == 0


def test_content_range_counts_its_last_byte() -> None:
    assert content_range(Span(0, 10), 100) == "bytes 0-9/100"


def test_an_unsatisfied_range_is_told_the_size() -> None:
    assert unsatisfied(100) == "bytes */100"


@given(OFFSET, OFFSET, OFFSET)
def test_a_content_range_reads_back(start: int, length: int, rest: int) -> None:
    assume(length > 0 and start + length + rest < 2**63)
    span = Span(start, start + length)
    assert parse_content_range(content_range(span, span.stop + rest)) == (span, span.stop + rest)


def test_a_content_range_may_not_know_the_whole_size() -> None:
    assert parse_content_range("bytes 5-9/*") == (Span(5, 10), None)


def test_a_content_range_may_have_its_unit_in_any_case() -> None:
    assert parse_content_range(" Bytes 0-0/1 ") == (Span(0, 1), 1)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes",
        "bytes */100",
        "bytes */*",
        "bytes 0-9",
        "bytes 0-9/",
        "bytes -9/10",
        "bytes 0-/10",
        "bytes -500-9/10",
        "bytes 0-10/10",
        "bytes 5-4/10",
        "bytes 6-4/10",
        "bytes 0-0/0",
        "bytes=0-9/10",
        "bytes 0-9/10, 20-29/100",
        "items 0-9/10",
        "bytes 0-9/10\n",
        "bytes 0-\u0669/10",
        f"bytes 0-{2**63 - 1}/*",
        f"bytes 0-{'9' * 19}/*",
        f"bytes 0-9/{'9' * 5000}",
    ],
)
def test_a_content_range_that_says_nothing_possible_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match=r"Content-Range|not a span"):
        parse_content_range(header)


@given(st.text(st.characters(exclude_categories=())) | st.text("bytes 0123456789-/*"))
def test_an_arbitrary_content_range_is_a_span_or_a_value_error(text: str) -> None:
    for header in (text, f"bytes {text}"):
        try:
            span, size = parse_content_range(header)
        except ValueError:
            continue
        assert 0 < len(span) <= span.stop <= (2**63 if size is None else size)
