"""What may be imported, under which remote name, and when again."""

from __future__ import annotations

from datetime import datetime, timedelta

from broker.core.errors import InvalidRequest, NotFound, Unavailable, WrongState
from broker.core.kinds import ImportState, KeyState, VersionState
from broker.core.model import Import, Key, KeyVersion, Terms

NO_TERMS = Terms()
"""Nothing is asked for: the target is not spoken to about terms at all."""

EXPORTED = "EXPORTED"
"""Why an import is PENDING whose file was handed out, to be carried to the target by people."""

TERMS_UNSETTLED = "TERMS_UNSETTLED"
"""Why an import is PENDING that has been proven, and whose terms may or may not have been set."""

ANSWERED = frozenset({"TARGET_THROTTLED", "TARGET_CONFLICT", EXPORTED})
"""Why an import is PENDING although no request of ours can still be on its way."""

LEASE = timedelta(seconds=60)
"""How long an upload whose answer is missing may still be on its way; longer than any request to a target takes."""


def importable(key: Key, held: KeyVersion) -> None:
    """Return if this version may leave the HSM at all; the HSM has the last word when it is wrapped."""
    if key.state is not KeyState.ENABLED or held.state is not VersionState.ENABLED:
        raise WrongState(
            "KEY_STATE", f"The key is {key.state}, this version {held.state}; only an enabled one is imported."
        )
    if not key.exportable:
        raise WrongState(
            "KEY_NOT_EXPORTABLE",
            "The key is not exportable: it was created so, or sealed since. It never leaves the HSM; create an "
            "exportable one to import it.",
        )
    if held.sealed:
        raise WrongState(
            "KEY_SEALED", "The key was sealed, so it never leaves the HSM again; rotate it and import the new version."
        )


def remote_name_of(key: Key, row: Import | None, rows: list[Import], wanted: str) -> str:
    """All versions of a key go to one remote name; a name that has come to nothing binds nobody."""
    bound = [one.remote_name for one in rows if one.state is not ImportState.FAILED]
    if not bound:
        return wanted or (row.remote_name if row else key.name)
    if wanted not in {"", bound[0]}:
        raise WrongState(
            "REMOTE_NAME_DIFFERS", f"The key is at this target as {bound[0]}; give that remote name, or none."
        )
    return bound[0]


def not_held(row: Import | None) -> None:
    """WrongState ``IMPORT_HELD`` for what was under way when the database was restored: nothing more is sent of it."""
    if row is not None and row.state is ImportState.HELD:
        raise WrongState(
            "IMPORT_HELD",
            "This import was under way when the database was restored, and is held since; `broker key confirm` reads "
            "back what is at the target, and sends nothing.",
        )


def provable(row: Import | None) -> Import:
    """The row, if it is of a proven import."""
    if row is None:
        raise NotFound("IMPORT_NOT_FOUND", "This version was not imported to this target; import it.")
    not_held(row)
    if row.state is not ImportState.PROVEN:
        raise WrongState("IMPORT_NOT_PROVEN", f"This import is {row.state}; import the key again, which settles it.")
    return row


def disabled_by_us(row: Import, remote_version: str) -> bool:
    """Whether an earlier proof failed and put the version out of use; somebody else's decision is not undone."""
    return row.remote_version == remote_version and row.failure not in {"", EXPORTED, "REMOTE_KEY_DISABLED"}


def await_lease(row: Import, now: datetime) -> None:
    """Return when nothing of an earlier attempt can be on its way any more; else ``IMPORT_IN_PROGRESS`` (BY-15)."""
    left = (row.started_at + LEASE - now).total_seconds()
    if row.state is ImportState.PENDING and row.failure not in ANSWERED and left > 0:
        seconds = int(left) + 1
        raise in_progress(f"an earlier upload may still arrive; try again in {seconds} s", seconds)


def in_progress(what: str, seconds: int = 0) -> Unavailable:
    """Somebody else is at it, or may be; after ``seconds``, if given, nobody can be any more."""
    after = {"retry_after_seconds": str(seconds)} if seconds else {}
    return Unavailable("IMPORT_IN_PROGRESS", f"This import is in progress: {what}.", **after)


def sound_terms(terms: Terms, now: datetime) -> None:
    """Return if the times make sense; else InvalidRequest ``TERMS_INVALID``."""
    if terms.expires_at is not None and terms.expires_at <= max(now, terms.not_before or now):
        raise InvalidRequest(
            "TERMS_INVALID", "The key would expire before it could be used; give a later time, or none."
        )
