"""What people type or paste for an option: taken in the forms that other output shows it in."""

from __future__ import annotations

import re
from typing import Any

import click

_UNITS = {"y": 31_536_000, "w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
_COUNT = "(?:([0-9]{1,9})%s)?"
_SPAN = re.compile("".join(_COUNT % unit for unit in "ywdhms"), re.ASCII)
_ISO = re.compile(
    f"P{''.join(_COUNT % unit for unit in 'YWD')}(?:T{''.join(_COUNT % unit for unit in 'HMS')})?", re.ASCII
)


class Version(click.ParamType[int]):
    """A version's number: 3, v3 or @3."""

    name = "version"

    def __init__(self, *, least: int = 0) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number; a usage error for anything else."""
        bare = re.sub(r"^(?:[vV@]|@[vV])(?=[0-9])", "", str(value))
        if not re.fullmatch(r"[0-9]{1,10}", bare, re.ASCII) or int(bare) < self._least:
            self.fail(f"Give the version's number, {self._least} or more, as 3, v3 or @3.", param, ctx)
        return int(bare)


class Name(click.ParamType[str]):
    """The name of a thing, or its reference as the audit and the policies write it: payments, key/payments."""

    def __init__(self, kind: str) -> None:
        self.name = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002
        """The bare name; what is no name is the broker's to refuse."""
        return str(value).removeprefix(f"{self.name}/")


class Span(click.ParamType[int]):
    """A time span in whole seconds: 90s, 15m, 1h30m, 1d, 1y (365d) or ISO 8601 (PT1H); a bare number is in ``unit``."""

    name = "span"

    def __init__(self, least: int, most: int, unit: str = "s") -> None:
        self._least, self._most, self._unit = least, most, unit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The seconds; a usage error for what is none, or too short or long."""
        seconds = self._seconds(str(value).strip())
        if seconds is None or not self._least <= seconds <= self._most:
            least, most = (said(limit) for limit in (self._least, self._most))
            self.fail(f"Give a time span from {least} to {most}, such as {least} or {most}.", param, ctx)
        return seconds

    def _seconds(self, text: str) -> int | None:
        if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
            return int(text) * _UNITS[self._unit]
        found = _ISO.fullmatch(text) or _SPAN.fullmatch(text.lower().replace(" ", ""))
        if found is None or not any(found.groups()):
            return None
        return sum(int(count or 0) * size for count, size in zip(found.groups(), _UNITS.values(), strict=True))


def said(seconds: int) -> str:
    """A time span as ``Span`` takes it: 90d, 36h."""
    unit = next(unit for unit, size in _UNITS.items() if seconds % size == 0 and unit not in "yw")
    return f"{seconds // _UNITS[unit]}{unit}"
