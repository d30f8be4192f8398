"""Imports to Azure with faults at random: every switch of the vaults, every code of the token, kill -9 at any step."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.hsm.test_shim_faults import CODES
from tests.servers.live_azure import azure_house
from tests.servers.live_storm import FAULTS, ROUND, Storm
from tests.servers.storm_verdict import assert_only_the_keys, judge, left_in_token


def traces(said: str) -> list[str]:
    """Places in the broker's own code or beyond that a traceback names.

    The PKCS#11 binding itself prints one when ending a search fails while an object of it is collected.
    """
    places = [line.strip() for line in said.splitlines() if line.lstrip().startswith('File "')]
    return [place for place in places if not place.startswith('File "pkcs11/_pkcs11.pyx"')]


def weather(folder: Path, imports: int, seed: int, *, hang: bool) -> str:
    """So many imports in a storm, and the verdict; what happened, in a line."""
    with azure_house(folder, create_kek=False, reload_interval=0.0, retry_interval=0.0) as live:
        storm = Storm(live, seed, hang=hang)
        while len(storm.journeys) < imports:
            storm.round()
            process = live.broker.process
            assert process is not None
            assert left_in_token(live.shim.calls(), process.pid) == {}
            live.shim.forget()
        storm.let_the_grace_pass()
        ends = judge(storm)
        assert live.broker.terminate() == 0
        assert_only_the_keys(storm)
        assert live.broker.verify()
        assert traces(live.broker.said) == []
        assert live.broker.holding(live.premium.token.encode(), live.hsm.token.encode()) == []
    counts = storm.counts
    assert min(counts["calls disturbed"], counts["requests disturbed"]) >= imports / 5, counts
    assert counts["restarts"] >= imports / 40, counts
    assert {name for name in FAULTS if counts[f"switch {name}"]} >= FAULTS.keys() - {"hang"}
    assert all(counts[f"code {name}"] for name in CODES)
    return f"{dict(ends)}; {dict(counts)}"


@pytest.mark.timeout(300)
def test_BY_06_BY_09_BY_15_forty_imports_in_a_storm_leave_one_right_version_each(tmp_path: Path) -> None:
    imports = 5 * ROUND
    told = weather(tmp_path, imports, 20261123, hang=False)
    assert "restarts" in told
