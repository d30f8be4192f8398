"""A process with two targets, for rotations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from broker.core.errors import Unavailable
from broker.core.kinds import ImportState, KeyType, KeyUsage, OperatorState, Phase, SignatureAlgorithm
from broker.core.model import Import, Key, KeyMove, KeyVersion, Operation, Operator, Target
from broker.core.policy.guard import Guard
from broker.core.rotations.rotating import Rotated
from tests.crash.harness import Ground, World
from tests.fakes.shelf import Shelf, kek

TARGETS = ("bao", "prod")
AWAY = Unavailable("TARGET_UNREACHABLE", "Away.")
REQUEST = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"


class Shelves:
    """The way to each."""

    def __init__(self, shelves: Mapping[str, Shelf]) -> None:
        self._shelves = shelves

    def __call__(self, name: str, kind: str, settings: Mapping[str, str]) -> Any:  # noqa: ARG002
        return self._shelves[name]

    def canonical(self, kind: str, settings: Mapping[str, str]) -> dict[str, str]:  # noqa: ARG002
        return dict(settings)


class Premises(Ground):
    """What outlives a process, the targets among it."""

    def __init__(self) -> None:
        super().__init__()
        self.shelves = {name: Shelf() for name in TARGETS}

    def takers(self, passing: Callable[[str], None]) -> Any:  # noqa: ARG002 (nobody dies here)
        return Shelves(self.shelves)

    makers = takers


class House(World):
    """A process with two targets and the key ``pay`` at both."""

    ground: Premises

    def __init__(self, ground: Premises | None = None, guard: Guard | None = None) -> None:
        super().__init__(ground or Premises(), guard)
        self.shelves = self.ground.shelves

    def furnish(self, *targets: str) -> None:
        alice = Operator(
            name="alice",
            groups=("admins",),
            state=OperatorState.ENABLED,
            not_before=self.clock(),
            created_at=self.clock(),
        )
        with self.store.write(self.call("OperatorService/AddOperator").outcome()) as write:
            write.add(alice)
        asked = self.call("KeyService/CreateKey")
        self.keys.create(asked, "pay", KeyType.EC_P256, KeyUsage.SIGN, exportable=True, labels={}, owner="")
        for name in targets or TARGETS:
            offered = kek()
            with self.store.write(self.call("TargetService/CreateTarget").outcome()) as write:
                write.add(
                    Target(
                        name=name, kind="shelf", settings={}, kek_id=offered.id, kek_thumbprint=offered.thumbprint,
                        created_at=self.clock(),
                    )
                )  # fmt: skip
            self.imports.import_key(self.call("ImportService/ImportKey"), "pay", 1, name, "")

    def rotate(self, grace: timedelta | None = None, request_id: str = "") -> Rotated:
        return self.rotations.rotate(self.call("KeyService/RotateKey", request_id), "pay", grace)

    def rounds(self, count: int = 1, **forward: float) -> None:
        """What the background does every two seconds."""
        for _ in range(count):
            self.clock.forward(**(forward or {"seconds": 2}))
            for rows in self.operations.due().values():
                for row in rows:
                    self.operations.carry_on(self.own(row.subject), row)

    def away(self, name: str) -> None:
        """From now on until ``back``."""
        self.shelves[name].refuses = {
            method: [AWAY] * 10_000 for method in ("versions", "import_key", "sign", "disable")
        }

    def back(self, name: str) -> None:
        self.shelves[name].refuses = {}

    # ---- what there is -------------------------------------------------------------------------------------------

    def key(self) -> Key:
        found: Key | None = self.store.get(Key, "pay")
        assert found is not None
        return found

    def phases(self) -> dict[int, Phase]:
        return {row.number: row.phase or Phase.ACTIVE for row in self.rows(KeyVersion) if row.key == "pay"}

    def moves(self) -> list[tuple[int, str, str, str]]:
        return [(row.version, row.phase.value, row.actor, row.reason) for row in self.rows(KeyMove)]

    def copies(self) -> dict[tuple[str, int], ImportState]:
        return {(row.target, row.version): row.state for row in self.rows(Import)}

    def enabled(self, name: str) -> list[int]:
        """The versions that can be used at a target, in the order of their arrival."""
        return [number for number, one in enumerate(self.shelves[name].held.get("pay", []), 1) if one.enabled]

    def rotation(self, number: int = 1) -> Operation:
        found: Operation | None = self.store.get(Operation, "key/pay/rotation", number)
        assert found is not None
        return found

    def signs(self) -> int:
        """The version that a signature is made with."""
        asked = self.call("KeyService/Sign")
        return self.use.sign(asked, "pay", SignatureAlgorithm.ES256, [b"pay 10 to bob"], prehashed=False).version
