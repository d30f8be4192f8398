"""What a person at `broker` sees and is led to: many files at once, tables, the command that was meant, warnings."""

from __future__ import annotations

import json
import shlex
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.live.cli.test_standin import Broker, StandIn, bare, broker, running, stand_in

__all__ = ["bare", "broker", "running", "stand_in"]  # fixtures


def test_many_files_are_signed_in_one_call(broker: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file in files:
        file.write_bytes(file.name.encode())
    ended = broker("key", "sign", "pay", *files, "--format", "json")
    assert ended.code == 0, ended.err
    assert [name for name, _ in stand_in.seen] == ["BatchSign"]
    assert [file.with_name(f"{file.name}.sig").read_bytes() for file in files] == [
        b"\x00sig:a", b"\x00sig:b", b"\x00sig:c",
    ]  # fmt: skip
    assert stat.S_IMODE((tmp_path / "a.sig").stat().st_mode) == 0o600
    told = json.loads(ended.out)
    assert [(one["file"], one["version"], one["algorithm"]) for one in told] == [
        (str(file), 2, "ES256") for file in files
    ]


def test_many_files_are_all_signed_or_none(broker: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    (tmp_path / "b.sig").write_bytes(b"kept")
    (tmp_path / "long").write_bytes(b"x" * (64 * 1024 + 1))
    a, b, long = (tmp_path / name for name in ("a", "b", "long"))
    assert broker("key", "sign", "pay", a, b).code == 7
    assert broker("key", "sign", "pay", a, tmp_path / "missing").code == 1
    assert broker("key", "sign", "pay", a, long).code == 2
    assert broker("key", "sign", "pay", a, a).code == 2
    assert broker("key", "sign", "pay", a, "--out", tmp_path / "out").code == 2
    assert broker("key", "sign", "pay", *(f"{a}{number}" for number in range(101))).code == 2
    many = [tmp_path / f"full-{number}" for number in range(49)]
    for file in many:
        file.write_bytes(b"x" * 64 * 1024)
    assert "3 MiB" in broker("key", "sign", "pay", *many).err
    stand_in.failures["BatchSign"] = [(grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED", "No.")]
    assert broker("key", "sign", "pay", a).code == 3
    assert ([name for name, _ in stand_in.seen], (tmp_path / "b.sig").read_bytes()) == (["BatchSign"], b"kept")
    assert not (tmp_path / "a.sig").exists()


def test_a_table_is_for_people_and_the_rest_is_whole(broker: Broker, stand_in: StandIn) -> None:
    pem = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"
    before = stand_in.answers["GetTarget"]

    def answer(request: Any) -> Any:
        found = type(before(request))()
        found.CopyFrom(before(request))
        found.target.vault.ca_pem = pem
        found.target.create_time.nanos = 123_000_000
        return found

    stand_in.answers["GetTarget"] = answer
    rows = dict(line.split(None, 1) for line in broker("target", "show", "prod").out.splitlines())
    assert (rows["vault.ca_pem"], rows["vault.namespace"]) == (f"PEM of {len(pem)} characters", "-")
    assert rows["create_time"] == "2026-05-28T20:26:40Z"
    told = json.loads(broker("target", "show", "prod", "--format", "json").out)
    assert (told["vault"]["ca_pem"], told["create_time"]) == (pem, "2026-05-28T20:26:40.123Z")
    probes = next(line for line in broker("hsm", "--format", "env").out.splitlines() if line.startswith("HSM_PROBES="))
    assert json.loads(shlex.split(probes.partition("=")[2])[0])[0]["name"] == "wrap"


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("sign pay", "'broker key sign'"), ("whoami", "'broker operator whoami'"), ("version", "'broker --version'"),
        ("kye", "'key'"), ("key delete pay", "'destroy'"), ("target delete prod", "'remove'"), ("key lst", "'list'"),
    ],
)  # fmt: skip
def test_a_word_that_is_no_command_leads_to_the_one_that_is_meant(broker: Broker, line: str, meant: str) -> None:
    ended = broker(*line.split())
    assert (ended.code, f"Did you mean {meant}?" in ended.err) == (2, True), ended.err


def test_a_group_that_no_policy_names_is_told(broker: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    text = 'permit (principal in Group::"admins", action, resource);'
    before = stand_in.answers["GetPolicy"]
    stand_in.answers["GetPolicy"] = lambda request: type(before(request))(policy={"text": text})
    assert "no group admin," in broker("operator", "groups", "bob", "--group", "admin").err
    assert "no group" not in broker("operator", "groups", "bob", "--group", "admins").err
    stand_in.failures["GetPolicy"] = [(grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED", "No.")]
    assert broker("operator", "add", "bob", "--group", "admin", "--out", tmp_path / "bob").code == 0


def test_a_profile_that_leads_nowhere_else_is_told(broker: Broker, tmp_path: Path) -> None:
    assert "correct the address" in broker("operator", "issue", "bob", "--out", tmp_path / "bob").err


def test_a_renewal_that_gives_less_than_was_asked_says_so(broker: Broker) -> None:
    assert "and not 100" in broker("operator", "renew", "--hours", "100").err
