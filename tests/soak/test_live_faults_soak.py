"""The long form of the crash loop on the running broker (FT-01)."""

from __future__ import annotations

import pytest

from broker.core.imports.places import ARRIVAL_GRACE
from tests.servers.live import Live
from tests.servers.live_load import crash_rounds
from tests.servers.openbao import OpenBao


@pytest.mark.soak
def test_FT_01_killed_fifty_times_under_load_it_keeps_every_promise(live_own: Live, openbao: OpenBao) -> None:
    crash_rounds(live_own, openbao, 50, patience=ARRIVAL_GRACE.total_seconds() + 10)
