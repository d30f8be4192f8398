"""The verifier over changes of the audit key: whoever pinned one key follows, and nobody without both inserts one."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from broker_cli.audit import audit
from broker_cli.audit_keys import follow, in_journals
from broker_cli.chain import Verdict, Verifier
from broker_cli.refusal import Refusal
from click.testing import CliRunner
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker.core import entries as written
from broker.core.audit.handover import BY_FORMER, BY_SUCCESSOR, FORMER, SUCCESSOR, TIME, statement
from tests.unit.cli.test_audit import START, Journal, entry

Key = ec.EllipticCurvePrivateKey
OLD, NEW, NEWEST, EVIL = (ec.generate_private_key(ec.SECP256R1()) for _ in range(4))
DAY = timedelta(days=1)


def spki(key: Key) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def pem(key: Key) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def handover(former: Key, successor: Key, at: datetime = START, by: tuple[Key, Key] | None = None) -> dict[str, str]:
    """As the broker writes it; ``by``: who has really signed."""
    time = at.isoformat(timespec="microseconds")
    said = statement(spki(former), spki(successor), time)
    first, second = by or (former, successor)
    return {
        FORMER: spki(former).hex(),
        SUCCESSOR: spki(successor).hex(),
        TIME: time,
        BY_FORMER: first.sign(said, ec.ECDSA(hashes.SHA256())).hex(),
        BY_SUCCESSOR: second.sign(said, ec.ECDSA(hashes.SHA256())).hex(),
    }


def told(journal: Journal, facts: dict[str, str]) -> Journal:
    """An entry of the broker's own with a hand-over."""
    record = replace(entry(0, journal.at), rpc="-", resource="audit/handover", facts=facts)
    lines = journal.lines or []
    line, journal.last = written.encode(record, journal.chain, len(lines) + 1, journal.last)
    journal.lines = [*lines, line]
    return journal


def rotated(chain: str = "host-1") -> Journal:
    """Signed by the old key, handed over in the middle, signed by the new one."""
    journal = Journal(chain).add(3).sign(OLD)
    told(journal, handover(OLD, NEW, journal.at))
    return journal.add(2).sign(NEW)


def verified(tmp_path: Path, *journals: Journal, pins: list[Key], more: list[dict[str, str]] | None = None) -> Verdict:
    paths = []
    for number, journal in enumerate(journals):
        paths.append(tmp_path / f"copy-{number}.jsonl")
        paths[-1].write_bytes(journal.bytes)
    keys = follow([spki(pin) for pin in pins], [*in_journals(paths), *(more or [])])
    verdict = Verifier(keys, replaced=keys.replaced).run(paths)
    for fork in keys.forks:
        verdict.find("HANDOVER_FORKED", fork)
    return verdict


def reasons(verdict: Verdict) -> set[str]:
    return {one.reason for one in verdict.findings}


@pytest.mark.parametrize("pin", [OLD, NEW], ids=["old", "new"])
def test_who_pinned_either_key_follows(tmp_path: Path, pin: Key) -> None:
    later = Journal("host-2", at=START + DAY).add(2).sign(NEW)
    verdict = verified(tmp_path, rotated(), later, pins=[pin])
    assert verdict.intact, verdict.findings


def test_two_hand_overs_are_followed_from_the_first_pin_to_the_last_key(tmp_path: Path) -> None:
    journal = rotated()
    told(journal, handover(NEW, NEWEST, journal.at)).add(2).sign(NEWEST)
    for pin in (OLD, NEW, NEWEST):
        assert verified(tmp_path, journal, pins=[pin]).intact


def test_where_the_journals_of_the_change_are_gone_an_export_of_the_hand_overs_does(tmp_path: Path) -> None:
    later = Journal("host-2", at=START + DAY).add(2).sign(NEW)
    assert reasons(verified(tmp_path, later, pins=[OLD])) == {"SIGNATURE_INVALID", "NOTHING_SIGNED"}
    assert verified(tmp_path, later, pins=[OLD], more=[handover(OLD, NEW)]).intact


