"""Copies that are on record already: the target is asked whether they are there still, and its answer written down.

What a target no longer shows has not gone with that: what was deleted there can often be recovered. It is GONE when the
target has nothing of it any more that could come back (``ports.Target.remains``).
"""

from __future__ import annotations

from dataclasses import replace

from broker.core import ports
from broker.core.amiss import not_enabled
from broker.core.call import Call
from broker.core.errors import WrongState
from broker.core.imports.ledger import Asked, Imported, Ledger
from broker.core.imports.proof import UNTRIED, prove
from broker.core.imports.rules import MISSING, NO_TERMS, OVER, agree
from broker.core.imports.terms import written
from broker.core.kinds import ImportState, KeyState, Sent
from broker.core.model import Import, RemoteKey, Terms
from broker.core.reasons import Reason
from broker.core.receipts import keep, replay
from broker.core.targets.copies import place_of
from broker.core.targets.parts import terms_of

VERDICTS = frozenset({Reason.PROOF_FAILED, Reason.REMOTE_KEY_EXPOSED, MISSING})
"""Refusals that say something against the key at the target; any other only says that it could not be asked."""


def prove_again(ledger: Ledger, asked: Asked, row: Import, *, goes_on: bool = False) -> RemoteKey:
    """The remote version, proven just now. A verdict against it is written down, and then raised.

    ``goes_on``: the call does not end with it when the target shows nothing any more. Of a copy that was put out of use
    it is only looked whether it is there still.
    """
    port = ledger.port(asked.target)
    try:
        remote = _shown(ledger, port, asked, row)
        if row.state is ImportState.DISABLED:
            raise _out_of_use(asked, remote)
        prove(ledger.hsm, port, asked.ref, remote)
    except WrongState as error:
        if error.reason in VERDICTS and not asked.call.validate_only:
            state = ImportState.GONE if isinstance(error, _Gone) else ImportState.FAILED
            if goes_on and error.reason == MISSING:
                ledger.mark(asked.call, row, MISSING, state)
            else:
                ledger.fail(asked.call, row, error, state)
        raise
    return remote


def again(ledger: Ledger, asked: Asked, row: Import, terms: Terms, *, goes_on: bool = False) -> Imported:
    """Proven before, and proven now; nothing is sent but the terms, unless this very request has set them already.

    What is limited there so that it cannot be tried is refused, unless terms were asked for: then it is as it was last
    proven, which its ``proven_at`` tells. ``goes_on``: see ``prove_again``.
    """
    port = ledger.port(asked.target)
    agree(asked.call, asked.key, port, terms)
    proven, new = _tried(ledger, asked, row, terms, goes_on=goes_on), row
    if terms != NO_TERMS and not asked.call.validate_only and not ledger.seen(asked.call):
        ledger.store.record(asked.call.intent())
        terms_of(port).apply(row.remote_name, row.remote_version, terms)
        proven = proven or _tried(ledger, asked, row, terms, goes_on=goes_on)
        new = replace(row, terms=written(terms))
    asked.call.note(remote_version=row.remote_version, state=row.state.value)
    if asked.call.validate_only:
        return Imported(row=row)
    return Imported(row=_kept(ledger, asked.call, row, replace(new, proven_at=ledger.now()) if proven else new))


def _tried(ledger: Ledger, asked: Asked, row: Import, terms: Terms, *, goes_on: bool) -> bool:
    try:
        prove_again(ledger, asked, row, goes_on=goes_on)
    except WrongState as error:
        if error.reason not in UNTRIED or terms == NO_TERMS:
            raise
        return False
    return True


def _kept(ledger: Ledger, call: Call, row: Import, new: Import) -> Import:
    try:
        with ledger.store.write(call.outcome()) as write:
            if replay(write, call) is None:
                keep(write, call, row.key, row.version)
            new = new if new is row else write.replace(row, new)
    except WrongState as error:
        return ledger.overtaken(place_of(row), error)
    call.closed = True
    return new


def _shown(ledger: Ledger, port: ports.Target, asked: Asked, row: Import) -> RemoteKey:
    """The version as the target shows it; WrongState ``REMOTE_KEY_MISSING`` says whether it can come back."""
    idle = asked.key.type.symmetric and asked.key.state is not KeyState.ENABLED
    if row.state in OVER and not idle:
        _, rows = ledger.rows(asked)
        found = ledger.arrival(asked, port, row.remote_name, row, rows).find()
        there = found.remote if found else None
    else:
        held = port.versions(row.remote_name)
        there = next((one for one in held if row.state in OVER or one.version == row.remote_version), None)
    if there is None:
        raise _missing(row, port.remains(row.remote_name))
    if idle:
        raise not_enabled(
            asked.key,
            f"the target shows a version {there.version} of {row.remote_name}, and a symmetric key is proven by its "
            "use, which takes an enabled one",
        )
    return there


def _out_of_use(asked: Asked, remote: RemoteKey) -> WrongState:
    """It is there, and nobody is to use it: proven, it would look as if it were in order."""
    ours, shown = asked.version.public_key, remote.public_key
    what = " as another key, which is not the broker's to delete" if ours and shown and ours != shown else ""
    return WrongState(
        Reason.IMPORT_NOT_PROVEN,
        "This copy was put out of use there, since its version was retired or compromised, or its key was to be "
        f"destroyed. The target shows its version {remote.version} of {remote.name} still{what}. As long as the "
        "version may be imported, importing it again puts it back to use; `broker drift` tells whether it is still out "
        "of use.",
    )


class _Gone(WrongState):
    """The target does not have it any more, and nothing there could bring it back."""


def _missing(row: Import, remains: str) -> WrongState:
    name, version = row.remote_name, row.remote_version
    what = f"version {version} of {name}" if version else f"key {name} that is this one"
    if remains:
        way_out = f"It may come back, so it stays on record: {remains}"
    elif row.sent is Sent.FILE and not row.remote_version:  # once it was seen there, it is the target's that counts
        way_out = "A file that holds it was handed out and can still be imported there, so it stays on record."
    else:
        way_out = "Nothing of it is there that could come back; import the key again if it is to be there."
        return _Gone(MISSING, f"The target shows no {what}. {way_out}")
    return WrongState(MISSING, f"The target shows no {what}. {way_out}")
