"""``broker audit``: verify and read the journals without any broker; fetch and sign heads with one."""

from __future__ import annotations

import base64
import binascii
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from broker_cli import ask, certificates, files
from broker_cli.chain import (
    MAX_TAIL_RECORDS,
    MAX_TAIL_SECONDS,
    FollowedChain,
    Kept,
    Signed,
    TailLimits,
    Verdict,
    Verifier,
)
from broker_cli.journal import NotAJournalError, lines, moment
from broker_cli.journal import files as journal_files
from broker_cli.nouns import Noun
from broker_cli.output import Output, formatted
from broker_cli.refusal import Exit, Refusal
from broker_cli.screen import chat
from broker_cli.wire import Wire, remote
from broker_cli.words import record

MAX_HEADS = 64 * 1024 * 1024
HEAD_COLUMNS = ("chain", "sequence", "sign_time", "hash")
HANDOVER_COLUMNS = ("handover_time", "former_key", "successor_key")
ENTRY_COLUMNS = ("time", "phase", "principal", "rpc", "resource", "decision", "outcome", "reason")
_FORK = "after a restore of the token that is so: then name each key that you know for the broker's with --public-key"
_ANOTHER_KEY = {"SIGNATURE_INVALID", "NOTHING_SIGNED"}
_places = click.argument("places", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))


@click.group(
    cls=Noun,
    epilog="\b\nExamples:\n  broker audit key > audit.pem\n"
    "  broker audit heads --format json > heads.json   (keep it elsewhere)\n"
    "  broker audit verify /srv/broker/journal --public-key audit.pem --heads heads.json\n",
)
def audit() -> None:
    """Verify and read the audit; fetch and sign its heads."""


@audit.command(epilog="Ends with exit code 10 when anything was found. Folders are searched for *.jsonl.")
@_places
@click.option(
    "--public-key",
    "public_keys",
    required=True,
    multiple=True,
    metavar="FILE",
    help="The audit key, PEM, got from the broker earlier, or later: hand-overs are followed. May be repeated.",
)
@click.option(
    "--handovers", "handovers_file", metavar="FILE",
    help="Hand-overs of the audit key, exported as JSON, where the journals that have them are gone.",
)  # fmt: skip
@click.option(
    "--heads", "heads_file", metavar="FILE", help="Heads exported earlier as JSON: shows a chain that was cut."
)
@click.option(
    "--max-tail-records",
    type=click.IntRange(min=0),
    metavar="N",
    default=MAX_TAIL_RECORDS,
    show_default=True,
    help="So many records may follow the newest signed head.",
)
@click.option(
    "--max-tail-seconds", type=click.IntRange(min=0), metavar="SECONDS", default=MAX_TAIL_SECONDS, show_default=True,
    help="And span so long.",
)  # fmt: skip
@click.option(
    "--known-torn", multiple=True, metavar="CHAIN",
    help="A chain whose torn last line was looked into and is explained: told, and no finding any more.",
)  # fmt: skip
@formatted
def verify(
    out: Output,
    places: tuple[Path, ...],
    public_keys: tuple[str, ...],
    handovers_file: str | None,
    heads_file: str | None,
    known_torn: tuple[str, ...],
    **tail: int,
) -> int:
    """Verify journals (files and folders) against the audit key: no broker and no network is needed."""
    from broker_cli import audit_keys  # noqa: PLC0415  json and mmap, for this command alone

    found = journal_files(places)
    told = [*audit_keys.in_journals(found), *(audit_keys.in_file(handovers_file) if handovers_file else [])]
    keys = audit_keys.follow(
        [audit_keys.spki(certificates.public_key(pin, "public key").encode()) for pin in public_keys], told
    )
    kept = read_heads(files.take(heads_file, MAX_HEADS, "heads")) if heads_file else []
    limits = TailLimits(records=tail["max_tail_records"], seconds=tail["max_tail_seconds"])
    with ask.waiting("verifying") as show:
        verifier = Verifier(keys, kept, limits, known_torn, keys.replaced)
        verdict = verifier.run(found, lambda n: show(f"verifying: {n} records"))
    for fork in keys.forks:
        verdict.find("HANDOVER_FORKED", f"the audit key {fork[-16:]}… was handed over to two others; {_FORK}")
    _tell(out, verdict)
    return int(Exit.OK if verdict.intact else Exit.FINDINGS)


@audit.command()
@_places
@click.option("--principal", help="Only entries of this principal, for example operator/alice.")
@click.option("--resource", help="Only entries about this resource, for example key/payments.")
@click.option("--outcome", help="Only entries with this outcome, for example ok or PERMISSION_DENIED.")
@click.option("--call", help="Only entries of this call.")
@formatted
def show(out: Output, places: tuple[Path, ...], **wanted: str | None) -> int:
    """Print the entries of journals. This verifies nothing; "broker audit verify" does."""
    found, unreadable = [], 0
    for path in journal_files(places):
        try:
            for line in lines(path):
                if line.record is None:
                    chat(f"{path}:{line.number}: {line.fault}")
                    unreadable += 1
                elif line.record["kind"] == "entry" and _matches(line.record, wanted):
                    found.append(line.record)
        except (NotAJournalError, OSError) as fault:
            chat(f"{path}: {fault.strerror if isinstance(fault, OSError) else fault}")
            unreadable += 1
    out.many("entry", found, ENTRY_COLUMNS)
    return int(Exit.FINDINGS if unreadable else Exit.OK)