@pytest.mark.parametrize(
    "forged",
    [
        handover(OLD, EVIL, by=(EVIL, EVIL)),
        handover(EVIL, OLD, by=(EVIL, EVIL)),
        handover(OLD, EVIL, by=(OLD, OLD)),
        {**handover(OLD, NEW), SUCCESSOR: spki(EVIL).hex()},
        {**handover(OLD, NEW), TIME: "2027-01-01T00:00:00.000000+00:00"},
        {**handover(OLD, EVIL), BY_FORMER: "zz"},
        {**handover(OLD, EVIL), FORMER: "30"},
        {**handover(OLD, EVIL), SUCCESSOR: "00" * 1000},
        {FORMER: spki(OLD).hex(), BY_SUCCESSOR: "00"},
    ],
    ids=range(9),
)
def test_A_10_a_forger_without_both_keys_inserts_none(tmp_path: Path, forged: dict[str, Any]) -> None:
    """What follows is signed by the forger's key, as the broker would sign it."""
    journal = told(Journal().add(3).sign(OLD), forged).add(2).sign(EVIL)
    assert "SIGNATURE_INVALID" in reasons(verified(tmp_path, journal, pins=[OLD]))


def test_A_10_who_has_the_former_key_alone_hands_it_over_to_nobody_unseen(tmp_path: Path) -> None:
    evil = told(Journal("evil-1", at=START).add(1).sign(OLD), handover(OLD, EVIL)).add(1).sign(EVIL)
    for pins in ([OLD], [NEW], [OLD, NEW]):
        verdict = verified(tmp_path, rotated(), evil, pins=pins)
        assert {"HANDOVER_FORKED", "SIGNATURE_INVALID"} <= reasons(verdict)
    assert verified(tmp_path, rotated(), pins=[NEW]).intact


def test_after_a_restore_of_the_token_two_successors_that_are_both_pinned_are_both_taken(tmp_path: Path) -> None:
    again = told(Journal("host-2").add(1).sign(OLD), handover(OLD, NEWEST)).add(1).sign(NEWEST)
    assert verified(tmp_path, rotated(), again, pins=[NEW, NEWEST]).intact


def test_A_10_the_former_key_signs_nothing_after_its_successor_or_a_day_later(tmp_path: Path) -> None:
    assert reasons(verified(tmp_path, rotated().add(1).sign(OLD), pins=[OLD])) == {"KEY_SUPERSEDED"}
    late = Journal("host-2", at=START + 2 * DAY).add(1).sign(OLD)
    assert "KEY_SUPERSEDED" in reasons(verified(tmp_path, rotated(), late, pins=[OLD]))
    soon = Journal("host-2", at=START + timedelta(hours=1)).add(1).sign(OLD)
    assert verified(tmp_path, rotated(), soon, pins=[OLD]).intact


def test_the_command_follows_and_takes_an_export(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    (folder / "copy.jsonl").write_bytes(Journal("host-2", at=datetime.now(UTC)).add(2).sign(NEW).bytes)
    (tmp_path / "old.pem").write_bytes(pem(OLD))
    (tmp_path / "handovers.json").write_text(json.dumps([handover(OLD, NEW)]))
    (tmp_path / "other.json").write_text("{}")
    words = ["verify", str(folder), "--public-key", str(tmp_path / "old.pem")]
    assert CliRunner().invoke(audit, words, standalone_mode=False).return_value == 10
    followed = [*words, "--handovers", str(tmp_path / "handovers.json")]
    assert CliRunner().invoke(audit, followed, standalone_mode=False).return_value == 0
    refused = CliRunner().invoke(audit, [*words, "--handovers", str(tmp_path / "other.json")], standalone_mode=False)
    assert isinstance(refused.exception, Refusal)
    assert refused.exception.reason == "HANDOVERS_INVALID"
