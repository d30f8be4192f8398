"""The doctor looks at the modes of all the broker's files, on PostgreSQL as on SQLite."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import checkup
from tests.servers.hosts import Host, set_up
from tests.servers.live import Live, cli, free_address
from tests.servers.postgres import Postgres
from tests.servers.softhsm import alone

# What is loosened, how far, and the mode that the doctor asks for; the first place is a folder of the broker's.
LOOSE = {
    "PIN": ("hsm-pin", 0o640, "600"),
    "server's key": ("certificates/server.key", 0o644, "600"),
    "page tokens' key": ("certificates/page.key", 0o604, "600"),
    "operators' CA": ("certificates/operator-ca.pem", 0o666, "644"),
    "audit key's file": ("certificates/audit.pem", 0o620, "600"),
    "certificates": ("certificates", 0o770, "750"),
    "journal": ("journal", 0o750, "700"),
    "journal's file": ("journal/broker-x.jsonl", 0o640, "600"),
    "credentials": ("credentials", 0o722, "700"),
    "credential": ("credentials/vault:8200/token", 0o644, "600"),
    "credential's folder": ("credentials/vault:8200", 0o777, "755"),
    "password": ("password", 0o640, "600"),
}
ONLY_HERE = {"password": "postgresql", "database": "sqlite"}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, str]]:
    folder = tmp_path_factory.mktemp("modes")
    if request.param == "sqlite":
        broker = Live(folder / "broker")
        places = ["--operators-address", free_address(), "--pipelines-address", free_address()]
        assert broker.command("init", str(broker.folder), *places).returncode == 0
        yield _furnished(broker), request.param
        return
    server: Postgres = request.getfixturevalue("postgres")
    database = server.create_database()
    host: Host = set_up(folder, server.url(database))
    password = host.folder / "password"
    password.write_text("canary-password")
    password.chmod(0o600)
    text = host.config.read_text().replace("[store]\n", f'[store]\npassword_file = "{password}"\n')
    host.config.write_text(text)
    yield _furnished(host), request.param
    server.drop_database(database)


def _furnished(broker: Live) -> Live:
    place = broker.folder / "credentials" / "vault:8200"
    place.mkdir(mode=0o700)
    for file in (place / "token", broker.folder / "journal" / "broker-x.jsonl"):
        file.touch(0o600)
    return broker


def looked(config: Path) -> str:
    """What is said of the files; "" when nothing is wrong with them."""
    found = next(each for each in checkup.findings_for(config) if each.name == "private files")
    return "" if found.passed else found.detail


def test_a_set_up_as_it_was_made_is_good(made: tuple[Live, str]) -> None:
    assert looked(made[0].config) == ""


APPROVALS = '\n[approvals]\npreset = "production"\n'


def test_approvals_that_one_person_alone_could_give_are_told_of(made: tuple[Live, str]) -> None:
    config = made[0].config
    before = config.read_text()
    try:
        none, production, suspended = alone(  # this process has a token of its own
            of_the_store, config, [before, before + APPROVALS, f"{before}{APPROVALS}suspended = true\n"]
        )
        doctor = cli("doctor", "--config", str(config), "--format", "json") if made[1] == "sqlite" else None
    finally:
        config.write_text(before)
    assert [each.verdict for each in (none, production, suspended)] == ["ok  ", "WARN", "WARN"]
    assert "can need 1 approval(s) of others, and 1 operator(s) may approve it" in production.detail
    assert "suspended" in suspended.detail
    if doctor:  # it hands on what `check` finds, whatever the database is
        [told] = [each for each in json.loads(doctor.stdout) if each["name"] == "store"]
        assert (told["status"], told["detail"]) == ("warning", suspended.detail)


def of_the_store(config: Path, texts: list[str]) -> list[checkup.Finding]:
    """What is found of the store under each of these configurations; the last one stays."""
    found = []
    for text in texts:
        config.write_text(text)
        found += [each for each in checkup.findings_for(config) if each.name == "store"]
    return found


@pytest.mark.parametrize("what", LOOSE)
def test_S_06_each_loose_file_is_named_with_its_cure(made: tuple[Live, str], what: str) -> None:
    broker, kind = made
    place, mode, cure = LOOSE[what]
    if ONLY_HERE.get(what, kind) != kind:
        assert not (broker.folder / place).exists()
        return
    _loosened(broker, broker.folder / place, mode, cure)


def _loosened(broker: Live, file: Path, mode: int, cure: str) -> None:
    before = file.stat().st_mode & 0o777
    file.chmod(mode)
    try:
        said = looked(broker.config)
        assert said == f"{file} has mode {mode:04o}; run: chmod {cure} {file}."
        file.chmod(int(cure, 8))
        assert looked(broker.config) == ""
    finally:
        file.chmod(before)


def test_S_06_the_config_itself_is_looked_at_and_all_of_several_faults_are_told(made: tuple[Live, str]) -> None:
    broker, _ = made
    for name in ("broker.toml", "hsm-pin", "certificates/page.key"):
        (broker.folder / name).chmod(0o666)
    try:
        checked = broker.command("check", "--config", str(broker.config))
    finally:
        for name in ("broker.toml", "hsm-pin", "certificates/page.key"):
            (broker.folder / name).chmod(0o600)
    assert checked.returncode == 10
    faults = [line for line in checked.stdout.splitlines() if line.startswith("FAIL")]
    # the last two for the open PIN
    assert [fault.split()[1] for fault in faults] == ["config:", "private", "hsm:", "store:"]
    assert "broker.toml has mode 0666; run: chmod 644" in faults[0]
    assert all(f"{name} has mode 0666; run: chmod 600" in faults[1] for name in ("hsm-pin", "page.key"))


def test_S_06_a_file_of_another_user_is_named(made: tuple[Live, str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    broker, _ = made
    pin = broker.folder / "hsm-pin"
    os.chown(pin, 65534, -1)
    try:
        assert looked(broker.config).startswith(f"{pin} belongs to another user")
    finally:
        os.chown(pin, 0, -1)
