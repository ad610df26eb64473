"""Lifecycle policies in Amazon ECR's grammar: which images are to go, by which rule, and why.

What a cache needs besides: images may expire by their last pull (`sinceImagePulled`), and ages may be in hours. What
was pushed is here what was cached. Times are unix seconds, and `now` is an argument.
"""

import enum
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NoReturn

MAX_TEXT = 30_720  # characters of a policy; this and the next two are ECR's limits
MAX_RULES = 50
MAX_STARS = 4  # of a pattern
MAX_NUMBER = 999_999_999  # nobody means more, and it can be told in a line

_TAG_PATTERN = re.compile(r"[a-zA-Z0-9_.*-]{1,128}", re.ASCII)
_TAG_PREFIX = re.compile(r"[a-zA-Z0-9_.-]{1,128}", re.ASCII)
_UNITS = {"days": 86400, "hours": 3600}

Status = Literal["tagged", "untagged", "any"]
Unit = Literal["days", "hours"]


class PolicyInvalid(ValueError):
    """What is wrong with a policy, after the place where it is wrong."""


class Count(enum.Enum):
    """What a rule counts."""

    IMAGES = "imageCountMoreThan"
    CACHED = "sinceImagePushed"
    PULLED = "sinceImagePulled"


_COUNTS = {count.value: count for count in Count} | {"sinceImageCached": Count.CACHED}


@dataclass(frozen=True, slots=True)
class Subject:
    """An image as a policy sees it: its tags, when it was cached, and when it was last pulled."""

    tags: Sequence[str]
    cached: float
    pulled: float


