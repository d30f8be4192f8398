"""What somebody plants in the folder of certificates opens nothing, and leaves nothing behind (threat O-13)."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from broker import own_files, own_keys, own_rows
from broker.core.authorities.known import rows_of
from broker.core.authorities.plans import OVERLAP
from broker.core.kinds import Own, OwnKeyState
from tests.crash.scenes_authorities import OwnWorld
from tests.fakes.memory_store import MemoryStore
from tests.fakes.refusals import ending
from tests.unit.broker.test_own_files import Host, strange

Rows = list[dict[str, Any]]


class Planted(Host):
    """Somebody else writes into the folder."""

    def rotate(self, *names: Own) -> None:
        for name in names:
            self.world.authorities.rotate(self.world.asked("AuthorityService/RotateAuthority"), name)
        self.follow()

    def plant(self, change: Callable[[Rows], object]) -> None:
        """What the file says, or would say of the operator CA, altered."""
        file = self.config.certificates / own_files.FILE
        rows = json.loads(file.read_text()) if file.exists() else [self.first()]
        change(rows)
        file.write_text(json.dumps(rows))

    def first(self) -> dict[str, Any]:
        """The operator CA that `init` made, as the file has it."""
        made = own_files.first(self.config, Own.OPERATOR_CA)
        parts = {"hsm_id": made.hsm_id.hex(), "public_key": (made.public_key or b"").hex()}
        parts |= {"certificate": made.certificate, "link": "", "created_at": made.created_at.isoformat()}
        rest: dict[str, Any] = {"handover": {}, "sealed": None, "since": None, "until": None}
        return {"name": made.name, "version": 1, "state": "active", **parts, **rest}

    def evil(self, **other: Any) -> dict[str, Any]:
        """An entry of the attacker's own CA."""
        key, pem = strange(Own.OPERATOR_CA.purpose, self)
        parts = {"hsm_id": key.hsm_id.hex(), "public_key": (key.public_key or b"").hex(), "certificate": pem.decode()}
        return {**self.first(), "version": 9, "state": "former", "until": None, **parts, **other}

    def start(self, store: Any = None) -> list[x509.Certificate]:
        """As a start does it; the CAs whose operators are let in."""
        store, device = store or self.world.store, self.world.ground.hsm
        self.check()
        own_rows.restore(self.config, device, store, self.world.clock)
        own = self.world.elsewhere(store=store, founding=own_keys.founding(self.config, device)).own_keys
        assert own.authority(Own.OPERATOR_CA)
        return x509.load_pem_x509_certificates(own.certificates(Own.OPERATOR_CA))

    def genuine(self) -> list[x509.Certificate]:
        versions = self.world.elsewhere().own_keys.certificates(Own.OPERATOR_CA)
        return x509.load_pem_x509_certificates(versions)


@pytest.fixture
def host(tmp_path: Path) -> Planted:
    return Planted(tmp_path / "one", OwnWorld())


def of(rows: Rows, name: str, version: int) -> dict[str, Any]:
    return next(one for one in rows if (one["name"], one["version"]) == (name, version))


@pytest.mark.parametrize("rotated", [[], [Own.OPERATOR_CA]])
@pytest.mark.parametrize("state", ["former", "destroyed", "next"])
@pytest.mark.parametrize("until", [None, "2999-01-01T00:00:00+00:00"])
def test_O_13_a_version_that_the_token_does_not_hold_is_trusted_by_nobody(
    host: Planted, rotated: list[Own], state: str, until: str | None
) -> None:
    host.rotate(*rotated)
    host.plant(lambda rows: rows.append(host.evil(state=state, until=until)))
    assert host.start() == host.genuine()
    (host.config.certificates / own_files.FILE).unlink()
    host.follow()
    host.world.clock.time += timedelta(days=400)
    assert len(host.start()) == 1, "not later either"
    planted = [row for row in rows_of(host.world.store) if row.version == 9]
    assert [row.state for row in planted] == [OwnKeyState.DESTROYED] * (state != "next")


def test_O_13_a_version_that_the_token_does_not_hold_and_that_claims_to_be_in_force_stops_the_start(
    host: Planted,
) -> None:
    host.plant(lambda rows: rows.append(host.evil(state="active")))
    assert ending(host.start) == "KEY_NOT_IN_HSM"
    older = MemoryStore()
    assert ending(lambda: own_rows.restore(host.config, host.world.ground.hsm, older, host.world.clock)) == (
        "KEY_NOT_IN_HSM"
    )
    assert not rows_of(older)


@pytest.mark.parametrize("part", ["certificate", "link"])
@pytest.mark.parametrize("form", ["{genuine}{planted}", "{planted}", "x{genuine}"])
@pytest.mark.parametrize("version", [1, 2])
def test_O_13_a_genuine_version_brings_no_other_certificate_with_it(
    host: Planted, part: str, form: str, version: int
) -> None:
    host.rotate(Own.OPERATOR_CA)
    planted = strange(Own.OPERATOR_CA.purpose, host)[1].decode()

    def longer(rows: Rows) -> None:
        one = of(rows, "operator-ca", version)
        one[part] = form.format(genuine=one[part], planted=planted)

    host.plant(longer)
    assert ending(host.check) == "FILE_DAMAGED"
    store = MemoryStore()
    assert ending(lambda: own_rows.restore(host.config, host.world.ground.hsm, store, host.world.clock)) == (
        "FILE_DAMAGED"
    )
    assert not rows_of(store)


