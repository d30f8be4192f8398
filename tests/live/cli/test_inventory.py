"""``key list``, ``key show`` and ``key schedule`` against a stand-in: what is asked for, and how it is told."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from broker_api.v1 import imports_pb2, keys_pb2
from broker_cli import doctor_caller
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.live.cli.test_standin import Broker, StandIn, bare, broker, running, stand_in

__all__ = ["bare", "broker", "running", "stand_in"]  # fixtures

WHEN = Timestamp(seconds=1_780_000_000)


@pytest.fixture(autouse=True)
def found(stand_in: StandIn) -> keys_pb2.Key:
    key = keys_pb2.Key(
        name="pay",
        type=keys_pb2.KEY_TYPE_EC_P256,
        usage=keys_pb2.KEY_USAGE_SIGN,
        state=keys_pb2.KEY_STATE_ENABLED,
        labels={"team": "billing"},
        owner="operator/alice",
        primary_version=2,
        primary_create_time=WHEN,
        schedule=keys_pb2.KeySchedule(
            every=Duration(seconds=90 * 86_400), set_by="operator/alice", next_time=WHEN, failure="POLICY_DENIED"
        ),
        overdue=True,
        copies=[
            imports_pb2.Import(key="pay", version=2, target="prod", state=imports_pb2.IMPORT_STATE_PROVEN),
            imports_pb2.Import(key="pay", version=2, target="never", never_sent=True),
        ],
    )
    plain = keys_pb2.Key(name="plain", owner="operator/alice")
    stand_in.answers |= {
        "ListKeys": lambda _: keys_pb2.ListKeysResponse(keys=[key, plain]),
        "GetKey": lambda _: keys_pb2.GetKeyResponse(key=key),
        "SetKeySchedule": lambda _: keys_pb2.SetKeyScheduleResponse(key=key),
    }
    return key


def test_the_list_asks_for_what_is_wanted_and_tells_what_is_overdue(broker: Broker, stand_in: StandIn) -> None:
    told = broker(
        "key", "list", "--label", "team=billing", "--state", "destroy-scheduled", "--target", "prod", "--overdue"
    )
    asked = stand_in.asked("ListKeys")
    assert dict(asked.labels) == {"team": "billing"}
    assert (asked.state, asked.target, asked.overdue) == (keys_pb2.KEY_STATE_DESTROY_SCHEDULED, "prod", True)
    assert "OVERDUE" in told.out
    assert "prod (proven)" in told.out
    assert "never" not in told.out


def test_csv_has_every_field_of_every_key_and_nothing_that_a_spreadsheet_runs(
    broker: Broker, found: keys_pb2.Key
) -> None:
    found.owner = "=HYPERLINK(1)"
    rows = list(csv.DictReader(io.StringIO(broker("key", "list", "--format", "csv").out)))
    assert [row["name"] for row in rows] == ["pay", "plain"]
    assert (rows[0]["owner"], rows[0]["labels.team"], rows[0]["schedule.every"]) == (
        "'=HYPERLINK(1)",
        "billing",
        "7776000",
    )
    assert (rows[1]["schedule.every"], rows[1]["overdue"]) == ("", "false")
    assert "target=prod" in rows[0]["copies"].split()
    assert "{" not in rows[0]["copies"]


def test_show_asks_the_token_too(broker: Broker, stand_in: StandIn) -> None:
    shown = json.loads(broker("key", "show", "pay", "--format", "json").out)
    assert stand_in.asked("GetKey").ask_token
    assert (shown["schedule"]["failure"], shown["copies"][0]["state"]) == ("POLICY_DENIED", "proven")


def test_a_schedule_is_set_shown_and_ended(broker: Broker, stand_in: StandIn) -> None:
    line = [
        "key",
        "schedule",
        "pay",
        "--every",
        "90d",
        "--jitter",
        "6h",
        "--warn",
        "14d",
        "--grace",
        "48h",
        "--blackout",
    ]
    assert broker(*line, "Mon-Fri 08:00-18:00 Europe/Berlin", "--blackout", "22:00-06:00").code == 0
    asked = stand_in.asked("SetKeySchedule")
    spans = [one.seconds for one in (asked.every, asked.jitter, asked.warn, asked.grace)]
    assert spans == [90 * 86_400, 6 * 3600, 14 * 86_400, 48 * 3600]
    assert list(asked.blackouts) == ["Mon-Fri 08:00-18:00 Europe/Berlin", "22:00-06:00"]
    for given in ("P90D", "90", "12w6d"):
        broker("key", "schedule", "pay", "--every", given)
        assert stand_in.asked("SetKeySchedule").every.seconds == 90 * 86_400
        assert not stand_in.asked("SetKeySchedule").HasField("warn")
    assert broker("key", "schedule", "pay", "--every", "1y").code == 0
    assert stand_in.asked("SetKeySchedule").every.seconds == 365 * 86_400
    broker("key", "schedule", "pay", "--off")
    assert not stand_in.asked("SetKeySchedule").HasField("every")
    asked_before = len(stand_in.seen)
    told = broker("key", "schedule", "pay").out
    assert "POLICY_DENIED" in told
    assert re.search(r"^every +90d$", told, re.MULTILINE)
    assert [name for name, _ in stand_in.seen[asked_before:]] == ["GetKey"]


@pytest.mark.parametrize("line", [
    "--every 0", "--every 0d", "--every 1000y", "--every P1000Y", "--every 59m", "--every soon", "--every ''",
    "--off --every 90d", "--off --blackout 22:00-06:00", "--jitter 6h", "--blackout 22:00-06:00",
])  # fmt: skip
def test_what_makes_no_schedule_is_refused_here_already(broker: Broker, stand_in: StandIn, line: str) -> None:
    ended = broker("key", "schedule", "pay", *line.replace("''", "").split())
    assert (ended.code, stand_in.seen) == (2, []), ended.err


def test_the_doctor_names_whose_schedule_is_held_and_what_to_do() -> None:
    schedules = [keys_pb2.KeySchedule(held=True), keys_pb2.KeySchedule(failure="APPROVAL_REQUIRED")]
    told = doctor_caller.held(iter(keys_pb2.Key(name=f"k{at}", schedule=one) for at, one in enumerate(schedules)))
    assert "2 of the keys are not rotated" in told.detail
    assert "k0 (it was restored), k1 (APPROVAL_REQUIRED); `broker key schedule NAME --every TIME`" in told.detail
    assert doctor_caller.held(iter([])).status == "ok"


def test_the_doctor_names_what_is_overdue_and_why() -> None:
    late = [keys_pb2.Key(name=f"k{number}", overdue=True) for number in range(7)]
    late[0].schedule.failure = "POLICY_DENIED"
    told = doctor_caller.overdue("keys", iter(late))
    assert (told.name, told.status) == ("keys-age", "warning")
    assert "7 of the keys are overdue: k0 (POLICY_DENIED), k1," in told.detail
    assert "k5" not in told.detail
    assert doctor_caller.overdue("secrets", iter([])).status == "ok"


def test_a_key_whose_version_in_force_is_compromised_is_named_with_its_repair(
    broker: Broker, stand_in: StandIn
) -> None:
    bad = keys_pb2.Key(
        name="pay",
        state=keys_pb2.KEY_STATE_ENABLED,
        primary_version=1,
        primary_phase=keys_pb2.KEY_VERSION_PHASE_COMPROMISED,
    )
    stand_in.answers["ListKeys"] = lambda _: keys_pb2.ListKeysResponse(keys=[bad, keys_pb2.Key(name="plain")])
    told = broker("key", "list", "--compromised")
    assert stand_in.asked("ListKeys").compromised
    assert "COMPROMISED" in told.out
    assert "`broker key rotate pay`" in told.err
    assert "plain" not in told.err
