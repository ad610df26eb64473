"""Lifecycle policies: Amazon ECR's grammar and its worked examples, what a cache has besides, and what is refused."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.lifecycle import MAX_TEXT, Policy, PolicyInvalid, Subject, evaluate, parse

DAY = 86400
NOW = 1_800_000_000.0
AB = [("A", ["beta-1", "prod-1"], 10), ("B", ["beta-2", "prod-2"], 9), ("C", ["beta-3"], 8)]
TAGS = [
    ("A", ["alpha-1"], 12), ("B", ["beta-1"], 11), ("C", ["alpha-2", "beta-2"], 10), ("D", ["alpha-3"], 4),
    ("E", ["beta-3"], 3), ("F", ["alpha-4", "beta-4"], 2),
]  # fmt: skip
ALL = [("A", ["alpha-1"], 4), ("B", ["beta-1"], 3), ("C", [], 2), ("D", ["alpha-2"], 1)]


def rule(priority: int, status: str, number: int, *patterns: str, count: str = "imageCountMoreThan") -> dict[str, Any]:
    """A rule as an operator writes it; `patterns` are prefixes unless they have a star."""
    key = "tagPatternList" if any("*" in pattern for pattern in patterns) else "tagPrefixList"
    unit = {} if count == "imageCountMoreThan" else {"countUnit": "days"}
    return {
        "rulePriority": priority,
        "selection": {
            "tagStatus": status, **({key: list(patterns)} if patterns else {}), "countType": count, **unit,
            "countNumber": number,
        },
        "action": {"type": "expire"},
    }  # fmt: skip


def policy(*rules: dict[str, Any]) -> Policy:
    """The policy of these rules."""
    return parse(json.dumps({"rules": rules}))


def taken(found: Policy, images: Sequence[tuple[str, list[str], float]]) -> str:
    """Which images go, by their letters, each with the priority of its rule; ages are days."""
    subjects = [Subject(tags, NOW - age * DAY, NOW - age * DAY) for _, tags, age in images]
    answers = zip(images, evaluate(found, subjects, NOW), strict=True)
    return " ".join(f"{name}{one.rule.priority}" for (name, _, _), one in answers if one is not None)


@pytest.mark.parametrize(
    ("rules", "images", "gone"),
    [
        ([rule(1, "tagged", 1, "prod"), rule(2, "tagged", 1, "beta")], AB, "A1"),
        ([rule(1, "tagged", 1, "beta"), rule(2, "tagged", 1, "prod")], AB, "A1 B1"),
        ([rule(1, "tagged", 5, "alpha", "beta", count="sinceImagePushed")], TAGS, "C1"),
        ([rule(1, "tagged", 1, "alpha*", "beta*")], TAGS, "C1"),
        ([rule(1, "tagged", 1, "alpha"), rule(2, "any", 1)], ALL, "A1 B2 C2"),
        (
            [rule(1, "tagged", 1, "alpha"), rule(2, "untagged", 1, count="sinceImagePushed"), rule(3, "any", 1)],
            ALL,
            "A1 B3 C2",
        ),
    ],
    ids=["rules A", "rules B", "tags A", "tags B", "all A", "all B"],
)
def test_the_examples_of_ecrs_guide_come_out_as_it_says(
    rules: list[dict[str, Any]], images: list[tuple[str, list[str], float]], gone: str
) -> None:
    assert taken(policy(*rules), images) == gone
    assert taken(policy(*reversed(rules)), images) == gone  # the priorities decide, and not the order of the text


def test_a_pattern_is_for_the_whole_tag_and_a_prefix_for_its_beginning() -> None:
    images = [("A", ["v1.2-rc1"], 9.0), ("B", ["v1.2"], 9), ("C", ["old-v1.2-rc1"], 9), ("D", ["V1.2-rc1"], 9)]
    assert taken(policy(rule(1, "tagged", 1, "v*-rc*", count="sinceImagePushed")), images) == "A1"
    assert taken(policy(rule(1, "tagged", 1, "v1.2", count="sinceImagePushed")), images) == "A1 B1"


def test_what_nobody_has_pulled_goes_whenever_it_was_cached_and_what_was_pulled_stays() -> None:
    found = policy(rule(1, "any", 30, count="sinceImagePulled"))
    images = [
        Subject(["a"], NOW - 90 * DAY, NOW - 31 * DAY),
        Subject(["b"], NOW - 90 * DAY, NOW - 29 * DAY),
        Subject(["c"], NOW - 31 * DAY, 0.0),  # never pulled: from when it was cached
        Subject(["d"], NOW - 29 * DAY, 0.0),
    ]
    answers = evaluate(found, images, NOW)
    assert [one is not None for one in answers] == [True, False, True, False]
    assert answers[0] is not None
    assert answers[0].why == "not pulled for 31.0 days, more than 30"


def test_hours_are_counted_and_a_clock_that_is_behind_takes_nothing() -> None:
    entry = rule(1, "any", 2, count="sinceImageCached")
    entry["selection"]["countUnit"] = "hours"
    images = [Subject([], NOW - hours * 3600, 0.0) for hours in (1, 2, 3, -5)]
    assert [one and one.why for one in evaluate(policy(entry), images, NOW)] == [
        None, None, "cached for 3.0 hours, more than 2", None,
    ]  # fmt: skip


def test_the_newest_stay_and_each_that_goes_is_told_its_place() -> None:
    found = policy(rule(1, "any", 2))
    images = [Subject([], NOW - age, 0.0) for age in (40, 10, 30, 20)]
    assert [one and one.why for one in evaluate(found, images, NOW)] == [
        "number 4 from the newest, and 2 may stay", None, "number 3 from the newest, and 2 may stay", None,
    ]  # fmt: skip


def test_a_description_is_one_line() -> None:
    entry = {**rule(1, "any", 2), "description": "keep\ntwo\x1b[31m\ud800"}
    assert policy(entry).rules[0].description == "keep two [31m "


# What is refused, and where

KEYS = "tagStatus, tagPatternList, tagPrefixList, storageClass, countType, countUnit, countNumber"
LETTERS = 'what tags have, letters, digits and "_.-"'
TYPES = '"imageCountMoreThan" or "sinceImagePushed" or "sinceImagePulled" or "sinceImageCached"'
GOOD = json.dumps({"rules": [rule(1, "any", 2)]})


def changed(place: str, value: object) -> str:
    """A policy with one rule for "any" and one for prefixes, and something else at a place; None: nothing."""
    document: Any = {"rules": [rule(1, "tagged", 3, "v"), rule(9, "any", 30, count="sinceImagePulled")]}
    *path, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    inner = document
    for part in path:
        inner = inner[part]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no JSON: Expecting value at line 1, column 1"),
        ('{"rules":\n[}', "is no JSON: Expecting value at line 2, column 2"),
        ("[" * 20_000, "is no JSON that anybody would mean"),
        ("1" * 5_000, "is no JSON that anybody would mean"),
        ('{"rules": NaN}', "is no JSON that anybody would mean"),
        (" " * (MAX_TEXT + 1), "is longer than 30,720 characters"),
        ("[]", "must be an object, in {braces}"),
        ("{}", "rules: is required"),
        ('{"rules": []}', "rules: must be a list of 1 to 50 rules"),
        ('{"rules": [1]}', "rules[0]: must be an object, in {braces}"),
        ('{"rule": [1]}', 'no such key: "rule"; the keys here are rules'),
        (
            json.dumps({"rules": [rule(n, "tagged", 1, f"p{n}") for n in range(1, 52)]}),
            "rules: must be a list of 1 to 50 rules",
        ),
        (GOOD.replace('"rules"', '"rules": [], "rules"'), "rules: stands there twice"),
        (GOOD.replace('"countN', '"countNumber": 1, "countN'), "rules[0].selection.countNumber: stands there twice"),
        (changed("rules.1.rulePriority", None), "rules[1].rulePriority: is required"),
        (
            changed("rules.1.rulePriority", 0),
            "rules[1].rulePriority: must be a whole number from 1 to 999,999,999 (it is 0)",
        ),
        (
            changed("rules.1.selection.countNumber", True),
            "rules[1].selection.countNumber: must be a whole number from 1 to 999,999,999 (it is true)",
        ),
        (
            changed("rules.1.selection.countNumber", 3.0),
            "rules[1].selection.countNumber: must be a whole number from 1 to 999,999,999 (it is 3.0)",
        ),
        (
            changed("rules.1.selection.countNumber", "x" * 99),
            f'rules[1].selection.countNumber: must be a whole number from 1 to 999,999,999 (it is "{"x" * 36}...)',
        ),
        (changed("rules.0.description", 7), "rules[0].description: must be text, in quotes"),
        (changed("rules.0.selection", []), "rules[0].selection: must be an object, in {braces}"),
        (
            changed("rules.0.selection.tagStatus", "Tagged"),
            'rules[0].selection.tagStatus: must be "tagged" or "untagged" or "any" (it is "Tagged")',
        ),
        (
            changed("rules.0.selection.tagPattern", ["v"]),
            f'rules[0].selection: no such key: "tagPattern"; the keys here are {KEYS}',
        ),
        (
            changed("rules.0.selection.tagPrefixList", None),
            'rules[0].selection: "tagged" needs either tagPatternList or tagPrefixList',
        ),
        (
            changed("rules.0.selection.tagPatternList", ["v*"]),
            'rules[0].selection: "tagged" needs either tagPatternList or tagPrefixList',
        ),
        (
            changed("rules.1.selection.tagPatternList", ["v*"]),
            'rules[1].selection.tagPatternList: goes with "tagged" only: leave it out for "any"',
        ),
        (
            changed("rules.0.selection.tagPrefixList", []),
            'rules[0].selection.tagPrefixList: must be a list of one or more, such as ["release-"]',
        ),
        (
            changed("rules.0.selection.tagPrefixList", ["v", "a*"]),
            f"rules[0].selection.tagPrefixList[1]: must be of {LETTERS}",
        ),
        (
            json.dumps({"rules": [rule(1, "tagged", 1, "[a]*")]}),
            f'rules[0].selection.tagPatternList[0]: must be of {LETTERS}, and "*" for anything',
        ),
        (
            json.dumps({"rules": [rule(1, "tagged", 1, "a*b*c*d*e*")]}),
            'rules[0].selection.tagPatternList[0]: has more than 4 "*"',
        ),
        (
            changed("rules.0.selection.storageClass", "archive"),
            'rules[0].selection.storageClass: can be "standard" only: a cache has no archive',
        ),
        (
            changed("rules.0.selection.countType", "sinceImageTransitioned"),
            "rules[0].selection.countType: a cache has no archive, so that nothing is ever moved there",
        ),
        (
            changed("rules.0.selection.countType", "sinceImagePulle"),
            f'rules[0].selection.countType: must be {TYPES} (it is "sinceImagePulle")',
        ),
        (
            changed("rules.0.selection.countUnit", "days"),
            "rules[0].selection.countUnit: does not go with imageCountMoreThan: leave it out",
        ),
        (changed("rules.1.selection.countUnit", None), "rules[1].selection.countUnit: is required"),
        (
            changed("rules.1.selection.countUnit", "weeks"),
            'rules[1].selection.countUnit: must be "days" or "hours" (it is "weeks")',
        ),
        (
            changed("rules.0.action.type", "transition"),
            'rules[0].action.type: a cache has no archive to move images to: write "expire"',
        ),
        (changed("rules.0.action.type", "delete"), 'rules[0].action.type: must be "expire" (it is "delete")'),
        (
            changed("rules.0.action.targetStorageClass", "archive"),
            "rules[0].action.targetStorageClass: goes with transitions only, and a cache has none",
        ),
        (
            json.dumps({"rules": [rule(1, "tagged", 1, "v"), rule(1, "tagged", 1, "w")]}),
            "rules[1].rulePriority: rules[0] has 1 as well",
        ),
        (
            json.dumps({"rules": [rule(2, "tagged", 1, "v"), rule(1, "any", 1)]}),
            'rules[1].rulePriority: a rule for "any" must have the highest number of all',
        ),
        (
            json.dumps({"rules": [rule(1, "untagged", 1), rule(2, "untagged", 3)]}),
            "rules[1].selection: rules[0] selects the same images",
        ),
        (
            json.dumps({"rules": [rule(1, "tagged", 1, "a", "b"), rule(2, "tagged", 3, "b*", "a*")]}),
            "rules[1].selection: rules[0] selects the same images",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, said: str) -> None:
    with pytest.raises(PolicyInvalid) as refused:
        parse(text)
    assert str(refused.value) == said


# What holds for every policy

WORDS = st.sampled_from(["a", "b", "ab", "v1", "v1-rc", "v2"])
SELECTIONS = st.one_of(
    st.just(("untagged", ())),
    st.tuples(
        st.just("tagged"), st.lists(st.sampled_from(["a", "v", "v1", "*", "*-rc", "a*b"]), min_size=1).map(tuple)
    ),
    st.just(("any", ())),
)
COUNTS = st.sampled_from(["imageCountMoreThan", "sinceImagePushed", "sinceImagePulled"])
SUBJECTS = st.lists(
    st.builds(
        Subject,
        st.lists(WORDS, unique=True),
        st.floats(NOW - 9 * DAY, NOW),
        st.floats(NOW - 9 * DAY, NOW),
    ),
    max_size=12,
)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Policies of up to five rules that select different images, "any" last."""
    drawn = draw(st.lists(SELECTIONS, min_size=1, max_size=5, unique_by=lambda one: (one[0], frozenset(one[1]))))
    drawn.sort(key=lambda one: one[0] == "any")
    rules = []
    for priority, (status, patterns) in enumerate(drawn, 1):
        starred = [pattern if "*" in pattern else f"{pattern}*" for pattern in patterns]
        rules.append(rule(priority, status, draw(st.integers(1, 6)), *starred, count=draw(COUNTS)))
    try:
        return policy(*rules)
    except PolicyInvalid:  # two spellings of the same patterns
        return policy(rules[0])


