"""The long form of the proof that a permit for one RPC is one for no other: each under each (AZ-05)."""

from __future__ import annotations

import pytest

from tests.live.broker.test_methods import admin, only_what_is_permitted
from tests.servers.live import METHODS, Client, Live
from tests.servers.openbao import OpenBao

__all__ = ["admin"]  # a fixture


@pytest.mark.soak
def test_AZ_05_a_permit_for_each_rpc_lets_none_of_all_others_pass(live: Live, admin: Client, openbao: OpenBao) -> None:
    only_what_is_permitted(live, admin, openbao, len(METHODS))
