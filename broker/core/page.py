"""A slice of a list, and where the next one starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """``next`` is the primary key of the last row that was looked at; () on the last page."""

    items: list[T]
    next: tuple[str | int, ...]
