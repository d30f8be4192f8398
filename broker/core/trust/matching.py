"""One condition on one claim: where the claim is found, and whether its value fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.core.identity import ClaimFinding
from broker.core.kinds import MatcherKind
from broker.core.model import Matcher

ABSENT = "(absent)"
MAX_SHOWN = 128
MAX_HELD = 1000
"""Of a list that is longer, no more is looked at."""

MAX_VALUE = 1024
"""No value that is longer fits a glob."""


def steps(path: str) -> list[str]:
    """The names along a claim's path: "a/b//c" is ``["a", "b/c"]``; one is empty when the path is not well formed."""
    return [step.replace("\0", "/") for step in path.replace("//", "\0").split("/")]


def find(claims: Mapping[str, Any], path: str) -> str | None:
    """The claim as text: a text as it is, a truth value as "true" or "false", an integer in decimal; else None."""
    return _text(_found(claims, path))


def _found(claims: Mapping[str, Any], path: str) -> Any:
    found: Any = claims
    for step in steps(path):
        if not isinstance(found, Mapping) or step not in found:
            return None
        found = found[step]
    return found


def _text(found: Any) -> str | None:
    if isinstance(found, bool):
        return "true" if found else "false"
    return str(found) if isinstance(found, str | int) else None


def proven(matcher: Matcher, claims: Mapping[str, Any]) -> str | None:
    """The text by which a claim is what the matcher asks for: the claim itself or, of a list, one in it; else None."""
    found = _found(claims, matcher.claim)
    if matcher.kind is MatcherKind.CONTAINS:
        held = map(_text, found[:MAX_HELD]) if isinstance(found, list) else ()
        return next((one for one in held if one is not None and fits(matcher, one)), None)
    value = _text(found)
    return value if value is not None and fits(matcher, value) else None


def fits(matcher: Matcher, value: str) -> bool:
    """Whether a value is what the matcher asks for; a text is compared whole, and as the bytes that it is."""
    if matcher.kind is MatcherKind.GLOB:
        return len(value) <= MAX_VALUE and _glob(matcher.values[0], value)
    return value in matcher.values


def judge(matcher: Matcher, claims: Mapping[str, Any]) -> ClaimFinding:
    """The finding for one matcher."""
    found, passed = _found(claims, matcher.claim), proven(matcher, claims) is not None
    expected = " or ".join(matcher.values)
    if matcher.kind is MatcherKind.CONTAINS:
        expected = f"a list that contains {expected}"
    elif isinstance(found, list):
        expected = f"one value, {expected} (for a list, match {{contains: …}})"
    value = _text(found) if not isinstance(found, list) else f"a list: {', '.join(map(str, found[:MAX_HELD]))}"
    return ClaimFinding(name=matcher.claim, passed=passed, expected=shown(expected), found=shown(value))


def shown(value: object) -> str:
    """A value for people: cut, and nothing in it that a terminal would obey."""
    if value is None:
        return ABSENT
    text = str(value)[: MAX_SHOWN + 1]
    if not text.isprintable():
        text = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _glob(pattern: str, value: str) -> bool:
    """Segment by segment, each in one pass from the left: no pattern takes more than linear time."""
    wanted, given = pattern.split("/"), value.split("/")
    return len(wanted) == len(given) and all(map(fits_segment, wanted, given))


def fits_segment(pattern: str, text: str) -> bool:
    """Whether a text without slashes fits one segment of a glob."""
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == text
    last = rest.pop()
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    place, end = len(first), len(text) - len(last)
    for part in rest:
        place = text.find(part, place, end)
        if place < 0:
            return False
        place += len(part)
    return True
