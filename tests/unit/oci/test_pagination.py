"""Pages of tags: what a client may ask, what an upstream links to, and what is cut here."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.errors import OciError, Problem
from proxy.oci.pagination import MAX_PAGE, Page, cut, next_link, parse_query, query_of
from tests.unit.oci.attempts import attempt

ANY_TEXT = st.text(st.characters(exclude_categories=()))
TAGS = st.lists(st.sampled_from(["a", "b", "c", "A", "B", "1.0", "1.10", "1.2", "_"]), max_size=8)


@pytest.mark.parametrize(
    ("pairs", "page"),
    [
        ([], Page()),
        ([("n", "10")], Page(10)),
        ([("n", "0")], Page(0)),
        ([("n", "007")], Page(7)),
        ([("n", "1000")], Page(1000)),
        ([("last", "1.2")], Page(None, "1.2")),
        ([("last", "")], Page(None, "")),
        ([("last", "b"), ("n", "5")], Page(5, "b")),
        ([("ns", "docker.io"), ("n", "5")], Page(5)),
        ([("ns", "\x00"), ("ns", "x" * 9999)], Page()),
        ([("next_page", "gAAAA="), ("n", "5")], Page(5, None, (("next_page", "gAAAA="),))),
        ([("x", "1"), ("x", "2"), ("N", "9")], Page(None, None, (("x", "1"), ("x", "2"), ("N", "9")))),
        ([("x", "")], Page(None, None, (("x", ""),))),
        ([("x", "y" * 2048)], Page(None, None, (("x", "y" * 2048),))),
    ],
)
def test_a_query_is_a_page(pairs: list[tuple[str, str]], page: Page) -> None:
    assert parse_query(pairs) == page


@pytest.mark.parametrize("n", ["1001", "1000000000", "9" * 2048])
def test_a_page_larger_than_the_largest_is_the_largest(n: str) -> None:
    assert parse_query([("n", n)]).n == MAX_PAGE


@pytest.mark.parametrize(
    "pairs",
    [
        [("n", "")],
        [("n", "-1")],
        [("n", "+1")],
        [("n", "abc")],
        [("n", "1e9")],
        [("n", "1.0")],
        [("n", " 1")],
        [("n", "1\n")],
        [("n", "\u0661")],
        [("n", "9" * 2049)],
        [("n", "1"), ("n", "1")],
        [("last", "a"), ("last", "a")],
        [("last", "a\n")],
        [("last", "caf\u00e9")],
        [("last", "a" * 2049)],
        [("", "x")],
        [("a-b", "x")],
        [("a1", "x")],
        [("a" * 33, "x")],
        [("x\n", "y")],
        [("\u00e9", "x")],
        [("x", "\x00")],
        [("x", "\x7f")],
        [("x", "\udcff")],
        [("x", "y" * 2049)],
    ],
)
def test_a_query_that_no_registry_would_understand_is_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(OciError) as caught:
        parse_query(pairs)
    assert caught.value.problem is Problem.BAD_REQUEST


@given(st.lists(st.tuples(st.sampled_from(["n", "last", "ns", "cursor"]) | ANY_TEXT, st.just("7") | ANY_TEXT)))
def test_an_arbitrary_query_is_a_page_within_bounds_or_refused(pairs: list[tuple[str, str]]) -> None:
    page = attempt(lambda _: parse_query(pairs), "")
    if isinstance(page, Problem):
        assert page is Problem.BAD_REQUEST
        return
    assert page.n is None or 0 <= page.n <= MAX_PAGE
    assert all(value.isprintable() and value.isascii() for _, value in page.rest)
    assert not {"n", "last", "ns"} & {key for key, _ in page.rest}


@pytest.mark.parametrize(
    ("headers", "target"),
    [
        (['</v2/a/tags/list?n=2&last=b>; rel="next"'], "/v2/a/tags/list?n=2&last=b"),
        (["</v2/a>; rel=next"], "/v2/a"),
        (["<https://r/v2/a>;rel=next"], "https://r/v2/a"),
        (["  <x>  ;\tREL =\t'next' , <y> ; Rel = NEXT"], "y"),
        (['<p>; rel="prev", <n>; rel="next"'], "n"),
        (['<p>; rel="prev"', '<n>; rel="next"'], "n"),
        (['<n>; rel="last next up"'], "n"),
        (['<n>; title="a, <b>; rel=\\"x\\""; rel="next"'], "n"),
        (["<n>; title; rel=next"], "n"),
        (["<n>; title=; rel=next"], "n"),
        (["<n>;; rel=next;"], "n"),
        (["<?a=1,2;b=3>; rel=next"], "?a=1,2;b=3"),
        (["< n >; rel=next"], "n"),
        (["<one>; rel=next, <two>; rel=next"], "one"),
        (["garbage, <n>; rel=next"], "n"),
    ],
)
def test_the_next_page_is_where_the_link_points(headers: list[str], target: str) -> None:
    assert next_link(headers) == target


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        ["/v2/a; rel=next"],
        ["<a>"],
        ["<a>; rel"],
        ["<a>; rel="],
        ["<a>; rel=prev"],
        ["<a>; rel=nextpage"],
        ["<a>; rel=prev; rel=next"],
        ["<a>; rev=next"],
        ["<>; rel=next"],
        ["<a; rel=next"],
        ["<a> rel=next"],
        ['<a>; title="; rel=next"'],
        ['<a>; title="<b>; rel=next"'],
        ["<a>", "; rel=next"],
    ],
)
def test_what_links_to_no_next_page_is_none(headers: list[str]) -> None:
    assert next_link(headers) is None


@given(st.lists(ANY_TEXT | st.text('<>;,="\\ arelnxt')))
def test_arbitrary_links_never_raise(headers: list[str]) -> None:
    target = next_link(headers)
    assert target is None or not {"<", ">"} & set(target)


@given(st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs", "Z", "C"]), min_size=1))
def test_any_target_reads_back(target: str) -> None:
    assert next_link([f'<{target}>; rel="next"']) == target


@pytest.mark.parametrize("seed", ["<", '<a>;t="', "<a>;", "; ", '"', '\\"', "<a", "a", " ", "<a>;rel=", ";t="])
def test_a_long_hostile_link_is_read_to_its_end(seed: str) -> None:
    # Were the grammar quadratic, this would run into the time limit of the whole suite.
    assert next_link([seed * 20_000, "<n>;rel=next"]) == "n"


@pytest.mark.parametrize(
    ("link", "query"),
    [
        ("/v2/a/tags/list?n=2&last=b", (("n", "2"), ("last", "b"))),
        ("https://r:5000/v2/a?last=x%2Fy+z&n=", (("last", "x/y z"), ("n", ""))),
        ("?a=1&a=2", (("a", "1"), ("a", "2"))),
        ("/v2/a?a=1#?b=2", (("a", "1"),)),
        ("/v2/a?a=b?c=d", (("a", "b?c=d"),)),
        ("/v2/a", ()),
        ("/v2/a?", ()),
        ("/v2/a#x?a=1", ()),
        ("http://[broken?a=1", (("a", "1"),)),
        ("", ()),
    ],
)
def test_the_query_of_a_link_is_decoded(link: str, query: tuple[tuple[str, str], ...]) -> None:
    assert query_of(link) == query


@given(ANY_TEXT)
def test_an_arbitrary_link_has_a_query_and_never_raises(text: str) -> None:
    query_of(text)
    query_of(f"/v2/a?{text}")


def test_without_a_page_everything_is_shown() -> None:
    assert cut(["b", "a"], Page()) == (["b", "a"], False)


def test_a_page_shows_its_number_and_says_that_more_follows() -> None:
    assert cut(["a", "b", "c"], Page(2)) == (["a", "b"], True)
    assert cut(["a", "b", "c"], Page(3)) == (["a", "b", "c"], False)
    assert cut(["a", "b", "c"], Page(0)) == ([], True)
    assert cut([], Page(0)) == ([], False)


def test_a_page_begins_behind_the_last_tag_seen() -> None:
    assert cut(["a", "b", "c", "d"], Page(2, "b")) == (["c", "d"], False)
    assert cut(["a", "b", "c", "d"], Page(1, "b")) == (["c"], True)
    assert cut(["a", "b"], Page(1, "b")) == ([], False)


def test_the_position_of_the_last_tag_counts_in_either_order() -> None:
    assert cut(["A", "b", "C", "d"], Page(None, "C")) == (["d"], False)
    assert cut(["A", "C", "b", "d"], Page(None, "C")) == (["b", "d"], False)
    assert cut(["b", "c", "A", "a"], Page(None, "a")) == (["b", "c"], False)  # in neither: it is put in order first


@pytest.mark.parametrize("last", ["0", "1.3", "z"])
@pytest.mark.parametrize("tags", [["1.0", "1.10", "1.2", "A", "a"], ["b", "a"]])
def test_a_last_tag_that_is_not_there_drops_nothing_since_upstream_may_have_heeded_it(
    tags: list[str], last: str
) -> None:
    assert cut(tags, Page(None, last)) == (tags, False)


def test_a_last_tag_that_is_empty_drops_nothing() -> None:
    assert cut(["b", "a"], Page(None, "")) == (["b", "a"], False)


def test_a_list_is_not_changed_by_cutting_it() -> None:
    tags = ["a", "b", "c"]
    cut(tags, Page(1, "a"))
    assert tags == ["a", "b", "c"]


@given(TAGS, st.none() | st.integers(0, 9), st.none() | st.sampled_from(["a", "A", "1.1", "", "zz"]))
def test_a_page_is_no_longer_than_asked_and_what_is_left_out_is_said(
    tags: list[str], n: int | None, last: str | None
) -> None:
    rest, more = cut(tags, Page(None, last))
    assert not more
    assert set(rest) <= set(tags)
    assert last in tags or rest == tags
    shown, more = cut(tags, Page(n, last))
    assert len(shown) == (len(rest) if n is None else min(n, len(rest)))
    assert more == (len(shown) < len(rest))


@given(TAGS, st.integers(1, 4))
def test_a_client_that_walks_through_the_pages_gets_to_the_end(tags: list[str], n: int) -> None:
    seen: list[str] = []
    shown, more = cut(tags, Page(n))
    for _ in tags:
        seen += shown
        if not more:
            break
        shown, more = cut(tags, Page(n, shown[-1]))
    assert not more
    assert set(seen) <= set(tags)
    if len(set(tags)) == len(tags):
        assert sorted(seen) == sorted(tags)


@given(st.lists(st.text("abAB19", min_size=1), unique=True, min_size=2))
def test_a_list_that_was_not_cut_is_put_into_an_order_that_is_allowed(tags: list[str]) -> None:
    shown, more = cut(tags, Page(len(tags) - 1))
    folded = [tag.lower() for tag in shown]
    assert more
    assert shown == sorted(shown) or folded == sorted(folded)


@pytest.mark.parametrize("tags", [["v10", "v11"], ["b", "a"], []])
def test_what_an_upstream_cut_itself_is_left_whatever_its_order(tags: list[str]) -> None:
    assert cut(tags, Page(2, "v9")) == (tags, False)
