"""What a person sees of an approval, and what is kept of a command that waits for one."""

from __future__ import annotations

import stat
from pathlib import Path

import grpc
import pytest

from tests.live.cli.test_standin import Broker, StandIn, bare, broker, running, stand_in

__all__ = ["bare", "broker", "running", "stand_in"]  # fixtures

WAITS = (grpc.StatusCode.FAILED_PRECONDITION, "APPROVAL_REQUIRED", "Another operator has to approve it.")


@pytest.mark.parametrize("line", ["operator add bob", "operator issue bob"])
def test_a_certificate_that_waits_is_asked_for_again_with_the_very_same_request(
    broker: Broker, stand_in: StandIn, tmp_path: Path, line: str
) -> None:
    method = {"add": "AddOperator", "issue": "IssueCertificate"}[line.split()[1]]
    stand_in.failures[method] = [WAITS, WAITS]
    waiting = tmp_path / "profile.bob.waiting"
    asked = set()
    for code in (7, 7, 0):
        ended = broker(*line.split(), "--out", tmp_path / "profile")
        assert ended.code == code, ended.err
        asked.add(stand_in.asked(method).csr_pem)
        assert (waiting.exists(), str(waiting) in ended.err) == (code == 7, code == 7)
        if code:
            modes = {stat.S_IMODE(path.stat().st_mode) for path in waiting.iterdir()}
            assert (modes, stat.S_IMODE(waiting.stat().st_mode)) == ({0o600}, 0o700)
            assert not (tmp_path / "profile").exists()
    assert len(asked) == 1
    assert (tmp_path / "profile" / "key.pem").exists()
    assert broker("operator", "whoami", "--profile", tmp_path / "profile").code == 0


def test_CL_13_what_is_approved_is_shown_first_and_no_line_of_it_passes_for_another(
    broker: Broker, stand_in: StandIn
) -> None:
    ended = broker("approval", "approve", "0123456789ab", "--yes")
    assert ended.code == 0
    assert ended.err.splitlines() == [
        "operator/bob asks to seal a key: key/pay.",
        "  name: pay",
        "  text: ",
        "  | one",
        "  | two\\x1b[2J",
        "  digest: 00",
    ]
    assert [name for name, _ in stand_in.seen] == ["GetApproval", "Approve"]
    assert stand_in.asked("Approve").digest == "00", "what was shown"
