"""What must be refused, and how it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from broker.core.errors import BrokerError


def refused(act: Callable[[], object], kind: type[BrokerError] = BrokerError, reason: str = "") -> BrokerError:
    """The refusal that the act ends in, of this kind and for this reason; "": the test looks at the reason itself.

    Its text is whole sentences on one line, and nothing that the caller is told holds a canary.
    """
    with pytest.raises(kind) as caught:
        act()
    error = caught.value
    assert not reason or error.reason == reason, f"{error.reason}: {error.message}"
    assert error.message.endswith((".", "}", ">")), error.message  # or by what it quotes of a target
    assert "\n" not in error.message
    assert "canary" not in f"{error.message}{error.metadata!r}{error.refused!r}"
    return error


def ending(act: Callable[[], object]) -> str:
    """How the act ended: "ok", or the reason of the refusal."""
    return told_by(act).partition(":")[0]


def told_by(act: Callable[[], object]) -> str:
    """How the act ended: "ok", or the reason and the sentence of the refusal."""
    try:
        act()
    except BrokerError as refusal:
        return f"{refusal.reason}: {refusal.message}"
    return "ok"
