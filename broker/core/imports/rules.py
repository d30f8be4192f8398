"""What may be imported, under which remote name, and when again."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from broker.core import ports
from broker.core.amiss import not_enabled
from broker.core.call import Call
from broker.core.errors import BrokerError, Exhausted, InvalidRequest, NotFound, Unavailable, WrongState
from broker.core.imports.arrival import Found
from broker.core.keys.phases import Use, require_use
from broker.core.kinds import ImportState, KeyState, Sent, VersionState
from broker.core.model import Import, Key, KeyVersion, Terms
from broker.core.reasons import Reason
from broker.core.targets.copies import UNPROVEN, place_of
from broker.core.targets.parts import terms_of

NO_TERMS = Terms()
"""Nothing is asked for: the target is not spoken to about terms at all."""

EXPORTED = "EXPORTED"
"""Why an import is PENDING whose file was handed out, to be carried to the target by people."""

TERMS_UNSETTLED = "TERMS_UNSETTLED"
"""Why an import is PENDING that has been proven, and whose terms may or may not have been set."""

EARLIER = "An earlier attempt has left a key there that could not be proven."

MISSING = Reason.REMOTE_KEY_MISSING
"""Why an import has FAILED, or is GONE, that the target did not show any more when it was last asked."""

OVER = frozenset({ImportState.FAILED, ImportState.GONE})
"""Nothing is under way, and nothing there is in use as far as is known: the remote name binds nobody."""

MAX_COPIES = 1000
"""Copies of one key at one target, of all its versions and names, that may be there."""


MAX_GONE = 100
"""Copies of one key at one target that are known to be gone, and are kept on record all the same."""


def importable(key: Key, held: KeyVersion) -> None:
    """Return if this version may leave the HSM at all; the HSM has the last word when it is wrapped."""
    if key.state is not KeyState.ENABLED:
        raise not_enabled(key, "only an enabled key is imported")
    if held.state is not VersionState.ENABLED:
        raise WrongState(
            Reason.KEY_STATE,
            f"Version {held.number} of the key {key.name} is {held.state}, and only an enabled one is imported; "
            f"`broker key versions {key.name}` shows which are.",
        )
    require_use(key, held, Use.IMPORT)
    if not key.exportable:
        raise WrongState(
            Reason.KEY_NOT_EXPORTABLE,
            "The key is not exportable: it was created so, or sealed since. It never leaves the HSM; create an "
            "exportable one to import it.",
        )
    if held.sealed:
        raise WrongState(
            Reason.KEY_SEALED,
            "The key was sealed, so it never leaves the HSM again; rotate it and import the new version.",
        )


def latest(rows: list[Import], version: int) -> Import | None:
    """The copy of this version that is meant when no remote name is given: one that is not over, else the last one."""
    mine = [one for one in rows if one.version == version]
    return max(mine, key=lambda one: (one.state not in OVER, one.started_at), default=None)


def lost(row: Import) -> bool:
    """Whether it was proven once, and the target did not show it any more when it was asked again.

    What comes to light under its name since then is not taken for it before it has proven itself.
    """
    return row.failure == MISSING and row.proven_at is not None


def remote_name_of(key: str, version: int, rows: list[Import], wanted: str) -> str:
    """All versions of a key go to one remote name; a name that has come to nothing binds nobody."""
    bound = sorted((one for one in rows if one.state not in OVER), key=lambda one: (one.version, one.started_at))
    if not bound:
        row = latest(rows, version)
        return wanted or (row.remote_name if row else key)
    if wanted and wanted not in {one.remote_name for one in bound}:
        name = bound[-1].remote_name
        raise WrongState(
            Reason.REMOTE_NAME_DIFFERS,
            f"By the broker's record the key is at this target as {name}; give that remote name, or none. Once "
            f"`broker key prove` finds that it is not there any more, it can be imported under another one.",
        )
    return wanted or bound[-1].remote_name


def not_held(row: Import | None) -> None:
    """WrongState ``IMPORT_HELD`` for what was under way when the database was restored: nothing more is sent of it."""
    if row is not None and row.state is ImportState.HELD:
        raise WrongState(
            Reason.IMPORT_HELD,
            "This import was under way when the database was restored, and is held since; `broker key confirm` reads "
            "back what is at the target, and sends nothing.",
        )


def siblings(rows: list[Import], remote_name: str, state: ImportState = ImportState.PROVEN) -> list[Import]:
    """The proven ones among ``rows`` under this name, or those in another ``state``."""
    return [one for one in rows if one.state is state and one.remote_name == remote_name]


def provable(row: Import | None) -> Import:
    """The row, if the target can be asked about it: it was proven, or came to nothing and may be there all the same."""
    if row is None:
        raise NotFound(
            Reason.IMPORT_NOT_FOUND,
            "This version was not imported to this target under that name; `broker key where NAME` shows where it is.",
        )
    not_held(row)
    if row.failure == Reason.TARGET_CANNOT_DISABLE:
        raise WrongState(
            Reason.IMPORT_NOT_PROVEN,
            "Nobody is to use this copy any more, and its target could not disable it: proven again it would look as "
            "if it were in order. `broker drift` says what somebody has to disable there.",
        )
    asked = row.state in {ImportState.PROVEN, ImportState.DISABLED}
    if asked or (row.state in OVER and row.sent is not Sent.NOTHING):
        return row
    way_out = "confirm it once it was carried there" if row.failure == EXPORTED else "import it again, which settles it"
    raise WrongState(Reason.IMPORT_NOT_PROVEN, f"This import is {row.state} and was not proven yet; {way_out}.")


def resumed(new: Import, earlier: Import | None, found: Found | None) -> Import:
    """``new``, with what an attempt before has written down of the version that is there, lest a crash forgets it."""
    if earlier is None or found is None:
        return new
    same = earlier.remote_version == found.remote.version
    return replace(new, remote_version=found.remote.version, failure=earlier.failure if same else "")


def sent_before(earlier: Import | None) -> Sent:
    """What has left the HSM for this place before an attempt that begins now; what is not known counts as sent."""
    if earlier is None or not earlier.may_be_there:
        return Sent.NOTHING
    if earlier.sent is None or earlier.sent is Sent.NOTHING:  # it may have crashed before it could write that down
        return Sent.FILE if earlier.failure == EXPORTED else Sent.UPLOAD
    return earlier.sent


def disabled_by_us(row: Import) -> bool:
    """Whether an earlier proof failed and put the version out of use; somebody else's decision is not undone."""
    return row.failure not in {"", EXPORTED, UNPROVEN, Reason.REMOTE_KEY_DISABLED} and not lost(row)


