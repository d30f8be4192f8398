"""What is, or may be, at a target when it is to be forgotten, and how each is seen to before.

A key at a target is to be deleted there only while the broker has just proven it: what has its name by now may be
somebody else's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from broker.core import ports
from broker.core.errors import WrongState
from broker.core.kinds import ImportState, Sent
from broker.core.model import Import, Target
from broker.core.reasons import Reason
from broker.core.targets.copies import place_of

BATCH = 500

NOWHERE = frozenset({ImportState.GONE, ImportState.UNKNOWN})
"""What is known to be there no more, and what can never be known again."""


def refuse_in_use(rows: ports.Store | ports.Write, target: Target) -> None:
    """Return if nothing of ours is there or may come back; else WrongState ``TARGET_IN_USE``."""
    found = next((page[0] for page in _copies(rows, target)), None)
    if found is not None:
        raise WrongState(
            Reason.TARGET_IN_USE,
            f"Keys of the broker are at the target {target.name}, or may be or come back there (`broker key where "
            f"--target {target.name}`), for one version {found.version} of {found.key}, there as {found.remote_name}. "
            f"{_way_out(found)} Then repeat this. If that cannot be, or the target is gone for good, remove it with "
            "--copies-unknown: its copies are unknown from then on, and its name stays taken.",
        )


def give_up_copies(write: ports.Write, target: Target) -> int:
    """Mark as UNKNOWN what is, or may be, at a target that nobody can look into any more; how many that are."""
    count = 0
    for rows in _copies(write, target):
        write.replace_all([(row, replace(row, state=ImportState.UNKNOWN)) for row in rows])
        count += len(rows)
    return count


def _copies(rows: ports.Store | ports.Write, target: Target) -> Iterator[list[Import]]:
    for state in ImportState:
        where: dict[str, str | int] = {"target": target.name, "state": state.value}
        after: tuple[str | int, ...] = ()
        while state not in NOWHERE and (page := rows.page(Import, after=after, limit=BATCH, where=where)):
            after = place_of(page[-1])
            if found := [row for row in page if row.may_be_there]:
                yield found


def _way_out(row: Import) -> str:
    """What can be done about one of them that can harm nobody else's key."""
    named = f"{row.key} --version {row.version} --target {row.target} --remote-name {row.remote_name}"
    if row.state is ImportState.HELD:
        return f"It is held since a restore: `broker key confirm {named}` reads back what is there."
    if row.sent is Sent.FILE and not row.remote_version:
        return (
            "A file that holds it was handed out and can still be imported there: have that done, and `broker key "
            f"confirm {named}`."
        )
    if row.state in {ImportState.PENDING, ImportState.DISABLING}:
        return "It is being settled there; `broker operation list --live` shows what that waits for."
    return (
        f"`broker key prove {named}` asks the target about it, and what that finds gone is not in the way any more. "
        "Delete a key there only if it has just been proven by that or is this very key, out of use; anything else "
        "under that name may be somebody else's."
    )
