"""`init` on a token that an earlier release filled: labels that were ids become labels that bind, once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from pkcs11 import Attribute, ObjectClass

from broker import adoption, own_keys
from broker.app import now
from broker.config import Config
from broker.core.errors import BrokerError, WrongState
from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage, Purpose, SignatureAlgorithm
from broker.core.ports import KeyRef
from broker.hsm.sessions import Worker
from broker.row_key import row_key
from broker.setup import Token, Wishes, initialise
from broker.store.sql import SqlStore
from tests.contracts.hsm.keys import made, unmade
from tests.servers.softhsm import KeysHsm, alone, make_token
from tests.worlds.world import World

GCM = EncryptionAlgorithm.AES_GCM
ES256 = SignatureAlgorithm.ES256
Named = tuple[Purpose, KeyRef]


def age(hsm: KeysHsm, key: KeyRef, *, only: ObjectClass | None = None) -> None:
    """Label the key as an earlier release did."""

    def relabel(worker: Worker) -> None:
        for half in hsm.finder.halves(worker, key.hsm_id):
            if only in {None, half.kind}:
                half.thing[Attribute.LABEL] = key.hsm_id.hex()
        worker.handles.clear()

    hsm.locked(relabel)


def filled(folder: Path) -> tuple[KeysHsm, dict[str, Named]]:
    hsm = KeysHsm(make_token(folder, sessions=2))
    wanted = {
        "audit": (Purpose.AUDIT, unmade(KeyType.EC_P256, hsm_id=b"broker/audit/001", name="")),
        "root": (Purpose.ROOT, unmade(KeyType.AES_256, name="1")),
        "pay": (Purpose.KEY, unmade(KeyType.EC_P256, name="pay/1")),
        "cipher": (Purpose.KEY, unmade(KeyType.AES_256, name="cipher/1")),
    }
    keys = {name: (purpose, made(hsm.keyring(purpose), key)) for name, (purpose, key) in wanted.items()}
    for _, key in keys.values():
        age(hsm, key)
    return hsm, keys


def use(hsm: KeysHsm, purpose: Purpose, key: KeyRef) -> str:
    ring = hsm.keyring(purpose)
    try:
        ring.encrypt(key, GCM, b"m", b"") if key.type.symmetric else ring.sign(key, ES256, [b"m"])
    except BrokerError as refusal:
        return refusal.reason
    return "ok"


def uses(hsm: KeysHsm, keys: Iterable[Named]) -> set[str]:
    return {use(hsm, *named) for named in keys}


def _adopted(folder: Path) -> list[object]:
    hsm, keys = filled(folder)
    told: list[object] = [uses(hsm, keys.values()), hsm.adopt(keys.values()), uses(hsm, keys.values())]
    age(hsm, keys["pay"][1], only=ObjectClass.PRIVATE_KEY)  # as if it had been interrupted
    told += [hsm.adopt(keys.values()), hsm.adopt(keys.values()), uses(hsm, keys.values())]
    hsm.close()
    return told


def test_keys_of_an_earlier_release_are_adopted_once(tmp_path: Path) -> None:
    assert alone(_adopted, tmp_path / "token") == [{"HSM_NOT_ADOPTED"}, 4, {"ok"}, 1, 0, {"ok"}]


def _lies_told(folder: Path) -> dict[str, tuple[str, bool]]:
    hsm, keys = filled(folder)
    (_, audit), (_, root), (_, pay), (_, cipher) = keys.values()
    own = [keys["audit"], keys["root"]]
    lies = {
        "a caller's row names the audit key": [*own, (Purpose.KEY, replace(audit, name="x/1"))],
        "a caller's row names the root key": [*own, (Purpose.KEY, replace(root, name="x/1"))],
        "two rows name one key": [*own, keys["pay"], (Purpose.KEY, replace(pay, name="x/1"))],
        "a root's row names a caller's key": [(Purpose.ROOT, replace(cipher, name="1")), keys["cipher"]],
        "another public key": [(Purpose.KEY, replace(pay, public_key=audit.public_key))],
        "another type": [(Purpose.KEY, replace(pay, type=KeyType.EC_P384, public_key=None))],
    }
    told = {}
    for what, wanted in lies.items():
        try:
            hsm.adopt(wanted)
            told[what] = "adopted", False
        except BrokerError as refusal:
            told[what] = refusal.reason, uses(hsm, keys.values()) == {"HSM_NOT_ADOPTED"}
    hsm.close()
    return told


def test_HS_17_rows_that_disagree_with_the_token_adopt_nothing(tmp_path: Path) -> None:
    told = alone(_lies_told, tmp_path / "token")
    assert set(told.values()) == {("KEY_NOT_THIS", True)}, told


def _bound_before(folder: Path) -> list[str]:
    hsm, keys = filled(folder)
    hsm.adopt([keys["pay"]])
    told = []
    with pytest.raises(BrokerError) as refusal:
        hsm.adopt([(Purpose.KEY, replace(keys["cipher"][1], hsm_id=keys["audit"][1].hsm_id))])
    told.append(refusal.value.reason)
    hsm.adopt([(Purpose.KEY, replace(keys["pay"][1], name="other/1"))])
    told.append(use(hsm, Purpose.KEY, replace(keys["pay"][1], name="other/1")))
    told.append(use(hsm, *keys["pay"]))
    hsm.close()
    return told


def test_HS_17_a_key_that_is_bound_is_never_bound_anew(tmp_path: Path) -> None:
    assert alone(_bound_before, tmp_path / "token") == ["KEY_NOT_THIS", "KEY_NOT_THIS", "ok"]


def _restarted(folder: Path) -> dict[str, object]:
    """A whole broker whose token is as an earlier release left it."""
    wishes = Wishes(folder=folder)
    config = initialise(wishes, now)
    told: dict[str, object] = {}
    with opened(config) as (hsm, store):
        world = World(store, hsm, now=now)
        world.keys.create(
            world.asked("KeyService/CreateKey"),
            "pay",
            KeyType.EC_P256,
            KeyUsage.SIGN,
            exportable=False,
            labels={},
            owner="",
        )
        known = list(adoption.known(config, store))
        for _, key in known:
            age(hsm, key)
        with pytest.raises(BrokerError) as refusal:
            own_keys.check_internal_keys(config, hsm)
        told["before"] = refusal.value.reason, "broker init" in refusal.value.message
    initialise(wishes, now)
    with opened(config) as (hsm, store):
        own_keys.check_internal_keys(config, hsm)
        told["after"] = uses(hsm, list(adoption.known(config, store)))
        age(hsm, known[-1][1])
    initialise(wishes, now)
    with opened(config) as (hsm, _):
        told["one that is labelled so later"] = use(hsm, *known[-1])
    journal = b"".join(file.read_bytes() for file in config.store.journal.rglob("*") if file.is_file())
    told["recorded"] = journal.count(b'"-/AdoptKeys"')
    return told


@contextmanager
def opened(config: Config) -> Iterator[tuple[KeysHsm, SqlStore]]:
    with closing(KeysHsm(config.hsm)) as hsm, closing(SqlStore(config.store, row_key(config, hsm), now)) as store:
        yield hsm, store


def test_init_adopts_the_token_of_an_earlier_release_and_only_that(tmp_path: Path) -> None:
    assert alone(_restarted, tmp_path / "broker") == {
        "before": ("HSM_NOT_ADOPTED", True),
        "after": {"ok"},
        "one that is labelled so later": "HSM_NOT_ADOPTED",
        "recorded": 1,
    }


def _second(folder: Path) -> dict[str, object]:
    """Another broker that is to be made on the token of a first one, and the first one's `init` again."""
    first = initialise(Wishes(folder=folder / "first"), now).hsm
    token = Token(
        module=str(first.module), label=first.token_label, pin_file=first.pin_file, environment=first.environment
    )
    told: dict[str, object] = {}
    with pytest.raises(WrongState) as refusal:
        initialise(Wishes(folder=folder / "second", token=token), now)
    told["refused"] = refusal.value.reason
    told["made"] = sorted(file.name for file in folder.glob("second*"))
    (folder / "first" / "certificates" / "audit.pem").unlink()  # as after a crash in the middle of the first `init`
    config = initialise(Wishes(folder=folder / "first"), now)
    with opened(config) as (hsm, _):
        own_keys.check_internal_keys(config, hsm)
    return told


def test_K_15_a_token_is_no_second_brokers(tmp_path: Path) -> None:
    assert alone(_second, tmp_path) == {"refused": "HSM_TAKEN", "made": []}