def copies_where(store: ports.Store, **where: str | int) -> list[Import]:
    """Every copy on record of which this is true, those that are gone too."""
    found: list[Import] = []
    while len(found) % MAX_COPIES == 0:
        rows = store.page(Import, after=place_of(found[-1]) if found else (), limit=MAX_COPIES, where=where)
        if not rows:
            break
        found += rows
    return found


def has_room(store: ports.Store, key: str, target: str, more: int = 1) -> bool:
    """Whether so many copies more are still taken; those that are gone do not count."""
    where: dict[str, str | int] = {"key": key, "target": target}
    over = store.count(Import, where) + more - MAX_COPIES
    return over <= 0 or store.count(Import, {**where, "state": ImportState.GONE.value}) >= over


def make_room(store: ports.Store, new: Import) -> list[Import]:
    """What is to be forgotten when this copy is taken: what is gone long since, of which the audit tells for good.

    Exhausted ``IMPORT_QUOTA`` when so many may be there already.
    """
    where: dict[str, str | int] = {"key": new.key, "target": new.target}
    on_record = store.count(Import, where)
    gone = (
        store.count(Import, {**where, "state": ImportState.GONE.value}) if on_record >= min(MAX_GONE, MAX_COPIES) else 0
    )
    if on_record - gone >= MAX_COPIES:
        raise Exhausted(
            Reason.IMPORT_QUOTA,
            f"{MAX_COPIES} imports of this key to this target are on record, those that came to nothing or were "
            "disabled too: import a version again under the name that it has there (`broker key where`), or use "
            "another key.",
        )
    return _long_gone(copies_where(store, **where))[: gone - MAX_GONE] if gone > MAX_GONE else []


def _long_gone(rows: list[Import]) -> list[Import]:
    """The oldest first; but where the last version is gone, that stands against the former ones under its name."""
    first: dict[str, int] = {}
    for row in rows:
        if row.state is not ImportState.GONE:
            first[row.remote_name] = min(row.version, first.get(row.remote_name, row.version))
    gone = [row for row in rows if row.state is ImportState.GONE]
    gone.sort(key=lambda row: (row.version, row.started_at))
    return [row for row in gone if row.version <= first.get(row.remote_name, row.version)]


def still_enabled(second: BrokerError, why: str = EARLIER) -> WrongState:
    """What came to nothing (``why``, a sentence) could not be disabled at the target."""
    return WrongState(
        Reason.REMOTE_KEY_STILL_ENABLED,
        f"{why} It is still enabled at the target and must not be used there; the broker disables it as soon as the "
        f"target lets it. {second.message}",
    )


def in_progress(what: str, seconds: int = 0) -> Unavailable:
    """Somebody else is at it, or may be; after ``seconds``, if given, nobody can be any more."""
    after = {"retry_after_seconds": str(seconds)} if seconds else {}
    return Unavailable(Reason.IMPORT_IN_PROGRESS, f"This import is in progress: {what}.", **after)


def sound_terms(terms: Terms, now: datetime) -> None:
    """Return if the times make sense; else InvalidRequest ``TERMS_INVALID``."""
    if terms.expires_at is not None and terms.expires_at <= max(now, terms.not_before or now):
        raise InvalidRequest(
            Reason.TERMS_INVALID, "The key would expire before it could be used; give a later time to expire, or none."
        )


def agree(call: Call, key: Key, port: ports.Target, terms: Terms) -> None:
    """Return if the target can hold the key to ``terms``; else InvalidRequest ``TERMS_UNSUPPORTED``."""
    if terms == NO_TERMS:
        return
    terms_of(port).check_terms(key.type, key.usage, terms)
    call.note(enabled=int(terms.enabled))
    if terms.operations:
        call.note(operations=" ".join(terms.operations))
    for name, moment in (("not_before", terms.not_before), ("expires_at", terms.expires_at)):
        if moment is not None:
            call.note(**{name: moment.isoformat(timespec="seconds")})
