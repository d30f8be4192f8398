"""A process with a target, and what outlives it: for imports that die (``tests.crash.harness``)."""

from __future__ import annotations

from broker.core.entries import Phase
from broker.core.imports.handover import Exported
from broker.core.imports.ledger import Imported
from broker.core.imports.rules import NO_TERMS
from broker.core.kinds import KeyType, KeyUsage
from broker.core.model import Import, Target, Terms
from broker.core.policy.guard import Guard
from tests.crash.harness import Ground, World
from tests.fakes.shelf import Shelf, kek

REQUEST = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"


class Premises(Ground):
    """What outlives a process, a target among it."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = Shelf()


class House(World):
    """A process with a target."""

    def __init__(self, premises: Premises | None = None, guard: Guard | None = None) -> None:
        self.premises = premises or Premises()
        super().__init__(self.premises, guard, self.premises.shelf)
        self.shelf = self.premises.shelf
        self.shelf.passing = self._passing

    def _passing(self, name: str) -> None:
        """Whatever is changed at the target was announced before."""
        told = [entry for entry in self.premises.store.entries if entry.phase is Phase.INTENT]
        assert any("bao" in entry.resource for entry in told)
        self.fate.place(name)

    def restarted(self, guard: Guard | None = None) -> House:
        return House(self.premises, guard)

    def furnish(self, key_type: KeyType) -> None:
        asked = self.call("KeyService/CreateKey")
        usage = KeyUsage.ENCRYPT if key_type.symmetric else KeyUsage.SIGN
        self.keys.create(asked, "pay", key_type, usage, exportable=True, labels={}, owner="")
        offered = kek()
        with self.store.write(self.call("TargetService/CreateTarget").outcome()) as write:
            write.add(
                Target(
                    name="bao", kind="shelf", settings={}, kek_id=offered.id, kek_thumbprint=offered.thumbprint,
                    created_at=self.clock(),
                )
            )  # fmt: skip

    def bring(self, terms: Terms = NO_TERMS, request_id: str = REQUEST) -> Imported:
        return self.imports.import_key(self.call("ImportService/ImportKey", request_id), "pay", 0, "bao", "", terms)

    def export(self) -> Exported:
        return self.handover.export(self.call("ImportService/ExportKey", REQUEST), "pay", 0, "bao", "")

    def confirm(self, terms: Terms = NO_TERMS) -> Imported:
        return self.handover.confirm(self.call("ImportService/ConfirmImport"), "pay", 0, "bao", "", terms)

    def much_later(self) -> House:
        """When nothing can be on its way any more."""
        self.clock.forward(minutes=2)
        return self

    def chores(self) -> None:
        for resource, work in self.imports.chores():
            work(self.own(resource))

    def row(self) -> Import | None:
        found: Import | None = self.store.get(Import, "pay", 1, "bao", "pay")
        return found

    def held(self) -> Import:
        row = self.row()
        assert row is not None
        return row
