"""Keys as the wire shows them, alone or as entries of the inventory, and what is asked about them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType

from broker_api.v1 import keys_pb2 as wire
from google.protobuf.duration_pb2 import Duration

from broker.core.inventory.lifecycle import Entry, Filter
from broker.core.kinds import ScheduleState
from broker.core.model import Key
from broker.core.report import Origin
from broker.core.schedule import KeySchedule
from broker.core.schedules.lifecycle import Wish
from broker.rpc import codec
from broker.rpc.imports import row

NOTHING_HELD: Mapping[str, list[int]] = MappingProxyType({})


def key(one: Key, held: Mapping[str, list[int]] = NOTHING_HELD) -> wire.Key:
    """A key, without what stands beside it."""
    return wire.Key(
        name=one.name,
        type=codec.KEY_TYPE.wire(one.type),
        usage=codec.KEY_USAGE.wire(one.usage),
        exportable=one.exportable,
        labels=one.labels,
        owner=one.owner,
        state=codec.KEY_STATE.wire(one.state),
        primary_version=one.primary,
        create_time=codec.timestamp(one.created_at),
        destroy_time=codec.timestamp(one.destroy_at),
        revision=one.revision,
        held_versions=held.get(one.name, ()),
        destroyed_at_targets=bool(one.destroyed_at_targets),
        sealed_once_at=one.sealed_once_at or (),
    )


def shown(entry: Entry, held: Mapping[str, list[int]] = NOTHING_HELD) -> wire.Key:
    """A key with all that stands beside it."""
    primary, used, standing = entry.primary, entry.used, entry.standing
    beside = wire.Key(
        primary_create_time=codec.timestamp(primary.created_at if primary else None),
        schedule=schedule(entry.schedule, standing.next_at) if entry.schedule else None,
        overdue=standing.overdue,
        due_soon=standing.soon,
        last_user=used.principal if used else "",
        last_use_time=codec.timestamp(used.used_at if used else None),
        primary_phase=codec.PHASE.wire(entry.phase) if entry.phase else wire.KEY_VERSION_PHASE_UNSPECIFIED,
        copies=[row(one) for one in entry.copies],
    )
    beside.MergeFrom(key(entry.key, held))
    return beside


def schedule(one: KeySchedule, next_at: datetime | None = None) -> wire.KeySchedule:
    """A schedule. ``next_at``: when the key is due; None: at the time that was reckoned last."""
    return wire.KeySchedule(
        every=Duration(seconds=one.every),
        jitter=Duration(seconds=one.jitter),
        blackouts=one.blackouts,
        warn=Duration(seconds=one.warn),
        grace=Duration(seconds=one.grace),
        set_by=one.set_by,
        next_time=codec.timestamp(next_at or one.next_at),
        failure=one.failure,
        held=one.state is ScheduleState.HELD,
    )


def origin(entry: Entry, found: Origin | None, failure: str, token_serial: str) -> wire.KeyOrigin:
    """What the token tells of the version in force; what it does not tell stays unset."""
    told = wire.KeyOrigin(token_serial=token_serial, failure=failure)
    if entry.primary is not None:
        told.hsm_id = entry.primary.hsm_id.hex()
    for name in Origin.__dataclass_fields__ if found else ():
        value = getattr(found, name)
        if value is not None:
            setattr(told, name, value)
    return told


def asked(request: wire.ListKeysRequest) -> tuple[Filter, tuple[str, ...]]:
    """Which keys are wanted, and the same as texts, which a page's token is bound to."""
    state = codec.KEY_STATE.optional(request.state)
    labels = dict(request.labels)
    flags = {"overdue": request.overdue, "held": request.held, "compromised": request.compromised}
    wanted = Filter(labels=labels, state=state, owner=request.owner, target=request.target, **flags)
    if wanted.wants_all:
        return wanted, ()
    return wanted, (
        *(f"{name}={value}" for name, value in sorted(labels.items())),
        state or "", request.owner, request.target, str(request.overdue),
        *["held"] * request.held, *["compromised"] * request.compromised,
    )  # fmt: skip


def wish(request: wire.SetKeyScheduleRequest) -> Wish | None:
    """How the key is to be rotated by itself; None: it is not."""
    every = codec.duration(request, "every", least=0, most=codec.LONG_AGES)
    if every is None:
        if request.HasField("jitter") or request.blackouts or request.HasField("warn") or request.HasField("grace"):
            raise codec.missing("every")  # who forgets it does not mean to end the schedule
        return None
    return Wish(
        every=every,
        jitter=codec.duration(request, "jitter", least=0, most=codec.LONG_AGES) or timedelta(0),
        blackouts=tuple(request.blackouts),
        warn=codec.duration(request, "warn", least=0, most=codec.LONG_AGES),
        grace=codec.duration(request, "grace", least=0, most=codec.LONG_AGES),
    )
