"""Many keys rotated at once, each in the HSM and at two targets, while somebody signs with another one."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from broker_api.v1 import keys_pb2

from tests.bench.tables import table
from tests.servers.live import Client, vault_settings
from tests.servers.live_azure import AzureLive, azure_house
from tests.servers.openbao import OpenBao

THREADS = 4
TARGETS = ("bao", "premium")
MESSAGE = {"message": b"pay 10 to bob"}
QUIET_SECONDS = 10


def measure(folder: Path, bao: OpenBao, count: int) -> str:
    """The table of it; every rotation must end in force at both targets."""
    folder.mkdir()
    with azure_house(folder, "--allow-target", bao.host) as house, house.client() as admin:
        bao.write_token(house.broker.folder / "credentials")
        admin.ask("CreateTarget", name="bao", vault=vault_settings(bao))
        names = [f"rotated-{number}" for number in range(count)]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda name: _furnish(admin, name), names))
        admin.ask("CreateKey", name="signing", type=keys_pb2.KEY_TYPE_EC_P256, usage=keys_pb2.KEY_USAGE_SIGN)
        with _signing(house) as quiet:
            time.sleep(QUIET_SECONDS)
        with _signing(house) as meanwhile:
            took = _rotated(admin, names)
    line = ["broker", f"{count / took:.1f}", f"{quiet[0]:.1f}", f"{meanwhile[0]:.1f}", f"{meanwhile[0] / quiet[0]:.1f}"]
    heads = ["keys/s", "sign p99 ms, quiet", "sign p99 ms, meanwhile", "ratio"]
    return f"## {count} P-256 keys rotated at once, each at OpenBao and the Azure stand-in\n\n" + table(heads, [line])


def _furnish(admin: Client, name: str) -> None:
    admin.ask("CreateKey", name=name, type=keys_pb2.KEY_TYPE_EC_P256, usage=keys_pb2.KEY_USAGE_SIGN, exportable=True)
    for target in TARGETS:
        admin.ask("ImportKey", name=name, target=target)


def _rotated(admin: Client, names: list[str]) -> float:
    """Have all rotated as soon as can be: the seconds until the last one is in force."""
    begun = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda name: admin.ask("RotateKey", name=name, everywhere=True), names))
    for name in names:
        while admin.ask("GetKey", name=name).key.primary_version != 2:
            time.sleep(0.2)
    return time.monotonic() - begun


@contextmanager
def _signing(house: AzureLive) -> Iterator[list[float]]:
    """A process that has begun to sign, time after time; its 99th percentile in ms is in the list in the end."""
    profile = house.profile
    command = [sys.executable, "-m", "tests.bench.rotations", house.broker.address, str(profile)]
    found: list[float] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "signs\n"
        yield found
        told, _ = process.communicate("")
    found.append(float(told))


def sign(address: str, profile: Path) -> None:
    """What that process does, until its input ends."""
    files = (profile / name for name in ("ca.pem", "key.pem", "cert.pem"))
    with Client(address, *(file.read_bytes() for file in files)) as client, ThreadPoolExecutor(1) as pool:
        client.ask("Sign", name="signing", input=MESSAGE)
        print("signs", flush=True)
        ended = pool.submit(sys.stdin.read)
        took = []
        while not ended.done():
            begun = time.perf_counter()
            client.ask("Sign", name="signing", input=MESSAGE)
            took.append((time.perf_counter() - begun) * 1000)
    print(statistics.quantiles(took, n=100)[98])


if __name__ == "__main__":
    sign(sys.argv[1], Path(sys.argv[2]))