@dataclass(frozen=True, slots=True)
class Rule:
    """Which images of a repository are to go: of those that it selects, what is beyond a number or an age."""

    priority: int
    description: str
    status: Status
    patterns: tuple[str, ...]  # of tags; each must match one of an image's tags
    count: Count
    number: int
    unit: Unit = "days"

    def __str__(self) -> str:
        """As a sentence without its stop: what goes."""
        of = {"tagged": f"images with tags like {' and '.join(self.patterns)}", "untagged": "images without a tag"}
        what = of.get(self.status, "images")
        match self.count:
            case Count.IMAGES:
                return f"{what} go, but the newest {self.number:,}"
            case Count.CACHED:
                return f"{what} go, once cached for more than {self.number:,} {self.unit}"
            case Count.PULLED:
                return f"{what} go, once not pulled for more than {self.number:,} {self.unit}"

    def selects(self, tags: Sequence[str]) -> bool:
        """Whether an image with these tags is this rule's business."""
        if self.status == "untagged":
            return not tags
        return all(any(fnmatchcase(tag, pattern) for tag in tags) for pattern in self.patterns)

    def beyond(self, images: Sequence[tuple[int, Subject]], now: float) -> Iterator[tuple[int, str]]:
        """Those of the selected images that are to go, and why."""
        if self.count is Count.IMAGES:
            newest_first = sorted(images, key=lambda one: -one[1].cached)
            for place, (index, _) in enumerate(newest_first[self.number :], self.number + 1):
                yield index, f"number {place} from the newest, and {self.number:,} may stay"
            return
        verb, second = "not pulled" if self.count is Count.PULLED else "cached", _UNITS[self.unit]
        for index, image in images:
            age = now - (max(image.pulled, image.cached) if self.count is Count.PULLED else image.cached)
            if age > self.number * second:
                yield index, f"{verb} for {age / second:,.1f} {self.unit}, more than {self.number:,}"


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules, the most important first."""

    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Taken:
    """The rule that an image falls to, and why."""

    rule: Rule
    why: str


def evaluate(policy: Policy, images: Sequence[Subject], now: float) -> list[Taken | None]:
    """What takes each of a repository's images; None where it stays.

    What a rule selects is out of the reach of the rules below it, even where it stays; but they count it all the same,
    as if the ones above had taken nothing.
    """
    found: list[Taken | None] = [None] * len(images)
    reached: set[int] = set()
    for rule in policy.rules:
        selected = [(index, image) for index, image in enumerate(images) if rule.selects(image.tags)]
        for index, why in rule.beyond(selected, now):
            if index not in reached:
                found[index] = Taken(rule, why)
        reached.update(index for index, _ in selected)
    return found


# Reading a policy


@dataclass(frozen=True, slots=True)
class _Object:
    """A JSON object, its keys in the order that they were written, and the place where it stands."""

    place: str
    values: dict[str, object]

    def at(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key

    def fail(self, key: str, text: str) -> NoReturn:
        raise PolicyInvalid(f"{self.at(key)}: {text}")

    def word(self, key: str, words: Sequence[str]) -> str:
        """One of these words."""
        value = self.required(key)
        if not isinstance(value, str) or value not in words:
            self.fail(key, f"must be {' or '.join(map(_quoted, words))} (it is {_quoted(value)})")
        return value

    def number(self, key: str) -> int:
        """A whole number from 1 on."""
        value = self.required(key)
        if type(value) is not int or not 1 <= value <= MAX_NUMBER:  # a bool is an int to isinstance
            self.fail(key, f"must be a whole number from 1 to {MAX_NUMBER:,} (it is {_quoted(value)})")
        return value

    def inner(self, key: str, keys: Sequence[str]) -> "_Object":
        """An object with none but these keys."""
        return _object(self.required(key), self.at(key), keys)

    def required(self, key: str) -> object:
        """What stands at a key that must be there."""
        if key not in self.values:
            self.fail(key, "is required")
        return self.values[key]


def parse(text: str) -> Policy:
    """Read a policy. Raises PolicyInvalid, which names the place of the first thing that is wrong."""
    if len(text) > MAX_TEXT:
        raise PolicyInvalid(f"is longer than {MAX_TEXT:,} characters")
    try:
        document = json.loads(text, object_pairs_hook=tuple, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise PolicyInvalid(f"is no JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError):
        raise PolicyInvalid("is no JSON that anybody would mean") from None
    listed = _object(document, "", ("rules",)).required("rules")
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_RULES:
        raise PolicyInvalid(f"rules: must be a list of 1 to {MAX_RULES} rules")
    rules = [_rule(entry, f"rules[{index}]") for index, entry in enumerate(listed)]
    _check_together(rules)
    return Policy(tuple(sorted(rules, key=lambda rule: rule.priority)))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _object(value: object, place: str, keys: Sequence[str]) -> _Object:
    """Check an object's keys. json.loads hands it over as a tuple of pairs, where a list is a list."""
    before = f"{place}: " if place else ""
    if not isinstance(value, tuple):
        raise PolicyInvalid(f"{before}must be an object, in {{braces}}")
    found = _Object(place, {})
    for key, inner in value:
        if key not in keys:
            raise PolicyInvalid(f"{before}no such key: {_quoted(key)}; the keys here are {', '.join(keys)}")
        if key in found.values:
            found.fail(key, "stands there twice")
        found.values[key] = inner
    return found


def _rule(value: object, place: str) -> Rule:
    entry = _object(value, place, ("rulePriority", "description", "selection", "action"))
    priority, description = entry.number("rulePriority"), entry.values.get("description", "")
    if not isinstance(description, str):
        entry.fail("description", "must be text, in quotes")
    _check_action(entry)
    selection = entry.inner(
        "selection",
        ("tagStatus", "tagPatternList", "tagPrefixList", "storageClass", "countType", "countUnit", "countNumber"),
    )
    if selection.values.get("storageClass", "standard") != "standard":
        selection.fail("storageClass", 'can be "standard" only: a cache has no archive')
    status: Status = selection.word("tagStatus", ("tagged", "untagged", "any"))  # type: ignore[assignment]
    patterns = _patterns(selection, status)
    count, unit = _count(selection)
    line = "".join(letter if letter.isprintable() else " " for letter in description)
    return Rule(priority, line, status, patterns, count, selection.number("countNumber"), unit)


