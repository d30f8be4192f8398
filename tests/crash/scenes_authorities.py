"""Keys of the broker's own that are rotated, given up, and retired."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any

from cryptography import x509

from broker.core.audit.handover import related
from broker.core.authorities.known import INTERNAL_KEYS, ref
from broker.core.authorities.page_keys import WRAPS, PageKeys
from broker.core.authorities.plans import OVERLAP, TITLES
from broker.core.errors import BrokerError
from broker.core.kinds import KeyType, KeyUsage, Own, OwnKeyState, Purpose
from broker.core.operators.authority import Authority
from broker.core.own_key import OwnKey
from broker.core.ports import KeyRef
from tests.crash.harness import Scene, World
from tests.worlds.world import founded

REQUEST = "0d7c2f5e-51c7-4f39-9d36-0b6c7d9c5c0d"
ROTATES, RETIRES = frozenset({"rotate-own-key"}), frozenset({"retire-own-key"})
FIRST_PAGE_KEY = bytes(range(32))


class OwnWorld(World):
    """With the keys that ``init`` makes. ``lead``: how long a new version is taken before it is in force."""

    lead = timedelta(0)

    def more(self) -> dict[str, Any]:
        if self.ground.founding is None:
            self.ground.founding = {name: self._found(name) for name in Own}
        found = self.ground.founding
        return {"founding": found, "lead": self.lead}

    def _found(self, name: Own) -> OwnKey:
        """As ``init`` made it, once."""
        device = self.ground.hsm
        device.keyring(Purpose.ROWS).generate(WRAPS, exportable=False)
        return founded(name, *_first(device, name, self.ground.clock()))

    def pages(self) -> list[bytes]:
        return PageKeys(self.ground.hsm, self.own_keys, self.parts.trust_domain, lambda: FIRST_PAGE_KEY).keys()


class Patient(OwnWorld):
    """Of several processes, which are given time to take a new version."""

    lead = timedelta(seconds=30)


def _first(device: Any, name: Own, now: Any) -> tuple[KeyRef, bytes]:
    if name is Own.PAGE:
        return KeyRef(hsm_id=b"", type=KeyType.AES_256, usage=KeyUsage.ENCRYPT, public_key=None, name=""), b""
    ring, hsm_id = device.keyring(name.purpose), INTERNAL_KEYS[name.purpose]
    if name in TITLES:
        return Authority.create(ring, hsm_id, TITLES[name], now)
    key = KeyRef(hsm_id=hsm_id, type=KeyType.EC_P256, usage=KeyUsage.SIGN, public_key=None, name="")
    spki = ring.generate(key, exportable=False)
    return KeyRef(hsm_id=hsm_id, type=KeyType.EC_P256, usage=KeyUsage.SIGN, public_key=spki, name=""), b""


def rotate(name: Own, request_id: str = "") -> Any:
    return lambda world: world.authorities.rotate(world.call("AuthorityService/RotateAuthority", request_id), name)


def followed(name: Own) -> Any:
    """The first version is due to be destroyed."""

    def prepare(world: Any) -> None:
        rotate(name)(world)
        world.clock.time += OVERLAP[name]

    return prepare


def chores(world: Any) -> None:
    for resource, work in world.authorities.chores():
        work(world.own(resource))


def retire(world: Any) -> None:
    world.authorities.retire(world.call("AuthorityService/RetireAuthority", REQUEST), Own.AUDIT)
    for rows in world.operations.due().values():
        for row in rows:
            world.operations.carry_on(world.own(row.subject), row)


def refusing(world: Any) -> None:
    world.ground.make_no_keys()


def given_up(world: Any) -> None:
    """Somebody gives it up while the others still learn of the new version."""
    rotate(Own.SERVER_CA, REQUEST)(world)
    name = f"own/{Own.SERVER_CA}/1"
    with suppress(BrokerError):
        world.oversight.abort(world.call("OperationService/AbortOperation"), name)


# ---- what is there in the end ----------------------------------------------------------------------------------------


def whole(world: Any) -> None:
    """The token has the versions of the rows and no other, one is in force, and each leads to the next."""
    world.own_keys.refresh()
    for name in Own:
        versions = world.own_keys.versions(name)
        assert [one.state for one in versions].count(OwnKeyState.ACTIVE) == 1
        assert versions[-1].state is OwnKeyState.ACTIVE, "nothing is half done"
        if name is not Own.PAGE:
            there = {one.hsm_id for one in versions if one.state is not OwnKeyState.DESTROYED}
            assert set(world.ground.keys_of(name.purpose)) == there
    audit = world.own_keys.versions(Own.AUDIT)
    assert related([audit[0].public_key], world.own_keys.handovers()) == {one.public_key for one in audit}
    for name in TITLES:
        for former, one in zip(world.own_keys.versions(name), world.own_keys.versions(name)[1:], strict=False):
            ca = x509.load_pem_x509_certificate(former.certificate.encode())
            x509.load_pem_x509_certificate(one.link.encode()).verify_directly_issued_by(ca)
    assert len(world.pages()) >= 1
    _signs(world)


def _signs(world: Any) -> None:
    for name in (Own.AUDIT, *TITLES):
        active = world.own_keys.active(name)
        assert world.ground.hsm.keyring(name.purpose).public_key(ref(active)) == active.public_key


def rotated(name: Own) -> Any:
    def check(world: Any) -> None:
        whole(world)
        assert world.own_keys.active(name).version == 2

    return check


def not_rotated(world: Any) -> None:
    whole(world)
    assert not [one for one in world.rows(OwnKey) if one.version > 1]


def retired(name: Own) -> Any:
    def check(world: Any) -> None:
        rotated(name)(world)
        assert world.own_keys.versions(name)[0].state is OwnKeyState.DESTROYED

    return check


SCENES = {
    **{
        f"own {name}, rotated, asked again": Scene(
            kinds=ROTATES, act=rotate(name, REQUEST), again=rotate(name, REQUEST), check=rotated(name), world=OwnWorld
        )
        for name in (Own.AUDIT, Own.SERVER_CA, Own.PAGE)  # of both CAs one is enough
    },
    "own audit, rotated, and nobody comes back": Scene(
        kinds=ROTATES, act=rotate(Own.AUDIT), check=whole, world=OwnWorld
    ),
    "own server-ca, rotated once everybody takes it": Scene(
        kinds=ROTATES,
        act=rotate(Own.SERVER_CA, REQUEST),
        again=rotate(Own.SERVER_CA, REQUEST),
        check=rotated(Own.SERVER_CA),
        world=Patient,
    ),
    "own server-ca, given up": Scene(kinds=ROTATES, act=given_up, check=whole, world=Patient),
    "own operator-ca, refused": Scene(
        kinds=ROTATES, prepare=refusing, act=rotate(Own.OPERATOR_CA, REQUEST), check=not_rotated, world=OwnWorld
    ),
    **{
        f"own {name}, the former one destroyed": Scene(
            kinds=RETIRES, prepare=followed(name), act=chores, check=retired(name), world=OwnWorld
        )
        for name in (Own.AUDIT, Own.PAGE)
    },
    "own audit, its overlap ended": Scene(
        kinds=RETIRES, prepare=rotate(Own.AUDIT), act=retire, again=retire, check=retired(Own.AUDIT), world=OwnWorld
    ),
}
