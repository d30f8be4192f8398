"""BY-05 at a real OpenBao: sealed, stopped, or without the right, when what could not be proven is to be disabled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.core import ports
from broker.core.errors import WrongState
from broker.core.kinds import ImportState
from broker.core.model import Import, Key
from broker.targets.vault.policy import RIGHTS, line, policy
from tests.live.imports.bench import Bench, Mount
from tests.live.imports.withdrawing import Background
from tests.servers.openbao import OpenBao
from tests.servers.softhsm import KeysHsm

MINUTE = 60.0


@pytest.fixture
def bench(openbao_own: OpenBao, hsm: KeysHsm, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(Mount(openbao_own, tmp_path, openbao_own.mount), hsm, tmp_path)
    openbao_own.request("GET", f"{openbao_own.mount}/wrapping_key")  # which it makes now, and that takes its time
    made.register()
    yield made
    made.close()


def without(bench: Bench, *rights: str) -> None:
    """From now on the broker's token has all rights but these."""
    path = bench.mount.path
    bench.mount.give("".join(line(f"{path}/{at}", of) for at, of in RIGHTS.items() if at not in rights))


def seal(bench: Bench) -> None:
    bench.mount.server.seal()


def stop(bench: Bench) -> None:
    bench.mount.server.stop()


def revoke(bench: Bench) -> None:
    bench.mount.server.request("POST", "auth/token/revoke", {"token": bench.mount.token})


def back(bench: Bench) -> None:
    """As it was before, with every right."""
    bench.mount.server.stop()
    bench.mount.server.start()
    bench.mount.give(policy(bench.mount.path))


def fails_at_disabling(bench: Bench, fate: Callable[[Bench], None]) -> None:
    """The proof is refused for want of the right, and when the key is to be disabled, ``fate`` comes first."""
    without(bench, "sign/+/+")
    given = bench.connect("bao", "vault", bench.settings)

    class Doomed:
        def __getattr__(self, name: str) -> object:
            return getattr(given, name)

        def disable(self, name: str, version: str) -> None:
            fate(bench)
            given.disable(name, version)

    def connect(*_: object) -> ports.Target:
        return Doomed()  # type: ignore[return-value]

    bench.import_by(connect)


def row_of(bench: Bench, key: Key) -> Import:
    found = bench.row(key)
    assert found is not None
    return found


@pytest.mark.sampled(1)
@pytest.mark.parametrize("fate", [seal, stop, revoke])
def test_BY_05_it_is_disabled_as_soon_as_the_server_is_back(bench: Bench, fate: Callable[[Bench], None]) -> None:
    key = bench.key()
    fails_at_disabling(bench, fate)
    with pytest.raises(WrongState) as caught:
        bench.run(key)
    assert caught.value.reason == "REMOTE_KEY_STILL_ENABLED"
    assert row_of(bench, key).state is ImportState.DISABLING
    bench.import_by(bench.connect)
    background = Background(bench)
    assert {error.reason for error in background.run(2)} == {"REMOTE_KEY_STILL_ENABLED"}
    back(bench)
    assert background.run(MINUTE) == []
    assert bench.mount.key(key.name)["soft_deleted"] is True
    assert row_of(bench, key).state is ImportState.FAILED


def test_BY_05_it_is_disabled_as_soon_as_the_token_may(bench: Bench) -> None:
    key = bench.key()
    without(bench, "sign/+/+", "keys/+/soft-delete")
    with pytest.raises(WrongState) as caught:
        bench.run(key)
    assert (caught.value.reason, bench.mount.key(key.name)["soft_deleted"]) == ("REMOTE_KEY_STILL_ENABLED", False)
    background = Background(bench)
    assert background.run(2) != []
    bench.mount.give(policy(bench.mount.path))
    assert background.run(MINUTE) == []
    assert bench.mount.key(key.name)["soft_deleted"] is True


def test_BY_05_where_the_server_cannot_disable_it_the_alarm_ends_when_its_owner_deletes_it(bench: Bench) -> None:
    key = bench.key()
    bench.run(key)
    rotated = bench.rotate(key)
    without(bench, "sign/+/+")
    given = bench.connect("bao", "vault", bench.settings)

    class Mute:
        """Lets the version in use be proven, and not the new one."""

        def __getattr__(self, name: str) -> object:
            return getattr(given, name)

        def sign(self, name: str, version: str, *asked: object) -> bytes:
            if version == "1":
                bench.mount.give(policy(bench.mount.path))
            else:
                without(bench, "sign/+/+")
            return given.sign(name, version, *asked)  # type: ignore[arg-type]

    bench.import_by(lambda _name, _kind, _settings: Mute())
    with pytest.raises(WrongState, match="cannot disable version 2"):
        bench.run(rotated)
    background = Background(bench)
    assert background.run(2) != []
    server, path = bench.mount.server, f"{bench.mount.path}/keys/{key.name}"
    server.request("POST", f"{path}/config", {"deletion_allowed": True})
    server.request("DELETE", path)
    assert background.run(MINUTE) == []
    row = bench.row(key, 2)
    assert row is not None
    assert row.state is ImportState.FAILED
