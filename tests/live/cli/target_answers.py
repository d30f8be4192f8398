"""What the stand-in of ``test_standin`` answers about targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import broker_api.v1.targets_pb2 as targets

from tests.live.cli.rotation_answers import WHEN

TARGET = targets.Target(name="prod", create_time=WHEN)
TARGET.vault.address = "https://vault:8200"
FINDINGS = [
    targets.TargetFinding(name="reachable", passed=True, detail="yes"),
    targets.TargetFinding(name="kek", detail="it changed"),
]
Answer = Callable[[Any], Any]


def target_answers() -> dict[str, Answer]:
    return {
        "CreateTarget": lambda r: targets.CreateTargetResponse(target=targets.Target(name=r.name, vault=r.vault)),
        "GetTarget": lambda _: targets.GetTargetResponse(target=TARGET),
        "ListTargets": lambda _: targets.ListTargetsResponse(targets=[TARGET]),
        "CheckTarget": lambda _: targets.CheckTargetResponse(findings=FINDINGS),
        "RepinTarget": lambda _: targets.RepinTargetResponse(target=TARGET),
        "DeleteTarget": lambda _: targets.DeleteTargetResponse(),
    }
