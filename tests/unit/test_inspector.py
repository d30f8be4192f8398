"""The thread that looks through the database outlives whatever a look meets."""

from __future__ import annotations

from typing import Any, cast

from structlog.testing import capture_logs

from broker.core.ports import Store
from broker.inspector import Inspector
from tests.contracts.store_samples import now


class Unlucky:
    """Each look meets something else."""

    def __init__(self, *met: BaseException) -> None:
        self.met = list(met)

    def inspect(self) -> list[Any]:
        raise self.met.pop(0)


def test_NT_14_a_look_that_breaks_is_logged_and_not_the_last() -> None:
    store = Unlucky(FileNotFoundError("a secret path"), BaseException("panic"), ValueError())
    inspector = Inspector(cast(Store, store), now)
    with capture_logs() as logs:
        for _ in range(3):
            inspector.look()
    assert [line["error"] for line in logs] == ["FileNotFoundError", "BaseException", "ValueError"]
    assert "a secret path" not in str(logs)
