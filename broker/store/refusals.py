"""What the database's errors mean to the broker. No message holds SQL, a value or the database's own text."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.reasons import Reason
from broker.store.causes import causes

CONFLICTS = {"40001", "40P01"}
"""SQLSTATE of a transaction that lost against another one: serialization_failure, deadlock_detected."""

_SENTENCES = {
    "08": "The database cannot be reached",
    "28": "The database refused the broker's login",
    "53": "The database has no space, memory or connection left",
    "55": "Another change holds the same rows",
    "57": "The database is shutting down or took too long",
}


def refusal(error: SQLAlchemyError) -> BrokerError:
    """The broker's error for any error of SQLAlchemy or of the drivers below it."""
    state = sqlstate(error)
    if state in CONFLICTS:
        return WrongState(Reason.CHANGED_MEANWHILE, "Somebody else changed the same thing at this moment; try again.")
    if isinstance(error, PoolTimeoutError):
        return unavailable("All connections to the database are busy")
    if cause := causes(str(error.orig)) if isinstance(error, DBAPIError) else "":
        what = "did not do it" if state else "cannot be reached"
        return Unavailable(
            Reason.STORE_UNAVAILABLE, f"The database {what}: {cause}. Nothing was changed; see the log too."
        )
    return unavailable(_SENTENCES.get(state[:2], "The database cannot be reached or does not answer as it should"))


def unavailable(what: str) -> Unavailable:
    """``STORE_UNAVAILABLE``, which a later call may find healed."""
    return Unavailable(
        Reason.STORE_UNAVAILABLE, f"{what}; nothing was changed. Try again, or look at the broker's log."
    )


def unconfirmed() -> Unavailable:
    """``STORE_UNAVAILABLE`` for a commit without an answer: what the audit says was intended may or may not be done."""
    return Unavailable(
        Reason.STORE_UNAVAILABLE,
        "The database did not confirm the change after its audit record was written, so it may or may not have been "
        "made; look before you repeat it, or repeat it under the same request id.",
    )


def sqlstate(error: SQLAlchemyError) -> str:
    """The SQLSTATE of an error from PostgreSQL, else an empty text."""
    return getattr(error.orig, "sqlstate", None) or "" if isinstance(error, DBAPIError) else ""
