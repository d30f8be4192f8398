"""What a caller is told of a thing that is not there, or not as the call needs it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from broker.core.amiss import no_key_version, no_secret_version, not_enabled
from broker.core.kinds import KeyState, KeyType, KeyUsage
from broker.core.model import Key

KEY = Key(
    name="payments", type=KeyType.AES_256, usage=KeyUsage.ENCRYPT, exportable=False, labels={}, owner="operator/alice",
    state=KeyState.DISABLED, primary=1, latest=1, created_at=datetime(2026, 1, 1, tzinfo=UTC),
)  # fmt: skip


@pytest.mark.parametrize(
    ("state", "way"),
    [
        (KeyState.DISABLED, "`broker key enable` makes it so"),
        (KeyState.DESTROY_SCHEDULED, "`broker key cancel-destroy`, then `broker key enable` make it so"),
        (KeyState.HELD, "`broker key cancel-destroy`, then `broker key enable` make it so"),
        (KeyState.PENDING, "it is still being made"),
        (KeyState.DESTROYED, "that is for good"),
    ],
)
def test_a_destroyed_key_is_not_to_be_enabled(state: KeyState, way: str) -> None:
    found = not_enabled(replace(KEY, state=state), "only an enabled one will do")
    assert found.message == f"The key payments is {state}; only an enabled one will do: {way}."


def test_a_version_that_is_not_there_is_named() -> None:
    assert (
        "The key payments has no version 7 that can be used; `" in no_key_version("payments", 7, "can be used").message
    )
    assert "no primary version that was completed; `" in no_key_version("payments", 0, "was completed").message
    assert "The secret app/db has no version 3; `" in no_secret_version("app/db", 3).message
