"""How old a secret may become: set, told when it is near or over, begun anew by a new version; nothing else follows."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from broker.core.errors import InvalidRequest, NotFound, PermissionDenied
from broker.core.model import Secret
from tests.fakes.calls import operator
from tests.fakes.refusals import refused
from tests.worlds.world import World

DAYS = timedelta(days=1)


class Safe(World):
    """Secrets, and how old they may become."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets.rotate_root(self.asked("SecretService/RotateRootKey"))
        self.do_chores(self.secrets)

    def put(self, name: str = "app/db", **how: Any) -> Secret:
        plain: dict[str, Any] = {"expected_version": None, "labels": {}, "expires_at": None}
        asked = self.asked("SecretService/PutSecret")
        return self.secrets.put(asked, name, {"password": b"canary"}, **plain | how).secret

    def limit(self, most: timedelta | None = 90 * DAYS, **how: Any) -> Secret:
        asked = replace(self.asked("SecretService/SetSecretMaxAge"), **how)
        return self.secrets.set_max_age(asked, "app/db", most)

    def late(self) -> list[tuple[str, bool, bool]]:
        return [(name, one.overdue, one.soon) for name, one in self.secrets.late()]

    def listed(self) -> list[str]:
        asked = self.asked("SecretService/ListSecrets")
        page = self.secrets.page(asked, "", "", (), 10, overdue=True)
        return [secret.name for secret, _ in page.items]


def test_it_is_told_before_and_after_and_a_new_version_begins_anew() -> None:
    safe = Safe()
    safe.put()
    safe.put("app/other")
    safe.clock.forward(days=10)
    assert safe.limit().renew_at == safe.clock() + 80 * DAYS
    safe.clock.forward(days=70)
    assert safe.late() == []
    safe.clock.forward(days=2)
    assert safe.late() == [("app/db", False, True)]
    safe.clock.forward(days=9)
    assert (safe.late(), safe.listed()) == ([("app/db", True, False)], ["app/db"])
    assert safe.put().renew_at == safe.clock() + 90 * DAYS
    assert (safe.late(), safe.listed()) == ([], [])


def test_patching_begins_anew_too_and_deleting_a_version_does_not() -> None:
    safe = Safe()
    safe.put()
    first = safe.limit().renew_at
    safe.clock.forward(days=1)
    patched = safe.secrets.patch(
        safe.asked("SecretService/PatchSecret"), "app/db", {"user": b"app"}, [], expected_version=None
    )
    assert first is not None
    assert patched.secret.renew_at == first + DAYS
    safe.clock.forward(days=1)
    safe.secrets.delete(safe.asked("SecretService/DeleteSecretVersions"), "app/db", [1])
    assert safe.secrets.get(safe.asked("SecretService/GetSecret"), "app/db")[0].renew_at == first + DAYS


def test_without_a_limit_nothing_is_told_and_it_can_be_taken_away() -> None:
    safe = Safe()
    safe.put()
    safe.limit()
    safe.limit(None)
    safe.clock.forward(days=1000)
    assert safe.late() == []
    assert safe.put().renew_at is None


def test_what_has_expired_is_not_overdue() -> None:
    safe = Safe()
    safe.put(expires_at=safe.clock() + 30 * DAYS)
    safe.limit()
    safe.clock.forward(days=100)
    assert safe.late() == []


@pytest.mark.parametrize("most", [timedelta(0), timedelta(minutes=59), 3661 * DAYS, 1000 * 365 * DAYS, -DAYS])
def test_an_age_that_makes_no_sense_is_refused(most: timedelta) -> None:
    safe = Safe()
    safe.put()
    refused(lambda: safe.limit(most), InvalidRequest, "MAX_AGE_OUT_OF_RANGE")
    assert safe.store.get(Secret, "app/db").max_age is None


def test_a_dry_run_changes_nothing() -> None:
    safe = Safe()
    safe.put()
    assert safe.limit(validate_only=True).max_age == 90 * 86_400
    assert safe.store.get(Secret, "app/db").max_age is None


def test_who_may_not_is_denied_before_anything_is_told() -> None:
    safe = Safe()
    safe.put()
    eve = safe.asked("SecretService/SetSecretMaxAge", operator("eve"))
    refused(lambda: safe.secrets.set_max_age(eve, "app/db", DAYS), PermissionDenied, "POLICY_DENIED")
    refused(lambda: safe.secrets.set_max_age(eve, "app/none", DAYS), PermissionDenied, "POLICY_DENIED")
    alice = safe.asked("SecretService/SetSecretMaxAge")
    refused(lambda: safe.secrets.set_max_age(alice, "app/none", DAYS), NotFound, "SECRET_NOT_FOUND")