@given(policies(), SUBJECTS)
def test_an_image_falls_to_the_first_rule_that_selects_it_or_to_none(found: Policy, images: list[Subject]) -> None:
    for image, answer in zip(images, evaluate(found, images, NOW), strict=True):
        first = next((one for one in found.rules if one.selects(image.tags)), None)
        assert answer is None or answer.rule is first


@given(policies(), SUBJECTS, st.randoms())
def test_the_order_of_the_images_decides_nothing_but_ties(found: Policy, images: list[Subject], chance: Any) -> None:
    distinct = {image.cached: image for image in images}
    mixed = list(distinct.values())
    chance.shuffle(mixed)
    one = dict(zip(distinct, evaluate(found, list(distinct.values()), NOW), strict=True))
    other = dict(zip([image.cached for image in mixed], evaluate(found, mixed, NOW), strict=True))
    assert one == other


@given(policies(), SUBJECTS)
def test_an_older_image_never_stays_where_a_newer_one_goes_by_the_same_rule(
    found: Policy, images: list[Subject]
) -> None:
    answers = evaluate(found, images, NOW)
    for index, newer in enumerate(images):
        taken_by = answers[index]
        if taken_by is None:
            continue
        for other, older in enumerate(images):
            is_older = older.cached < newer.cached and older.pulled < newer.pulled
            same = next(one for one in found.rules if one.selects(newer.tags)) == next(
                (one for one in found.rules if one.selects(older.tags)), None
            )
            assert not (is_older and same) or answers[other] is not None


def told(value: object) -> str:
    """What is said of a policy that is refused; nothing of one that is not."""
    try:
        parse(json.dumps(value))
    except PolicyInvalid as error:
        return str(error)
    return ""


NAMES = st.sampled_from(["rules", "selection", "action", "rulePriority", "type", "tagStatus", "x\n"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
)


@given(JSON)
def test_whatever_is_json_is_a_policy_or_refused_in_a_line(document: object) -> None:
    for value in (document, {"rules": document}, {"rules": [document]}):
        assert told(value).isprintable()


@given(st.text())
def test_what_is_no_json_is_refused_in_a_line(text: str) -> None:
    assert told({"rules": [{"rulePriority": text}]}).isprintable()
    with pytest.raises(PolicyInvalid):
        parse(text)
