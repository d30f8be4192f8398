"""Many keys rotated at once, each in the HSM and at two targets, while somebody signs with another one."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
SIGNERS = {"50 signatures a second": 50.0, "as many as one caller gets": 0.0}
"""Who signs meanwhile, by how many a second; 0: each as soon as the one before is answered."""

CALLERS = 4


def measure(folder: Path, bao: OpenBao, count: int) -> str:
    """The table of it; every rotation must end in force at both targets."""
    lines = [[who, *_measured(folder / f"by-{rate:g}", bao, count, rate)] for who, rate in SIGNERS.items()]
    heads = ["meanwhile signs", "keys/s", "sign p99 ms, quiet", "sign p99 ms, meanwhile", "ratio"]
    return (
        f"## {count} P-256 keys rotated at once, each at OpenBao and the Azure stand-in\n\n{table(heads, lines)}\n\n"
        "With a rate, a signature's time counts from the moment that it was due, whenever it could be asked for."
    )


def _measured(folder: Path, bao: OpenBao, count: int, rate: float) -> list[str]:
    folder.mkdir(parents=True)
    with azure_house(folder, "--allow-target", bao.host) as house, house.client() as admin:
        bao.write_token(house.broker.folder / "credentials")
        admin.ask("CreateTarget", name="bao", vault=vault_settings(bao))
        names = [f"rotated-{rate:g}-{number}" for number in range(count)]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda name: _furnish(admin, name), names))
        admin.ask("CreateKey", name="signing", type=keys_pb2.KEY_TYPE_EC_P256, usage=keys_pb2.KEY_USAGE_SIGN)
        with _signing(house, rate) as quiet:
            time.sleep(QUIET_SECONDS)
        with _signing(house, rate) as meanwhile:
            took = _rotated(admin, names)
    return [f"{count / took:.1f}", f"{quiet[0]:.1f}", f"{meanwhile[0]:.1f}", f"{meanwhile[0] / quiet[0]:.1f}"]


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
def _signing(house: AzureLive, rate: float) -> Iterator[list[float]]:
    """A process that has begun to sign, so many a second; its 99th percentile in ms is in the list in the end."""
    profile = house.profile
    command = [sys.executable, "-m", "tests.bench.rotations", house.broker.address, str(profile), str(rate)]
    found: list[float] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "signs\n"
        yield found
        told, _ = process.communicate("")
    found.append(float(told))


def sign(address: str, profile: Path, rate: float) -> None:
    """What that process does, until its input ends."""
    files = (profile / name for name in ("ca.pem", "key.pem", "cert.pem"))
    with Client(address, *(file.read_bytes() for file in files)) as client, ThreadPoolExecutor(CALLERS + 1) as pool:
        client.ask("Sign", name="signing", input=MESSAGE)
        print("signs", flush=True)
        ended = pool.submit(sys.stdin.read)
        callers = CALLERS if rate else 1
        every = callers / rate if rate else 0.0
        took = [pool.submit(_sign, client, every, every * turn / callers, ended) for turn in range(callers)]
        print(statistics.quantiles([one for each in took for one in each.result()], n=100)[98])


def _sign(client: Client, every: float, first: float, ended: Future[str]) -> list[float]:
    """One caller's signatures: how many ms after each was due it was there."""
    took, due = [], time.perf_counter() + first
    while not ended.done():
        due = due + every if every else time.perf_counter()
        time.sleep(max(0.0, due - time.perf_counter()))
        client.ask("Sign", name="signing", input=MESSAGE)
        took.append((time.perf_counter() - due) * 1000)
    return took


if __name__ == "__main__":
    sign(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
