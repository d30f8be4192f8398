"""What an import may cost: counted on the real road, with only the HSM and the target standing in for themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.imports.bench import Bench, Mount
from tests.servers.openbao import OpenBao
from tests.servers.softhsm import KeysHsm
from tests.worlds.world import Fronted


class Counting:
    """Lets every call through and counts it."""

    def __init__(self, real: object, calls: Counter[str]) -> None:
        self._real, self._calls = real, calls

    def __getattr__(self, name: str) -> object:
        real = getattr(self._real, name)
        if not callable(real):
            return real

        def counted(*given: object, **named: object) -> object:
            self._calls[name] += 1
            return real(*given, **named)

        return counted


@pytest.fixture
def bench(openbao: OpenBao, hsm: KeysHsm, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(Mount(openbao, tmp_path, openbao.mount), hsm, tmp_path)
    made.register()
    yield made
    made.close()


def test_an_import_costs_four_reads_a_count_three_writes_one_wrap_and_four_requests(bench: Bench) -> None:
    key = bench.key()
    store, hsm, remote = Counter[str](), Counter[str](), Counter[str]()
    port = Counting(bench.connect("bao", "vault", bench.settings), remote)
    imports = bench.elsewhere(
        store=Counting(bench.store, store),
        hsm=Fronted(bench.hsm, Counting(bench.hsm, hsm)),
        connect=lambda _name, _kind, _settings: port,
    ).imports
    store.clear()  # a process looks for its root keys first
    imports.import_key(bench.call("ImportKey"), key.name, 0, "bao", "")
    assert store == {"version": 1, "get": 1, "page": 2, "count": 1, "write": 3}
    assert hsm == {"report": 1, "wrap": 1}
    assert remote == {"supports": 1, "oaep_hash": 1, "offer": 1, "import_key": 1, "versions": 1, "sign": 1} | {
        "spelled": 1
    }
    for calls in (store, hsm, remote):
        calls.clear()
    imports.import_key(bench.call("ImportKey"), key.name, 0, "bao", "")
    assert (store, hsm) == ({"version": 1, "get": 1, "page": 2, "write": 1}, {})
    assert remote == {"spelled": 1, "versions": 1, "sign": 1}
