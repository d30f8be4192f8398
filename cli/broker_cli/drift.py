"""``broker drift``: where a target or the HSM is not what the broker's record says."""

from __future__ import annotations

from typing import Any

import click

from broker_cli import ask, values
from broker_cli.output import Output, formatted
from broker_cli.refusal import Exit, Refusal
from broker_cli.screen import chat
from broker_cli.wire import Wire, patient, remote
from broker_cli.words import record

COLUMNS = ("place", "key", "version", "remote_name", "drift", "detail", "repair")
HSM = "HSM"


@click.command(
    epilog="\b\nDRIFT: deleted, disabled, replaced, exportable, enabled (though put out of use), returned (though it\n"
    "had come to nothing), extra-version, kek-changed; of the HSM: key-missing, key-differs.\n"
    "Ends with exit code 10 when there is any, with 5 when a place cannot be asked."
)
@click.option(
    "--target", type=values.Name("target"), metavar="TARGET", help="Only there; else at each, and in the HSM."
)
@click.option("--last", is_flag=True, help="Ask nobody: show what the last look at each place has found.")
@formatted
@remote
@patient
def drift(wire: Wire, out: Output, target: str | None, *, last: bool) -> int:
    """Look at each place where keys live, and show what is not as the record says, with the repair of each."""
    if target == "":
        raise click.BadParameter("it is empty; leave it out to look everywhere.", param_hint="--target")
    refusals: list[str] = []
    reports = _known(wire, target) if last else _looked(wire, target, refusals)
    rows = [{"place": report["target"] or HSM, **found} for report in reports for found in report["findings"]]
    out.many("finding", rows, COLUMNS)
    for report in reports if last else ():
        chat(f"{report['target'] or HSM}: looked at {report['check_time']}.")
    for refusal in refusals:
        chat(refusal)
    if rows:
        return int(Exit.FINDINGS)
    return int(Exit.UNAVAILABLE if refusals else Exit.OK)


def _known(wire: Wire, target: str | None) -> list[dict[str, Any]]:
    reports = [record(one) for one in wire.pages("drift", "ListDrift", "reports")]
    return [one for one in reports if target is None or one["target"] == target]


def _looked(wire: Wire, target: str | None, refusals: list[str]) -> list[dict[str, Any]]:
    places = [target] if target else ["", *(one.name for one in wire.pages("targets", "ListTargets", "targets"))]
    found = []
    for place in places:
        try:
            with ask.waiting(f"looking at {place or 'the HSM'}"):
                found.append(record(wire.ask("drift", "CheckDrift", target=place).report))
        except Refusal as refusal:
            if target:
                raise
            refusals.append(f"{place or HSM} could not be looked at: {refusal.reason}. {refusal.message}")
    return found
