"""Which target may use which credential: who may register a target must not borrow another team's token by its name.

A file that bears a target's name (``prod``, or ``prod.`` and anything) is that target's. Everything else, a file of
another name or what the host itself is at Azure, is for the targets that the configuration names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from broker.core.errors import InvalidRequest
from broker.core.reasons import Reason

TARGETS = re.compile(r"[a-z](?:-?[a-z0-9]){0,62}|[a-z](?:-?[a-z0-9]){0,60}-\*|\*", re.ASCII)
"""How ``credentials_for`` names targets: one (``prod``), all that begin so (``team-b-*``), or all (``*``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What a target shows to its server: the file ``name``, or, if it is none, what the broker's host is there."""

    host: str  # "host:port"
    name: str
    file: bool = True

    def belongs_to(self, target: str) -> bool:
        """Whether it is a file that bears the target's name, which can hold no dot."""
        return self.file and self.name.partition(".")[0] == target


def check_bound(target: str, credential: Credential, bound: Mapping[str, tuple[str, ...]]) -> None:
    """Return if ``target`` may be shown ``credential``; else InvalidRequest ``TARGET_CREDENTIAL_NOT_BOUND``.

    ``bound``: names of targets by "host:port/credential". No file is looked at, so that the refusal does not tell which
    there are.
    """
    for_whom = bound.get(f"{credential.host}/{credential.name}", ())
    if credential.belongs_to(target) or any(_names(each, target) for each in for_whom):
        return
    raise InvalidRequest(
        Reason.TARGET_CREDENTIAL_NOT_BOUND,
        "The broker's configuration does not give this target such a credential at this host. Use a file of the "
        'target\'s name (TARGET or TARGET.token), or have its line, "HOST:PORT/CREDENTIAL" = ["TARGET"], added under '
        "[targets.credentials_for] there, and the broker started again.",
    )


def _names(pattern: str, target: str) -> bool:
    return target.startswith(pattern[:-1]) if pattern.endswith("*") else target == pattern
