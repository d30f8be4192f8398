"""Two hosts of two workers, each with its own folder of certificates, while all of the broker's keys are rotated."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from broker import setup
from tests.servers.hosts import Host, beside, set_up
from tests.servers.live import Client, cli, within
from tests.servers.postgres import Postgres

NAMES = ("audit", "operator-ca", "server-ca", "page")
ACTIVE = 2
SECONDS = 90.0
"""A new version is taken by all for 30 s before it is in force."""


@pytest.fixture
def hosts(postgres: Postgres, tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    database = postgres.create_database()
    first = set_up(tmp_path, postgres.url(database))
    second = beside(first, "b")
    (second.folder / "certificates").unlink()
    shutil.copytree(first.folder / "certificates", second.folder / "certificates")
    text = second.config.read_text()
    second.config.write_text(text.replace(str(first.folder / "certificates"), str(second.folder / "certificates")))
    try:
        first.start()
        second.start()
        yield first, second
    finally:
        first.close()
        second.close()
        postgres.drop_database(database)


def in_force(admin: Client, name: str) -> int:
    found = admin.ask("ListAuthorities").authorities
    return int(next(one.version for one in found if (one.name, one.state) == (name, ACTIVE)))


@pytest.mark.soak
def test_every_process_of_several_follows_without_a_restart_and_no_call_fails(hosts: tuple[Host, Host]) -> None:
    old_ca = hosts[0].ca
    pinned = hosts[0].folder.parent / "pinned.pem"
    shutil.copy(hosts[0].folder / "certificates" / "audit.pem", pinned)
    admins = [client for host in hosts for client in host.by_worker().values()]
    for name in NAMES:
        admins[0].ask("RotateAuthority", name=name)
    assert {admins[1].refusal("RotateAuthority", name=name).reason for name in NAMES} == {"ROTATION_RUNNING"}

    def done() -> bool:
        for admin in admins:  # nobody is disturbed meanwhile
            token = admin.ask("ListAuditHeads", page_size=1).next_page_token
            admins[-1].ask("ListAuditHeads", page_size=1, page_token=token)
        return all(in_force(admin, name) == 2 for admin in admins for name in NAMES)

    within(SECONDS, done)
    made = []
    for admin in admins:
        key, request = setup.make_request()
        made.append((key, admin.ask("RenewCertificate", csr_pem=request.decode()).certificate.pem.encode()))
    for host in hosts:
        ca = host.folder / "certificates" / "operator-ca.pem"
        within(SECONDS, lambda ca=ca: len(x509.load_pem_x509_certificates(ca.read_bytes())) == 2)  # type: ignore[misc]
        for pair in made:  # the old CA file, and certificates of the new CA from every process
            with Client(host.address, old_ca, *pair) as client:
                assert client.ask("WhoAmI").principal == "operator/admin"
    for admin in admins:
        admin.ask("SignAuditHead")
    for host in hosts:
        assert host.terminate() == 0, host.said[-4000:]
    folders = [str(host.folder / "journal") for host in hosts]
    for pin in (pinned, hosts[1].folder / "certificates" / "audit.pem"):
        verified = cli("audit", "verify", *folders, "--public-key", str(pin))
        assert verified.returncode == 0, verified.stdout + verified.stderr
