"""What others do to a journal afterwards, or try to write into it: every change is found, every line stays one."""

from __future__ import annotations

import hashlib
import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from broker.core.entries import FACTS, MAX_RECORD_BYTES, head_statement
from broker.core.model import AuditHead
from broker.store.journal import Journal
from tests.contracts.store.samples import T0, BadJournalError, calls, entry, filled, now, read_journal, start, tail
from tests.servers.patience import PATIENCE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def rewrite(folder: Path, lines: list[bytes]) -> None:
    (file,) = folder.iterdir()
    file.write_bytes(b"".join(line + b"\n" for line in lines))


def test_AU_01_every_flipped_bit_is_found(folder: Path) -> None:
    filled(folder, 20)
    journal = start(folder, lambda: T0 + timedelta(1), vouched=tail(folder))
    last = journal.heads()[0]
    journal.close()
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    dice = random.Random(1)  # noqa: S311 - the same bits each time
    for _ in range(1000):
        path = dice.choice(list(whole))
        place, bit = dice.randrange(len(whole[path])), dice.randrange(8)
        changed = bytearray(whole[path])
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        assert is_wrong(folder, last), f"bit {bit} of byte {place}"
        path.write_bytes(whole[path])
    assert not is_wrong(folder, last)


def is_wrong(folder: Path, last: AuditHead) -> bool:
    """A reader that was given the newest head from elsewhere, and follows the link between the two chains."""
    try:
        chains = read_journal(folder)
    except BadJournalError:
        return True
    chain = chains.get(last.chain, [])
    if len(chain) != last.sequence or digest(chain[-1]) != last.hash:
        return True
    facts = chain[0]["facts"]
    former = chains.get(facts["former_chain"], [])
    return (len(former), digest(former[-1])) != (facts["former_sequence"], facts["former_hash"])


def digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_AU_02_deleting_reordering_duplicating_inserting_and_splicing_are_found(folder: Path, tmp_path: Path) -> None:
    lines = filled(folder, 6)
    other = filled(tmp_path / "other", 6)
    forged = json.dumps({**json.loads(lines[3]), "call": "x"}, sort_keys=True, separators=(",", ":")).encode()
    for place in range(6):
        rest = lines[place + 1 :]
        for changed in (
            [*lines[:place], *rest],
            [*lines[:place], lines[place + 1], lines[place], *rest[1:]],
            [*lines[:place], lines[place], lines[place], *rest],
            [*lines[:place], forged, *lines[place:]],
            [*lines[:place], other[place], *rest],
            [*lines[:place], *other[place:]],
        ):
            rewrite(folder, changed)
            if changed != lines[:place]:
                with pytest.raises(BadJournalError):
                    read_journal(folder)
    rewrite(folder, lines)
    read_journal(folder)


@pytest.fixture(scope="module")
def hsm_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def sign(key: ec.EllipticCurvePrivateKey, head: AuditHead) -> AuditHead:
    said = head_statement(head.chain, head.sequence, head.hash, head.signed_at)
    return replace(head, signature=key.sign(said, ec.ECDSA(SHA256())))


def test_AU_03_a_cut_is_found_by_the_newest_head_kept_elsewhere(
    folder: Path, hsm_key: ec.EllipticCurvePrivateKey
) -> None:
    journal = start(folder)
    for number in range(5):
        journal.append(entry(str(number)))
    kept = sign(hsm_key, journal.heads()[0])
    journal.append(kept)
    journal.signed(kept)
    journal.append(entry("unsigned"))
    journal.close()
    (chain,) = read_journal(folder).values()
    assert (chain[6]["kind"], chain[6]["head_seq"], chain[6]["head_hash"]) == ("head", 6, kept.hash)
    (file,) = folder.iterdir()
    lines = file.read_bytes().splitlines()
    for count in range(len(lines)):
        rewrite(folder, lines[:count])
        found = next(iter(read_journal(folder).values()), [])
        cut = len(found) < kept.sequence or digest(found[kept.sequence - 1]) != kept.hash
        assert cut is (count < 6)


