"""What a request may say of a key beside the key: enabled, nbf, exp and tags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .encoding import members
from .refusals import bad_parameter

TAGS = 15
TAG_LENGTH = 512


@dataclass
class Attributes:
    """Of one version of a key; times in whole seconds since 1970."""

    created: int
    updated: int
    enabled: bool = True
    not_before: int | None = None
    expires: int | None = None
    exportable: bool = False

    def change(self, asked: object, now: int) -> None:
        """Take over what ``asked`` names; what it does not name stays."""
        named = members(asked, "attributes", optional=("enabled", "nbf", "exp", "exportable"))
        if named.get("exportable"):
            raise bad_parameter("An exportable key needs a release policy, and neither goes with a key brought here.")
        enabled = named.get("enabled", self.enabled)
        if not isinstance(enabled, bool):
            raise bad_parameter("attributes.enabled is not a boolean.")
        start, end = _time(named, "nbf", self.not_before), _time(named, "exp", self.expires)
        if start is not None and end is not None and end <= start:
            raise bad_parameter("attributes.exp is not after attributes.nbf.")
        self.enabled, self.not_before, self.expires, self.updated = enabled, start, end, now

    def shown(self, *, purgeable: bool) -> dict[str, Any]:
        """As an answer carries them."""
        times = {"nbf": self.not_before, "exp": self.expires}
        return {
            "enabled": self.enabled,
            **{name: time for name, time in times.items() if time is not None},
            "created": self.created,
            "updated": self.updated,
            "recoveryLevel": "Recoverable+Purgeable" if purgeable else "Recoverable",
            "recoverableDays": 90,
            "exportable": self.exportable,
            "hsmPlatform": "2",
        }


def _time(named: dict[str, Any], member: str, before: int | None) -> int | None:
    value = named.get(member)
    if value is None:
        return before
    if type(value) is not int or not 0 <= value < 1 << 33:
        raise bad_parameter(f"attributes.{member} is not a time in seconds.")
    return value


def check_tags(asked: object) -> dict[str, str]:
    """``asked`` as tags: at most 15, name and value at most 512 characters each."""
    if asked is None:
        return {}
    if not isinstance(asked, dict) or len(asked) > TAGS:
        raise bad_parameter(f"tags is not an object with at most {TAGS} members.")
    for name, value in asked.items():
        if not isinstance(value, str) or not name or max(len(name), len(value)) > TAG_LENGTH:
            raise bad_parameter(f"The tag {name[:40]} is not a string of at most {TAG_LENGTH} characters.")
    return dict(asked)
