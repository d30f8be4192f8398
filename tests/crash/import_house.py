"""A process with a target, for imports that die (``tests.crash.harness``)."""

from __future__ import annotations

from typing import Any

from broker.core.imports.handover import Exported
from broker.core.imports.ledger import Imported
from broker.core.imports.rules import EXPORTED, NO_TERMS
from broker.core.kinds import ImportState, KeyType, KeyUsage, Sent
from broker.core.model import Import, Terms
from tests.crash.harness import World

REQUEST = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"


class House(World):
    """A process with a key and a target."""

    @property
    def shelf(self) -> Any:
        """The target, looked at from outside."""
        return self.ground.shelf

    @property
    def remote(self) -> str:
        """What the key is called there."""
        return str(self.ground.remote)

    def furnish(self, key_type: KeyType) -> None:
        asked = self.call("KeyService/CreateKey")
        usage = KeyUsage.ENCRYPT if key_type.symmetric else KeyUsage.SIGN
        self.keys.create(asked, "pay", key_type, usage, exportable=True, labels={}, owner="")
        with self.store.write(self.call("TargetService/CreateTarget").outcome()) as write:
            write.add(self.ground.target())

    def bring(self, terms: Terms = NO_TERMS, request_id: str = REQUEST) -> Imported:
        asked = self.call("ImportService/ImportKey", request_id)
        return self.imports.import_key(asked, "pay", 0, "bao", self.remote, terms)

    def export(self) -> Exported:
        return self.handover.export(self.call("ImportService/ExportKey", REQUEST), "pay", 0, "bao", self.remote)

    def confirm(self, terms: Terms = NO_TERMS) -> Imported:
        return self.handover.confirm(self.call("ImportService/ConfirmImport"), "pay", 0, "bao", self.remote, terms)

    def much_later(self) -> House:
        """When nothing can be on its way any more."""
        self.clock.forward(minutes=2)
        return self

    def adopt(self) -> None:
        """What the background does of imports, beside the operations."""
        for resource, work in self.imports.chores():
            work(self.own(resource))

    def check(self) -> None:
        """What the row says is what the target has, too."""
        super().check()
        row, there = self.row(), {one.version: one for one in self.shelf.there(self.remote)}
        if row is None:
            assert there == {}
            return
        assert row.state in {ImportState.PROVEN, ImportState.FAILED} or (row.state, row.failure) == (
            "pending",
            EXPORTED,
        )
        if row.state is ImportState.PROVEN:
            assert row.proven_at is not None
            assert there[row.remote_version].public_key == self._public()
        elif row.sent is Sent.NOTHING:
            assert there == {}
        if not self.shelf.swaps:
            assert len(self.shelf.enabled(self.remote)) <= 1, "one version of it at most can be used"

    def _public(self) -> bytes | None:
        found = self.store.version("pay", 1)
        assert found is not None
        key: bytes | None = found[1].public_key
        return key

    def row(self) -> Import | None:
        found: Import | None = self.store.get(Import, "pay", 1, "bao", self.remote)
        return found

    def held(self) -> Import:
        row = self.row()
        assert row is not None
        return row
