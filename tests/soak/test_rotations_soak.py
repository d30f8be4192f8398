"""A key rotated a hundred times at two targets while others read, sign and verify with it: nobody notices."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.live.keys.test_rotations import EC_P256, SIGN, there
from tests.servers.live import Client, vault_settings, within
from tests.servers.live_azure import AzureLive, azure_house
from tests.servers.openbao import OpenBao

ROTATIONS, CALLS, CLIENTS = 100, 10_000, 4
MESSAGE = {"message": b"pay 10 to bob"}


def use(house: AzureLive, stop: threading.Event) -> Counter[int]:
    """Sign, verify and read until told to stop: how many signatures each version made. Any refusal is a failure."""
    used = Counter[int]()
    with house.client() as client:
        while not stop.is_set():
            signed = client.ask("Sign", name="pay", input=MESSAGE)
            given = {"version": signed.version, "input": MESSAGE, "signature": signed.signature}
            assert client.ask("Verify", name="pay", **given).valid
            assert client.ask("GetKey", name="pay").key.name == "pay"
            assert client.ask("GetPublicKey", name="pay", version=signed.version).version == signed.version
            used[signed.version] += 1
    return used


def rotate(admin: Client, version: int) -> None:
    begun = admin.ask("RotateKey", name="pay", everywhere=True, grace={})
    assert len(begun.places) == 2
    within(120, lambda: admin.ask("WaitOperation", name=begun.operation.name).operation.done)
    assert admin.ask("GetKey", name="pay").key.primary_version == version


@pytest.mark.soak
def test_BY_13_a_hundred_rotations_under_load_are_noticed_by_nobody(openbao: OpenBao, tmp_path: Path) -> None:
    stop = threading.Event()
    with (
        azure_house(tmp_path, "--allow-target", openbao.host) as house,
        house.client() as admin,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        openbao.write_token(house.broker.folder / "credentials")
        admin.ask("CreateTarget", name="bao", vault=vault_settings(openbao))
        admin.ask("CreateKey", name="pay", type=EC_P256, usage=SIGN, exportable=True)
        for target in ("bao", "premium"):
            admin.ask("ImportKey", name="pay", target=target)
        clients = [pool.submit(use, house, stop) for _ in range(CLIENTS)]
        try:
            for number in range(ROTATIONS):
                rotate(admin, number + 2)
                assert not any(each.done() for each in clients), [each.exception() for each in clients if each.done()]
        finally:
            stop.set()
        used = sum((each.result() for each in clients), Counter[int]())
        assert 4 * used.total() >= CALLS
        assert len(used) > ROTATIONS * 0.9, "the versions were used while they were in force"
        within(120, lambda: there(openbao, "pay") == [str(ROTATIONS + 1)])
        held, only = house.premium.versions("pay"), [False] * ROTATIONS + [True]
        within(120, lambda: [one.attributes.enabled for one in held] == only)
        house.broker.verify()
