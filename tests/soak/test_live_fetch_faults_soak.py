"""The long form of the crash loop under fetches (FT-01)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers.fetch_load import crash_rounds
from tests.servers.issuer import issuing
from tests.servers.live import Live


@pytest.mark.soak
def test_FT_01_killed_fifty_times_under_fetches_it_keeps_every_promise(tmp_path: Path) -> None:
    with issuing(tmp_path / "issuer") as ci:
        broker = Live(tmp_path / "broker", "--allow-issuer", ci.host)
        try:
            broker.start()
            crash_rounds(broker, ci, 50)
        finally:
            broker.close()
