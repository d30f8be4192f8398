"""`broker audit verify` and `broker audit show` as they are typed."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from broker_cli.audit import audit, read_heads
from broker_cli.chain import Kept
from broker_cli.main import cli
from broker_cli.refusal import Refusal
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.unit.cli.test_audit import PEM, journal


def exported(kept: list[Kept]) -> list[dict[str, object]]:
    def one(head: Kept) -> dict[str, object]:
        signature = base64.b64encode(head.signature).decode()
        described = {"chain": head.chain, "sequence": head.sequence, "hash": head.hash}
        return described | {"sign_time_text": head.time, "signature": signature}

    return [one(head) for head in kept]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(audit, [str(one) for one in arguments])
    code = result.return_value if isinstance(result.return_value, int) else result.exit_code
    return code, result.stdout, result.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "journals").mkdir()
    (tmp_path / "journals" / "host-1.jsonl").write_bytes(journal().bytes)
    (tmp_path / "key.pem").write_bytes(PEM)
    (tmp_path / "heads.json").write_text(json.dumps(exported(journal().kept)))
    return tmp_path


def verify_folder(folder: Path, *more: object) -> dict[str, object]:
    arguments = ["audit", "verify", folder / "journals", "--public-key", folder / "key.pem", "--format", "json", *more]
    result = CliRunner().invoke(cli, [str(one) for one in arguments], standalone_mode=False)
    told: dict[str, object] = json.loads(result.stdout)
    return told | {"code": result.return_value}


def test_the_command_ends_with_10_when_anything_is_found(folder: Path) -> None:
    assert verify_folder(folder, "--heads", folder / "heads.json")["code"] == 0
    path = folder / "journals" / "host-1.jsonl"
    path.write_bytes(path.read_bytes().replace(b"alice", b"mally", 1))
    told = verify_folder(folder)
    assert told["code"] == 10
    assert told["intact"] is False


def test_a_torn_line_that_was_looked_into_is_told_and_no_finding(folder: Path) -> None:
    path = folder / "journals" / "host-1.jsonl"
    path.write_bytes(path.read_bytes() + b'{"authn":"mtls"')
    assert verify_folder(folder)["code"] == 10
    assert verify_folder(folder, "--known-torn", "host-2")["code"] == 10
    told: Any = verify_folder(folder, "--known-torn", "host-1")
    assert (told["code"], [note["reason"] for note in told["notes"]]) == (0, ["LINE_TORN"])


def test_the_command_refuses_another_kind_of_key(folder: Path) -> None:
    other = ec.generate_private_key(ec.SECP384R1()).public_key()
    (folder / "key.pem").write_bytes(
        other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    code, out, err = run("verify", folder / "journals", "--public-key", folder / "key.pem")
    assert (code, out) == (1, "")  # click's own runner; `broker` gives 2
    assert "PUBLIC_KEY_INVALID" in err


def test_one_chain_without_a_head_does_not_put_the_key_in_doubt(folder: Path) -> None:
    journals = folder / "journals"
    unsigned = journal("host-2").bytes.split(b"\n")[0] + b"\n"
    (journals / "host-2.jsonl").write_bytes(unsigned)
    _, _, err = run("verify", journals, "--public-key", folder / "key.pem")
    assert "NOT ok" in err
    assert "audit key?" not in err
    (journals / "host-1.jsonl").unlink()
    assert "audit key?" in run("verify", journals, "--public-key", folder / "key.pem")[2]


@pytest.mark.parametrize("content", ["[]", "{}", "[1]", "nonsense", '[{"chain": "a"}]', "[" * 90_000])
def test_AU_12_heads_that_are_none_are_refused(content: str) -> None:
    with pytest.raises(Refusal, match="heads"):
        read_heads(content.encode())


def test_show_filters_and_escapes(folder: Path) -> None:
    given_ = journal().add(1, principal="operator/eve\x1b[2J\u202e")
    (folder / "journals" / "host-1.jsonl").write_bytes(given_.bytes)
    _, out, _ = run("show", folder / "journals", "--principal", "operator/eve\x1b[2J\u202e")
    assert "operator/eve\\x1b[2J\\u202e" in out
    assert "\x1b" not in out
    assert out.count("KeyService/Sign") == 1
    assert run("show", folder / "journals", "--resource", "key/other", "--format", "json")[1] == "[]\n"
