"""`broker doctor` finds each mistake that was made on purpose, and names its fix."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from broker_api.v1 import drift_pb2 as drift
from broker_api.v1 import imports_pb2 as imports
from broker_cli import doctor_checks, doctor_host
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.live.cli.test_standin import (
    Authority,
    Broker,
    StandIn,
    bare,
    broker,
    new_key,
    running,
    serve,
    server_certificate,
    stand_in,
    write_profile,
)
from tests.unit.cli.test_audit import journal

__all__ = ["bare", "broker", "running", "stand_in"]  # fixtures


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*doctor_checks.SPILLING, *doctor_checks.LOADING, "SOFTHSM2_CONF"):
        monkeypatch.delenv(name, raising=False)


def examine(broker: Broker, *arguments: object) -> dict[str, tuple[str, str]]:
    """{check: (status, detail)}; the exit code agrees with them."""
    ended = broker("doctor", "--format", "json", *arguments)
    assert ended.raw, ended.err
    found = {one["name"]: (one["status"], one["detail"]) for one in json.loads(ended.out)}
    assert ended.code == (10 if "failed" in {status for status, _ in found.values()} else 0)
    return found


def test_a_good_caller_is_told_so(broker: Broker) -> None:
    found = examine(broker)
    failed = {name for name, (status, _) in found.items() if status == "failed"}
    assert failed <= {"keys-compromised"}, found  # other tests leave some in the broker that all share
    assert {
        "profile",
        "key-file",
        "key-match",
        "certificate",
        "ca",
        "network",
        "tls",
        "server-certificate",
    } < found.keys()
    assert "operator/alice" in found["identity"][1]


Break = Callable[[Path, StandIn], None]


def _mode(folder: Path, _: StandIn) -> None:
    (folder / "key.pem").chmod(0o644)


def _other_key(folder: Path, _: StandIn) -> None:
    (folder / "key.pem").write_bytes(new_key()[1])


def _other_ca(folder: Path, _: StandIn) -> None:
    (folder / "ca.pem").write_bytes(Authority("other").pem)


def _nonsense(folder: Path, _: StandIn) -> None:
    (folder / "cert.pem").write_text("nonsense")


def _no_profile(folder: Path, _: StandIn) -> None:
    (folder / "profile.toml").unlink()


def _refusing(code: grpc.StatusCode, reason: str, method: str) -> Break:
    def refuse(_: Path, stand_in: StandIn) -> None:
        stand_in.failures[method] = [(code, reason, "The broker says so.")]

    return refuse


def _silent_hsm(_: Path, stand_in: StandIn) -> None:
    before = stand_in.answers["GetHsm"]
    stand_in.answers["GetHsm"] = lambda request: type(before(request))(token_label="dev")


def _drifted(_: Path, stand_in: StandIn) -> None:
    found = drift.DriftFinding(drift=drift.DRIFT_DELETED, key="pay")
    stand_in.answers["ListDrift"] = lambda _: drift.ListDriftResponse(
        reports=[drift.DriftReport(target="prod", findings=[found])]
    )


def _still_enabled(_: Path, stand_in: StandIn) -> None:
    row = imports.Import(key="pay", target="prod", remote_name="pay", failure="TARGET_CANNOT_DISABLE")
    stand_in.answers["ListImports"] = lambda _: imports.ListImportsResponse(imports=[row])


@pytest.mark.parametrize(
    ("mistake", "check", "says"),
    [
        (_no_profile, "profile", "broker operator add"),
        (_mode, "key-file", "chmod 600"),
        (_nonsense, "profile-files", "PEM"),
        (_other_key, "key-match", "two profiles"),
        (_other_ca, "tls", "wrong CA file"),
        (_refusing(grpc.StatusCode.UNAUTHENTICATED, "OPERATOR_REMOVED", "WhoAmI"), "identity", "OPERATOR_REMOVED"),
        (_silent_hsm, "hsm", "PIN"),
        (_drifted, "drift", "deleted (pay, prod)"),
        (_still_enabled, "imports", "pay at prod"),
    ],
)
def test_a_callers_mistake_is_found(
    broker: Broker, stand_in: StandIn, tmp_path: Path, mistake: Break, check: str, says: str
) -> None:
    mistake(tmp_path / "config" / "broker" / "profiles" / "default", stand_in)
    status, detail = examine(broker)[check]
    assert (status, says in detail) == ("failed", True), detail


def test_a_missing_permission_is_a_warning(broker: Broker, stand_in: StandIn) -> None:
    _refusing(grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED", "GetHsm")(Path(), stand_in)
    assert examine(broker)["permission"][0] == "warning"


@pytest.mark.parametrize(
    ("code", "reason"),
    [(grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED"), (grpc.StatusCode.UNIMPLEMENTED, "METHOD_UNKNOWN")],
)
def test_drift_is_left_out_for_who_may_not_ask_and_by_a_broker_that_does_not_know_it(
    broker: Broker, stand_in: StandIn, code: grpc.StatusCode, reason: str
) -> None:
    _refusing(code, reason, "ListDrift")(Path(), stand_in)
    assert examine(broker)["drift"][0] == "skipped"


def test_the_wrong_port_and_the_wrong_address_are_told_apart(bare: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    pipelines = serve(stand_in, server_certificate(stand_in.authority), only_health=True)
    folder = write_profile(tmp_path / "p", stand_in.authority, f"localhost:{pipelines.port}")
    try:
        assert "pipelines' port" in examine(bare, "--profile", folder)["identity"][1]
        assert "write HOST:PORT" in examine(bare, "--profile", folder, "--address", "https://x")["profile"][1]
        assert "resolver" in examine(bare, "--profile", folder, "--address", "no.such.invalid:1")["network"][1]
    finally:
        pipelines.server.stop(None).wait()
    refused = examine(bare, "--profile", folder)
    assert "Nothing listens" in refused["network"][1]
    assert refused["broker"][0] == "skipped"


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"name": "elsewhere"}, "not for the name"), ({"start": -9, "end": -1}, "ran out"), ({"start": 1}, "clock")],
)
def test_a_servers_certificate_fault_is_named(
    bare: Broker, stand_in: StandIn, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    served = serve(stand_in, server_certificate(stand_in.authority, **changes))
    folder = write_profile(tmp_path / "p", stand_in.authority, f"localhost:{served.port}")
    try:
        assert says in examine(bare, "--profile", folder)["tls"][1]
    finally:
        served.server.stop(None).wait()


def test_a_certificate_of_another_broker_is_named(bare: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    folder = write_profile(tmp_path / "p", Authority("another broker"), stand_in.address)
    (folder / "ca.pem").write_bytes(stand_in.authority.pem)
    assert "from another broker" in examine(bare, "--profile", folder)["tls"][1]


def test_ones_own_time_is_checked(bare: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    old = write_profile(tmp_path / "old", stand_in.authority, stand_in.address, start=-9, end=-1)
    early = write_profile(tmp_path / "early", stand_in.authority, stand_in.address, start=1)
    late = write_profile(tmp_path / "late", stand_in.authority, stand_in.address, start=-100, end=1)
    assert "ran out" in examine(bare, "--profile", old)["certificate"][1]
    assert "set the clock" in examine(bare, "--profile", early)["certificate"][1]
    assert examine(bare, "--profile", late)["certificate"][0] == "warning"


@pytest.mark.parametrize(
    ("name", "status"), [("SSLKEYLOGFILE", "failed"), ("GRPC_TRACE", "failed"), ("LD_AUDIT", "warning")]
)
def test_a_dangerous_variable_is_named_and_not_quoted(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, name: str, status: str
) -> None:
    monkeypatch.setenv(name, "")
    assert examine(broker)["environment"][0] == "ok"
    checks = list(doctor_checks.environment({name: "/srv/canary"}))
    assert [(check.status, name in check.detail, "canary" in check.detail) for check in checks] == [
        (status, True, False)
    ]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: StandIn) -> Path:
    """A broker's host as it should be; the config's names are those that the server's own config uses."""
    root = tmp_path / "host"
    for folder in ("journal", "tokens/one"):
        (root / folder).mkdir(parents=True)
    key, certificate = server_certificate(stand_in.authority, end=900)
    for name, content in {
        "pin": b"1234",
        "key.pem": key,
        "cert.pem": certificate,
        "module-softhsm.so": b"\x7fELF",
    }.items():
        (root / name).touch(mode=0o600)
        (root / name).write_bytes(content)
    (root / "softhsm2.conf").write_text(f"directories.tokendir = {root}/tokens\nobjectstore.backend = file\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(root / "softhsm2.conf"))
    sqlite3.connect(root / "broker.db").close()
    (root / "broker.db").touch()
    config = root / "broker.toml"
    config.write_text(f"""
[server]
operators_address = "127.0.0.1:0"
certificate_file = "{root}/cert.pem"
key_file = "{root}/key.pem"
[hsm]
module = "{root}/module-softhsm.so"
pin_file = "{root}/pin"
[store]
url = "sqlite:///{root}/broker.db"
journal = "{root}/journal"
""")
    return config


def host_checks(config: Path) -> dict[str, tuple[str, str]]:
    return {check.name: (check.status, check.detail) for check in doctor_host.checks(config)}


def test_a_good_host_is_told_so(host: Path) -> None:
    found = host_checks(host)
    assert {name for name, (status, _) in found.items() if status == "failed"} == set(), found
    assert {
        "config",
        "softhsm",
        "hsm.pin_file",
        "store.journal",
        "store.url",
        "server.operators_address",
    } < found.keys()


def _edit(old: str, new: str) -> Callable[[Path], None]:
    return lambda config: void(config.write_text(config.read_text().replace(old, new)))


def void(_: object) -> None:
    """A value that nobody wants."""


@pytest.mark.parametrize(
    ("mistake", "check", "says"),
    [
        (lambda c: c.write_text("[server\n"), "config", "line 1"),
        (lambda c: c.chmod(0o666), "config", "chmod go-w"),
        (lambda c: c.unlink(), "config", "No such file"),
        (lambda c: (c.parent / "pin").chmod(0o644), "hsm.pin_file", "chmod 600"),
        (lambda c: (c.parent / "pin").write_bytes(b""), "hsm.pin_file", "empty"),
        (lambda c: (c.parent / "pin").unlink(), "hsm.pin_file", "No such file"),
        (lambda c: (c.parent / "module-softhsm.so").unlink(), "hsm.module", "No such file"),
        (lambda c: (c.parent / "key.pem").chmod(0o640), "server.key_file", "chmod 600"),
        (lambda c: (c.parent / "cert.pem").write_text("x"), "server.certificate_file", "not a PEM"),
        (lambda c: (c.parent / "journal").rmdir(), "store.journal", "No such file"),
        (lambda c: (c.parent / "journal").chmod(0o777), "store.journal", "chmod o-w"),
        (lambda c: (c.parent / "softhsm2.conf").unlink(), "softhsm", "set SOFTHSM2_CONF"),
        (lambda c: (c.parent / "tokens" / "one").rmdir(), "softhsm", "no token"),
        (_edit("broker.db", "other.db"), "store.url", "No such file"),
    ],
)
def test_a_hosts_mistake_is_found(host: Path, mistake: Callable[[Path], object], check: str, says: str) -> None:
    mistake(host)
    status, detail = host_checks(host)[check]
    assert (status, says in detail) == ("failed", True), detail


def test_the_token_is_looked_for_where_the_config_says(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = host.parent / "softhsm2.conf"
    monkeypatch.setenv("SOFTHSM2_CONF", str(host.parent / "another.conf"))
    host.write_text(f'{host.read_text()}[hsm.environment]\nSOFTHSM2_CONF = "{named}"\n')
    assert host_checks(host)["softhsm"] == ("ok", f"{named}, tokens in {host.parent}/tokens")


def test_a_certificate_that_ran_out_is_found(host: Path, stand_in: StandIn) -> None:
    (host.parent / "cert.pem").write_bytes(server_certificate(stand_in.authority, start=-9, end=-1)[1])
    assert "ran out" in host_checks(host)["server.certificate_file"][1]


def test_a_taken_port_and_a_held_database_are_warnings(host: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        _edit('"127.0.0.1:0"', f'"127.0.0.1:{taken.getsockname()[1]}"')(host)
        code = (  # a process does not see its own locks
            "import sqlite3, sys\n"
            "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "db.execute('BEGIN EXCLUSIVE')\n"
            "print('held', flush=True)\n"
            "sys.stdin.read()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(host.parent / "broker.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holding:
            assert holding.stdout is not None
            assert holding.stdout.readline() == b"held\n"
            found = host_checks(host)
            holding.communicate()
    assert found["server.operators_address"][0] == "warning"
    assert found["store.url"] == ("warning", found["store.url"][1])
    assert str(holding.pid) in found["store.url"][1]


def test_records_that_wait_for_a_head_are_told(host: Path) -> None:
    path = host.parent / "journal" / "broker-1.000001.jsonl"
    path.write_bytes(journal().bytes)
    path.chmod(0o600)
    assert host_checks(host)["audit-head"][0] == "ok"
    path.write_bytes(journal().add(1).bytes)
    assert host_checks(host)["audit-head"][0] == "warning"


@given(st.sampled_from(["a_file", "journal", "url", "listen", "module", "ca"]), st.text(max_size=40))
@settings(max_examples=150, deadline=None)
@example("listen", "a\x00b:1")
@example("listen", f"{'x' * 300}.y:1")
@example("listen", "h:²")
@example("url", "sqlite:///\x00")
@example("module", "softhsm\x00")
@example("a_file", "x" * 5000)
@example("a_file", "/dev/null/x")
def test_no_setting_makes_the_doctor_fall_over(tmp_path_factory: pytest.TempPathFactory, name: str, value: str) -> None:
    config = tmp_path_factory.mktemp("host") / "broker.toml"
    config.write_text(f"[part]\n{name} = {json.dumps(value)}\n")
    assert host_checks(config)["environment"]


def _server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A stand-in for `python -m broker`: an interpreter that runs this script instead."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    # Patched: the command starts the interpreter that runs it, whatever stands in PATH.
    monkeypatch.setattr(sys, "executable", str(python))


def test_the_servers_own_checks_are_merged(
    broker: Broker, host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [
        {"name": "hsm.module", "passed": True, "detail": "loads"},
        {"name": "settings", "passed": False, "detail": "no"},
    ]
    _server(tmp_path, monkeypatch, f"""[ "$3 $4 $5" = "broker check --config" ] && echo '{json.dumps(told)}'""")
    found = examine(broker, "--config", host)
    assert found["hsm.module"] == ("ok", "loads")
    assert found["settings"] == ("failed", "no")


@pytest.mark.parametrize("script", ["echo nonsense", "echo '[1]'", "echo '[]'", "exit 1", "echo '[{}]'"])
def test_a_server_that_says_nothing_is_a_finding(
    broker: Broker, host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    _server(tmp_path, monkeypatch, script)
    assert examine(broker, "--config", host)["server"][0] == "failed"
