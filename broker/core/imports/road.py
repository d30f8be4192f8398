"""One attempt to bring a key to a place: what its call has looked up, what it sends, and what is remembered of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.imports.arrival import Arrival, Extra, Found
from broker.core.imports.delivery import NAME_REFUSED, Delivery, Parcel
from broker.core.imports.places import Before
from broker.core.imports.rules import MISSING, NO_TERMS
from broker.core.imports.terms import written
from broker.core.kinds import Sent
from broker.core.model import Import, Target, Terms
from broker.core.operations.plan import Over, Work
from broker.core.ports import Carries


@dataclass(slots=True, kw_only=True)
class Road:
    """One attempt: what its call has looked up, and what it hears of besides. Without ``delivery`` nothing is sent."""

    there: Arrival
    target: Target
    delivery: Delivery | None = None
    found: Found | None = None
    row: Import | None = None
    extra: tuple[Extra, ...] = ()
    files: Carries | None = None
    file: bytes = b""


def uploaded(work: Work, road: Road) -> Found:
    """Send it; what the target has of it then. Remembers what left the HSM, and that the target has confirmed it."""
    delivery = road.delivery
    if delivery is None:
        raise WrongState(MISSING, "Nothing is sent without a call that asks for it.")
    try:
        delivery.must_be_in_order()
        parcel = delivery.pack()
    except Unavailable as error:
        raise Over(error) from error  # nothing has left
    digest, kek = hashlib.sha256(parcel.blob).hexdigest(), parcel.offer.key.thumbprint
    work.learn(blob_sha256=digest, kek_thumbprint=kek, sent=sent(road).value)
    work.call.note(blob_sha256=digest, kek_thumbprint=kek)
    found = _taken(work, road, delivery, parcel)
    if found is None:
        work.learn(confirmed="1")
        found = delivery.confirmed()
    return found


def _taken(work: Work, road: Road, delivery: Delivery, parcel: Parcel) -> Found | None:
    """What came of the upload; refused for its name, nothing more can be there than before."""
    try:
        return delivery.upload(parcel)
    except BrokerError as error:
        if error.reason in NAME_REFUSED and road.row is not None and road.row.sent is not None:
            work.learn(sent=road.row.sent.value)
        raise


def sent(road: Road) -> Sent:
    """What has left for the place once an upload has; a file that was handed out can be carried there at any time."""
    return Sent.FILE if road.row is not None and road.row.sent is Sent.FILE else Sent.UPLOAD


def remembered(before: Before, found: Found | None, terms: Terms) -> dict[str, str]:
    """What is known when an operation begins: what was found of earlier attempts, and what is asked for."""
    memory = {} if terms == NO_TERMS else {"terms": written(terms)}
    if found is not None:
        version = found.remote.version
        memory["remote_version"] = version
        if before.proven(version):
            memory["proven"] = "1"
        if disabled_for := before.disabled_for(version):
            memory["disabled_for"] = disabled_for
    return memory
