"""What is too long, or in another form than is wanted, is refused before it is sent, with a way out that fits."""

from __future__ import annotations

from pathlib import Path

import pytest
from broker_api.v1 import keys_pb2 as keys

from tests.live.cli.test_standin import Broker, StandIn, bare, broker, running, stand_in

__all__ = ["bare", "broker", "running", "stand_in"]  # fixtures


@pytest.mark.parametrize(("line", "size", "words"), [
    ("key sign pay", 70_000, ("Ed25519 key takes no digest", "-sha384 for ec-p384", "--digest")),
    ("key sign pay --digest", 65, ("openssl dgst -binary", "this has 65")),
    ("key sign pay --digest", 5_000, ("longer than 4096",)),
    ("key encrypt pay", 70_000, ("encrypt a random key of 32 bytes",)),
])  # fmt: skip
def test_K12_what_is_too_long_has_one_true_way_out(
    broker: Broker, stand_in: StandIn, tmp_path: Path, line: str, size: int, words: tuple[str, ...]
) -> None:
    file = tmp_path / "long"
    file.write_bytes(b"a" * size)
    ended = broker(*line.split(), "--in", file)
    assert (ended.code, stand_in.seen) == (2, [])
    assert all(word in ended.err for word in words), ended.err


def test_K19_what_was_expected_and_what_came_reaches_the_terminal(
    broker: Broker, stand_in: StandIn, tmp_path: Path
) -> None:
    (tmp_path / "m").write_bytes(b"m")
    told = "Expected was a signature by version 1 with ES256. It is valid once it is taken for what it is."
    stand_in.answers["Verify"] = lambda _: keys.VerifyResponse(valid=False, version=1, told=told)
    ended = broker("key", "verify", "pay", "--in", tmp_path / "m", "--signature", tmp_path / "m")
    assert ended.code == 1
    assert told in ended.err


def test_K19_pss_is_announced_unless_it_was_asked_for(broker: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"m")
    made = keys.SignResponse(signature=b"s", version=1, algorithm=keys.SIGNATURE_ALGORITHM_PS256)
    stand_in.answers["Sign"] = lambda _: made
    assert "rsa_pss_saltlen:32" in broker("key", "sign", "pay", "--in", tmp_path / "m").err
    asked = broker("key", "sign", "pay", "--in", tmp_path / "m", "--algorithm", "PS256")
    assert "RSA-PSS" not in asked.err