@audit.command()
@formatted
@remote
def key(wire: Wire, out: Output) -> None:
    """Print the public key that verifies heads. Keep it where the broker's host cannot change it."""
    from broker_cli.key_use import words_only  # noqa: PLC0415

    pem = wire.ask("audit", "GetAuditState").public_key_pem
    if out.format == "table":
        sys.stdout.write(words_only(pem))
    else:
        out.one("audit", {"public_key_pem": pem})


@audit.command()
@formatted
@remote
def handovers(wire: Wire, out: Output) -> None:
    """List how the audit key was handed over; as JSON it is what "broker audit verify --handovers" takes."""
    found = wire.ask("audit", "GetAuditState").handovers
    out.many("handover", [record(one) for one in found], HANDOVER_COLUMNS)


@audit.command()
@click.option("--chain", default="", help="Only this chain.")
@click.option("--newest", is_flag=True, help="Only the newest head of each chain.")
@formatted
@remote
def heads(wire: Wire, out: Output, chain: str, *, newest: bool) -> None:
    """List the signed heads; as JSON they are what "broker audit verify --heads" takes."""
    if newest:
        found = [head for head in wire.ask("audit", "GetAuditState").heads if chain in {"", head.chain}]
    else:
        found = list(wire.pages("audit", "ListAuditHeads", "heads", chain=chain))
    out.many("head", [record(head) for head in found], HEAD_COLUMNS)


@audit.command("sign-head")
@formatted
@remote
def sign_head(wire: Wire, out: Output) -> None:
    """Let the HSM sign how far the journals have come, for keeping elsewhere."""
    out.many("head", [record(head) for head in wire.ask("audit", "SignAuditHead").heads], HEAD_COLUMNS)


def signature_check(pem: bytes) -> Signed:
    """The check for one audit key: ECDSA on P-256 with SHA-256, and nothing else (a key of another kind is refused)."""
    from broker_cli.audit_keys import follow, spki  # noqa: PLC0415  for those who verify alone

    return follow([spki(pem)], [])


def read_heads(content: bytes) -> list[Kept]:
    """Heads as ``broker audit heads --format json`` writes them; a file that is anything else is refused whole."""
    try:
        heads = json.loads(content)
        kept = [_kept(head) for head in heads]
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError, binascii.Error, NotAJournalError):
        raise Refusal(
            "HEADS_INVALID", 'The heads are not what "broker audit heads --format json" writes.', Exit.USAGE
        ) from None
    if not kept:
        raise Refusal("HEADS_INVALID", "The file of heads holds none, so it proves nothing.", Exit.USAGE)
    return kept


def _kept(head: dict[str, Any]) -> Kept:
    moment(head["sign_time_text"])
    if type(head["sequence"]) is not int or not isinstance(head["chain"], str) or not isinstance(head["hash"], str):
        raise TypeError
    return Kept(
        chain=head["chain"],
        sequence=head["sequence"],
        hash=head["hash"],
        time=head["sign_time_text"],
        signature=base64.b64decode(head["signature"], validate=True),
    )


def _matches(entry: dict[str, Any], wanted: dict[str, str | None]) -> bool:
    """A call on several resources is recorded as "key/a,target/b"; each of them is found."""
    return all(
        value is None or entry[name] == value or (name == "resource" and value in entry[name].split(","))
        for name, value in wanted.items()
    )


def _tell(out: Output, verdict: Verdict) -> None:
    chains = [_brief(chain) for chain in verdict.chains.values()]
    findings, notes = [asdict(one) for one in verdict.findings], [asdict(one) for one in verdict.notes]
    if out.format != "table":
        told = {"intact": verdict.intact, "records": verdict.records}
        out.one("audit", told | {"chains": chains, "findings": findings, "notes": notes})
        return
    columns = ("chain", "file", "line", "reason", "detail")
    out.many("chain", chains, ("chain", "records", "signed", "unsigned", "unsigned_seconds"))
    for title, found in (("findings", findings), ("notes", notes)):
        if found:
            chat(f"{title}:")
            out.many(title, found, columns)
    if verdict.intact:
        chat(f"ok: {verdict.records} records; everything up to the signed heads is as it was written.")
    else:
        chat(f"NOT ok: findings: {len(verdict.findings)}, records: {verdict.records}.")
        if all(one["reason"] in _ANOTHER_KEY for one in findings) and not any(one["signed"] for one in chains):
            chat("Not one head is signed by this key: is it this broker's audit key?")


def _brief(chain: FollowedChain) -> dict[str, Any]:
    return {
        "chain": chain.name,
        "records": chain.count,
        "signed": chain.head,
        "head_time": chain.head_time.isoformat() if chain.head_time else None,
        "unsigned": chain.unsigned,
        "unsigned_seconds": chain.unsigned_seconds,
    }
