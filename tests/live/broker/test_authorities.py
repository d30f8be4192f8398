"""A broker whose own keys are all rotated while it serves: who trusted it before goes on, and nothing is lost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from broker import setup
from broker.config import load
from tests.servers.live import Client, Live, cli

NAMES = ("audit", "operator-ca", "server-ca", "page")


@pytest.fixture
def broker(tmp_path: Path) -> Any:
    broker = Live(tmp_path / "broker")
    yield broker
    broker.close()


def kept(broker: Live, name: str) -> Path:
    """The broker's files as they are now, but for its token and its journals."""
    place = broker.folder.parent / name
    shutil.copytree(broker.folder, place, ignore=shutil.ignore_patterns("softhsm", "journal"))
    return place


def states(admin: Client) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for one in admin.ask("ListAuthorities").authorities:
        found.setdefault(one.name, []).append(one.state)
    return found


def put_back(place: Path, broker: Live, *names: str) -> None:
    for name in names:
        source, target = place / name, broker.folder / name
        if source.is_dir():
            shutil.rmtree(target)
            shutil.copytree(source, target)
        elif source.exists():
            shutil.copy(source, target)
        else:
            target.unlink(missing_ok=True)


def test_every_key_of_its_own_is_rotated_online_and_those_who_trusted_the_old_ones_go_on(broker: Live) -> None:
    broker.start()
    ca = broker.ca
    profile = broker.folder / "profile"
    key, certificate = (profile / "key.pem").read_bytes(), (profile / "cert.pem").read_bytes()
    pinned = broker.folder.parent / "pinned.pem"
    shutil.copy(broker.folder / "certificates" / "audit.pem", pinned)
    before = kept(broker, "before")
    with broker.client() as admin:
        token = admin.ask("ListAuditHeads", page_size=1).next_page_token
        for name in NAMES:
            assert admin.ask("RotateAuthority", name=name).operation.done
        assert states(admin) == {name: [3, 2] for name in NAMES}
        assert admin.ask("ListAuditHeads", page_size=1, page_token=token).heads, "a page that was begun goes on"
        made, request = setup.make_request()
        issued = admin.ask("RenewCertificate", csr_pem=request.decode()).certificate
    assert issued.server_ca_pem.count("BEGIN") == issued.server_ca_pem.count("END") == 2
    for trusted in (ca, issued.server_ca_pem.encode()):
        for pair in ((key, certificate), (made, issued.pem.encode())):
            with Client(broker.address, trusted, *pair) as one:
                assert one.ask("WhoAmI").principal == "operator/admin"
                one.ask("SignAuditHead")
    _retired(broker, ca, (key, certificate), (made, issued.pem.encode()))
    assert broker.terminate() == 0
    for pin in (pinned, broker.folder / "certificates" / "audit.pem"):
        verified = cli("audit", "verify", str(broker.folder / "journal"), "--public-key", str(pin))
        assert verified.returncode == 0, verified.stdout + verified.stderr
    (profile / "cert.pem").write_text(issued.pem)
    (profile / "key.pem").write_bytes(made)
    _older_folder(broker, before)
    _older_database(broker, before)


def _retired(broker: Live, ca: bytes, old: tuple[bytes, bytes], new: tuple[bytes, bytes]) -> None:
    """The overlap of the operator CA is ended by hand: what it signed is refused at once, on open connections too."""
    with Client(broker.address, ca, *old) as earlier, Client(broker.address, ca, *new) as admin:
        assert earlier.ask("WhoAmI").principal == "operator/admin"
        admin.ask("RetireAuthority", name="operator-ca")
        assert earlier.refusal("WhoAmI").reason == "CERTIFICATE_ISSUER"
        assert admin.ask("WhoAmI").principal == "operator/admin"


def _older_folder(broker: Live, before: Path) -> None:
    """A host that was away while the keys were rotated has an older folder: it follows by itself."""
    put_back(before, broker, "certificates")
    broker.start()
    with broker.client() as admin:
        assert states(admin)["operator-ca"][-1] == 2
    assert (broker.folder / "certificates" / "own-keys.json").exists()
    assert broker.terminate() == 0


def _older_database(broker: Live, before: Path) -> None:
    """A database from before the rotation: the journal tells, and the folder knows the keys of the token."""
    put_back(before, broker, "broker.db", "broker.db-wal", "broker.db-shm")
    refused = broker.command("serve", "--config", str(broker.config))
    assert (refused.returncode != 0, "STORE_RESTORED" in broker.said + refused.stderr) == (True, True), refused.stderr
    accepted = broker.command("accept-restore", "--config", str(broker.config))
    assert accepted.returncode == 0, accepted.stderr
    broker.start()
    with broker.client() as admin:
        assert states(admin)["audit"] == [3, 2]
        assert admin.ask("RotateAuthority", name="audit").version == 3
    assert broker.terminate() == 0, broker.said[-4000:]
    broker.verify()
    assert load(broker.config).certificates.joinpath("own-keys.json").exists()
