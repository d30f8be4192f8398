"""Whether a call that the policy permits has the approvals that it needs, and what those are bound to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from broker.core.approval import Approval
from broker.core.errors import WrongState
from broker.core.kinds import ApprovalState
from broker.core.ports import Now, Write
from broker.core.reasons import Reason

KEEP = timedelta(days=7)
"""How long an approval that is over stays on record; the audit has it for good."""

CANDIDATES = 1000
"""Open approvals of one request: there is one, or as many as it was sent with other secret values."""

FOUND = ("kek_thumbprint", "version")
"""What the broker has found out for a request that does not say it, and an approval is bound to as well."""

_FORM = b"broker-approval-v1"


class ApprovalRequired(WrongState):
    """The call is permitted and lacks approvals; nothing of it was done. The gate says how to get them."""


class Values(Protocol):
    """The secret values that come with a request: nothing of them is kept but what only the HSM can compare."""

    def mac(self) -> bytes:
        """What to keep."""

    def same(self, kept: bytes) -> bool:
        """Whether ``kept`` was made of these values."""


@dataclass(slots=True, kw_only=True)
class Clearance:
    """Of one call, made by the gate. ``exact``: its request in one form, without request id and secret values.

    ``count``: how many of the approvals of a row still count. ``facts`` are the call's.
    """

    call_id: str
    rpc: str
    requester: str
    now: Now
    exact: Callable[[], bytes]
    details: Callable[[], Mapping[str, str]]
    count: Callable[[Write, Approval], int]
    facts: Mapping[str, str | int]
    needs: int = 0
    spent: str = ""  # the id of the approval that this call has used
    repeated: bool = False  # the request was carried out before, and is only answered again
    values: Values | None = None
    digest: str = field(default="", init=False)

    @property
    def lacking(self) -> bool:
        """Whether approvals are needed, and were not used yet."""
        return self.needs > 0 and not self.spent and not self.repeated

    def need(self, approvals: int) -> None:
        """So many at least."""
        self.needs = max(self.needs, approvals)

    def found(self) -> dict[str, str]:
        """What the approval is bound to beside the request."""
        return {name: str(self.facts[name]) for name in FOUND if name in self.facts}

    def spend(self, write: Write) -> None:
        """Use up an approval of this very request, in the transaction that records what is done upon it.

        ``ApprovalRequired`` when there is none: not enough people have approved, or those may not any more, or the
        request is another, or it was used before. If the transaction fails, the approval is as it was.
        """
        if not self.needs:
            return
        self.digest = self.digest or self._digest()
        if self.spent and self._is_ours(write.get(Approval, self.spent)):
            return
        self.spent = ""
        where = {"digest": self.digest, "state": ApprovalState.OPEN.value}
        for row in write.page(Approval, limit=CANDIDATES, where=where):
            if self.fits(row) and self.count(write, row) >= self.needs:
                write.replace(row, over(row, ApprovalState.USED, self.now(), call=self.call_id))
                write.note(approval=row.id)
                self.spent = row.id
                return
        raise ApprovalRequired(
            Reason.APPROVAL_REQUIRED,
            "The call needs approvals (`broker approval list`); send it again once others have approved it.",
        )

    def fits(self, row: Approval) -> bool:
        """Whether the row is open and about this very request."""
        mine = (row.digest, row.requester) == (self.digest, self.requester)
        if not mine or row.state is not ApprovalState.OPEN or row.expires_at <= self.now():
            return False
        if self.values is None or row.values_mac is None:
            return self.values is None and row.values_mac is None
        return self.values.same(row.values_mac)

    def _is_ours(self, row: Approval | None) -> bool:
        return row is not None and row.state is ApprovalState.USED and row.call == self.call_id

    def _digest(self) -> str:
        """Of the method, who asks, what was found out, and the request: each with its length before it."""
        found = [f"{name}={value}" for name, value in sorted(self.found().items())]
        parts = (self.rpc.encode(), self.requester.encode(), "\n".join(found).encode(), self.exact())
        return hashlib.sha256(b"".join((_FORM, *(len(one).to_bytes(8, "big") + one for one in parts)))).hexdigest()


def over(row: Approval, state: ApprovalState, at: datetime, *, call: str = "", by: str = "", why: str = "") -> Approval:
    """The row, over from that moment on."""
    return replace(row, state=state, due_at=at + KEEP, call=call, ended_by=by, why=why)