def test_AU_04_a_rewritten_chain_has_no_signature_for_its_heads(
    folder: Path, hsm_key: ec.EllipticCurvePrivateKey
) -> None:
    journal = start(folder)
    journal.append(entry("true"))
    journal.append(sign(hsm_key, journal.heads()[0]))
    journal.close()
    assert signatures_hold(folder, hsm_key.public_key())
    (old,) = read_journal(folder).values()
    forged: list[bytes] = []
    for record in old:
        changed = {**record, "prev": hashlib.sha256(forged[-1]).hexdigest() if forged else "0" * 64}
        if record["kind"] == "head":
            changed["head_hash"] = hashlib.sha256(forged[1]).hexdigest()
        elif record["call"]:
            changed["call"] = "false"
        forged.append(json.dumps(changed, sort_keys=True, separators=(",", ":")).encode())
    rewrite(folder, forged)
    read_journal(folder)  # the chain by itself holds
    assert not signatures_hold(folder, hsm_key.public_key())


def signatures_hold(folder: Path, public_key: ec.EllipticCurvePublicKey) -> bool:
    for chain in read_journal(folder).values():
        for record in chain:
            if record["kind"] == "head":
                said = f"broker-audit-head-v1\n{record['chain']}\n{record['head_seq']}\n{record['head_hash']}\n"
                try:
                    signature = bytes.fromhex(record["signature"])
                    public_key.verify(signature, f"{said}{record['time']}\n".encode(), ec.ECDSA(SHA256()))
                except InvalidSignature:
                    return False
    return True


def test_AU_05_two_replicas_append_at_once_without_fork_gap_or_reused_number(folder: Path) -> None:
    journals = [Journal(folder, f"replica-{number}", now, 64 * 1024, patience=PATIENCE) for number in range(2)]
    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(journals[number % 2].append, entry(str(number))) for number in range(2000)]
        for one in done:
            one.result()
    for journal in journals:
        journal.close()
    assert len(read_journal(folder)) == 2
    assert sorted(calls(folder), key=int) == [str(number) for number in range(2000)]


HOSTILE = [
    "\n",
    "\r\n",
    "\x1b[2J",
    "\u202e",
    "\u2028",
    "\0",
    '"}',
    "\\",
    "\ud800",
    "\U0001f511",
    "x" * 2**20,
    "🔑" * 2**18,
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_AU_06_one_record_is_one_line_of_printable_ascii_of_bounded_size(folder: Path, text: str) -> None:
    everywhere = dict.fromkeys(
        ["call_id", "rpc", "request_id", "principal", "authn", "credential", "peer", "resource", "decision", "outcome",
         "reason"], f"a{text}z",
    )  # fmt: skip
    facts: dict[str, str | int] = dict.fromkeys(FACTS, f"a{text}z")
    journal = start(folder)
    journal.append(entry(**everywhere, policies=(f"a{text}z",) * 100, facts=facts, policy_version=10**5000))
    journal.append(entry(facts=dict.fromkeys(FACTS, -(10**5000))))
    journal.close()
    (file,) = folder.iterdir()
    *lines, rest = file.read_bytes().split(b"\n")
    assert (len(lines), rest) == (3, b"")
    assert all(len(line) <= MAX_RECORD_BYTES and line.decode().isprintable() and line.isascii() for line in lines)
    read_journal(folder)
    if len(text) > 4:
        assert json.loads(lines[1])["peer"].endswith("…")


def test_AU_13_order_is_by_sequence_when_the_clock_goes_back(folder: Path) -> None:
    clock = iter([T0 + timedelta(hours=1), T0 + timedelta(hours=1)])
    journal = start(folder, lambda: next(clock))
    journal.append(entry("first", time=T0 + timedelta(hours=1)))
    journal.append(entry("second", time=T0))
    journal.close()
    (chain,) = read_journal(folder).values()
    assert [record["call"] for record in chain] == ["", "first", "second"]
    assert [record["seq"] for record in chain] == [1, 2, 3]
    assert chain[2]["time"] < chain[1]["time"]