def test_O_13_a_certificate_of_the_genuine_key_by_somebody_else_is_not_the_ca_s(host: Planted) -> None:
    """The link is one: of the same key, and signed by another."""
    host.rotate(Own.OPERATOR_CA)
    host.plant(lambda rows: of(rows, "operator-ca", 2).update(certificate=of(rows, "operator-ca", 2)["link"]))
    assert ending(host.check) == "FILE_DAMAGED"


@pytest.mark.parametrize("name", ["operator-ca", "server-ca"])
def test_O_13_a_certificate_put_behind_the_one_that_init_made_is_not_trusted(host: Planted, name: str) -> None:
    file, planted = host.config.certificates / f"{name}.pem", strange(Own(name).purpose, host)[1]
    genuine = file.read_bytes()
    host.write(f"{name}.pem", genuine + planted)
    assert ending(host.check) == "FILE_DAMAGED"
    assert own_files.first(host.config, Own(name)).certificate.encode() == genuine, "nor where nobody checks"


def test_O_13_a_certificate_put_into_the_file_of_a_rotated_ca_goes_again(host: Planted) -> None:
    host.rotate(Own.OPERATOR_CA)
    file = host.config.certificates / "operator-ca.pem"
    genuine = file.read_bytes()
    host.write("operator-ca.pem", genuine + strange(Own.OPERATOR_CA.purpose, host)[1])
    assert host.start() == host.genuine()
    assert host.follow()
    assert file.read_bytes() == genuine


@pytest.mark.parametrize("until", [None, "2999-01-01T00:00:00+00:00"])
def test_O_13_a_former_version_is_taken_for_no_longer_than_its_overlap_whatever_the_file_says(
    host: Planted, until: str | None
) -> None:
    host.rotate(Own.OPERATOR_CA)
    host.plant(lambda rows: of(rows, "operator-ca", 1).update(until=until))
    store = MemoryStore()
    assert host.start(store) == host.genuine()
    former = rows_of(store)[0]
    assert (former.state, former.until) == (OwnKeyState.FORMER, host.world.clock() + OVERLAP[Own.OPERATOR_CA])


def test_O_13_the_file_ends_no_version_that_is_in_force_by_the_rows(host: Planted) -> None:
    host.rotate(Own.OPERATOR_CA)
    before = rows_of(host.world.store)

    def back(rows: Rows) -> None:
        of(rows, "operator-ca", 1).update(state="active")
        of(rows, "operator-ca", 2).update(state="former")

    host.plant(back)
    assert ending(host.start) == "FILE_DAMAGED"
    assert rows_of(host.world.store) == before


def test_O_13_a_row_keeps_what_it_says_of_a_key_when_the_file_says_that_it_is_gone(host: Planted) -> None:
    host.rotate(Own.OPERATOR_CA)
    [former, _] = rows_of(host.world.store)
    host.plant(lambda rows: rows.append({**host.evil(state="destroyed", version=1), "hsm_id": rows.pop(0)["hsm_id"]}))
    host.start()
    row = rows_of(host.world.store)[0]
    assert (row.state, row.certificate) == (OwnKeyState.DESTROYED, former.certificate)


def test_O_13_a_page_key_that_the_token_has_not_wrapped_is_not_believed(host: Planted) -> None:
    host.rotate(Own.PAGE, Own.PAGE)

    def swap(rows: Rows) -> None:
        of(rows, "page", 3).update(sealed=of(rows, "page", 2)["sealed"])

    host.plant(swap)
    assert ending(host.check) == "OWN_KEY_MISSING"
    host.plant(lambda rows: of(rows, "page", 3).update(sealed=None))
    assert ending(host.check) == "OWN_KEY_MISSING"


def test_O_13_a_hand_over_that_does_not_prove_itself_never_reaches_the_audit(host: Planted) -> None:
    host.rotate(Own.AUDIT)
    entry = own_files.FILE
    genuine = (host.config.certificates / entry).read_bytes()
    changes: list[Callable[[dict[str, str]], object]] = [
        lambda handover: handover.update(former_signature="00"),
        lambda handover: handover.update(note="x"),
        lambda handover: handover.update(handover_time="x" * 500),
        lambda handover: handover.pop("former_key"),
    ]
    for change in changes:
        host.write(entry, genuine)
        rows = json.loads(genuine)
        change(of(rows, "audit", 2)["handover"])
        host.write(entry, json.dumps(rows).encode())
        assert ending(host.check) == "FILE_DAMAGED"


@pytest.mark.parametrize("number", [0, -1, 10, 2**40])
def test_O_13_a_version_of_a_number_that_no_rotation_gives_is_refused(host: Planted, number: int) -> None:
    host.plant(lambda rows: rows.append(host.evil(state="destroyed", version=number)))
    assert ending(host.check) == "FILE_DAMAGED"


def test_O_13_a_version_twice_or_none_in_force_or_a_time_of_no_zone_is_refused(host: Planted) -> None:
    host.rotate(Own.OPERATOR_CA)
    genuine = (host.config.certificates / own_files.FILE).read_bytes()
    changes: list[Callable[[Rows], object]] = [
        lambda rows: rows.append(rows[0]),
        lambda rows: rows.pop(),
        lambda rows: rows[0].update(until="2026-01-01T00:00:00"),
    ]
    for change in changes:
        host.write(own_files.FILE, genuine)
        host.plant(change)
        assert ending(host.check) == "FILE_DAMAGED"
