"""The embedded database, where another process has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from broker.core.errors import WrongState
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from tests.contracts.store.samples import ROW_KEY, config, key, now, opened, put
from tests.servers.databases import migrate


@pytest.fixture
def place(tmp_path: Path) -> StoreConfig:
    found = config(f"sqlite:///{tmp_path}/store/broker.db", tmp_path)
    migrate(found)
    return found


OPEN = """
import sys
from tests.contracts.store.samples import *
try:
    with opened(StoreConfig.model_validate_json(sys.argv[1])) as store:
        print("open", flush=True)
        sys.stdin.read()
except Exception as refused:
    print(refused.reason)
"""


def test_ST_08_a_second_process_is_refused_and_a_dead_one_is_not_in_the_way(place: StoreConfig) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", OPEN, place.model_dump_json()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(WrongState) as refused:
            SqlStore(place, ROW_KEY, now)
        assert refused.value.reason == "STORE_IN_USE"
        with pytest.raises(WrongState, match="Another broker process"):
            SqlStore.migrate(place)
        other.kill()
    with opened(place) as store:
        store.check()
        with pytest.raises(WrongState):
            SqlStore(place, ROW_KEY, now)
        put(store, key())