def _check_action(entry: _Object) -> None:
    action = entry.inner("action", ("type", "targetStorageClass"))
    if action.values.get("type") == "transition":
        action.fail("type", 'a cache has no archive to move images to: write "expire"')
    action.word("type", ("expire",))
    if "targetStorageClass" in action.values:
        action.fail("targetStorageClass", "goes with transitions only, and a cache has none")


def _count(selection: _Object) -> tuple[Count, Unit]:
    if selection.values.get("countType") == "sinceImageTransitioned":
        selection.fail("countType", "a cache has no archive, so that nothing is ever moved there")
    count = _COUNTS[selection.word("countType", tuple(_COUNTS))]
    if count is not Count.IMAGES:
        unit: Unit = selection.word("countUnit", tuple(_UNITS))  # type: ignore[assignment]
        return count, unit
    if "countUnit" in selection.values:
        selection.fail("countUnit", f"does not go with {Count.IMAGES.value}: leave it out")
    return count, "days"


def _patterns(selection: _Object, status: Status) -> tuple[str, ...]:
    """What an image's tags must match; a prefix is a pattern with a star behind it."""
    given = [key for key in ("tagPatternList", "tagPrefixList") if key in selection.values]
    if status != "tagged" and given:
        selection.fail(given[0], f'goes with "tagged" only: leave it out for "{status}"')
    if status == "tagged" and len(given) != 1:
        raise PolicyInvalid(f'{selection.place}: "tagged" needs either tagPatternList or tagPrefixList')
    if not given:
        return ()
    key, is_prefix = given[0], given[0] == "tagPrefixList"
    listed = selection.values[key]
    if not isinstance(listed, list) or not listed:
        selection.fail(key, 'must be a list of one or more, such as ["release-"]')
    for index, text in enumerate(listed):
        _check_pattern(text, f"{selection.at(key)}[{index}]", is_prefix)
    return tuple(f"{text}*" if is_prefix else text for text in listed)


def _check_pattern(text: object, place: str, is_prefix: bool) -> None:
    if not isinstance(text, str) or not (_TAG_PREFIX if is_prefix else _TAG_PATTERN).fullmatch(text):
        stars = "" if is_prefix else ', and "*" for anything'
        raise PolicyInvalid(f'{place}: must be of what tags have, letters, digits and "_.-"{stars}')
    if text.count("*") > MAX_STARS:
        raise PolicyInvalid(f'{place}: has more than {MAX_STARS} "*"')


def _check_together(rules: Sequence[Rule]) -> None:
    """Whether each rule can ever take something: none but the first of two that select the same can."""
    priorities: dict[int, int] = {}
    selections: dict[tuple[Status, frozenset[str]], int] = {}
    for index, rule in enumerate(rules):
        place = f"rules[{index}]"
        if rule.priority in priorities:
            raise PolicyInvalid(f"{place}.rulePriority: rules[{priorities[rule.priority]}] has {rule.priority} as well")
        priorities[rule.priority] = index
        selected = (rule.status, frozenset(rule.patterns))
        if selected in selections:
            raise PolicyInvalid(f"{place}.selection: rules[{selections[selected]}] selects the same images")
        selections[selected] = index
        if rule.status == "any" and rule.priority < max(one.priority for one in rules):
            raise PolicyInvalid(f'{place}.rulePriority: a rule for "any" must have the highest number of all')


def _quoted(value: object) -> str:
    """What stands there, as JSON has it, in a few letters."""
    if isinstance(value, tuple | list):
        return "an object" if isinstance(value, tuple) else "a list"
    text = json.dumps(value).replace("\x7f", "\\u007f")
    return text if len(text) <= 40 else f"{text[:37]}..."
