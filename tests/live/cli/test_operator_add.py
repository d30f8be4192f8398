"""`broker operator add` and `issue`: what they hand over, and what they leave behind when they are refused."""

from __future__ import annotations

import stat
from pathlib import Path

import grpc
from broker_cli.key_pairs import fresh_key

from tests.live.cli.test_standin import Broker, StandIn, bare, broker, running, stand_in

__all__ = ["bare", "broker", "running", "stand_in"]  # fixtures


def test_operator_add_hands_over_a_profile_that_works(broker: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    folder = tmp_path / "bob"
    ended = broker("operator", "add", "bob", "--group", "admins", "--hours", "2", "--out", folder)
    assert ended.code == 0, ended.err
    assert (list(stand_in.asked("AddOperator").groups), stand_in.asked("AddOperator").ttl.seconds) == (["admins"], 7200)
    assert {path.name for path in folder.iterdir()} == {
        "key.pem",
        "cert.pem",
        "ca.pem",
        "operator-ca.pem",
        "profile.toml",
    }
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert broker("operator", "whoami", "--profile", folder).code == 0
    before = (folder / "cert.pem").read_bytes()
    assert broker("operator", "renew", "--profile", folder).code == 0
    assert (folder / "cert.pem").read_bytes() != before
    assert broker("operator", "whoami", "--profile", folder).code == 0
    stand_in.seen.clear()
    assert broker("operator", "issue", "bob", "--out", folder).code == 7
    assert stand_in.seen == []


def test_operator_add_leaves_nothing_when_refused(broker: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.failures["AddOperator"] = [(grpc.StatusCode.ALREADY_EXISTS, "NAME_TAKEN", "The name is taken.")]
    assert broker("operator", "add", "bob", "--out", tmp_path / "bob").code == 7
    assert broker("operator", "add", "bob", "--out", tmp_path / "bob", "--dry-run").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["config"]


def test_operator_add_takes_a_request_and_never_a_key(broker: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    key, request = fresh_key()
    (tmp_path / "csr.pem").write_bytes(request)
    assert broker("operator", "issue", "bob", "--csr", tmp_path / "csr.pem", "--out", tmp_path / "bob").code == 0
    assert not (tmp_path / "bob" / "key.pem").exists()
    stand_in.seen.clear()
    (tmp_path / "csr.pem").write_bytes(request + key)
    assert broker("operator", "issue", "eve", "--csr", tmp_path / "csr.pem", "--out", tmp_path / "eve").code == 2
    assert stand_in.seen == []
