"""Static secrets on a store and an HSM of the test's choice, with a policy that lets them be used."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from broker.core.call import Call
from broker.core.model import Principal, RootKey, Secret, SecretVersion
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.secrets.lifecycle import Opened, parse_reference
from tests.fakes.calls import ADMIN, Clock
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.memory_store import MemoryStore
from tests.worlds.world import World

PIPELINE = Principal(kind="pipeline", name="deploy", method="oidc")
FIELDS = {"user": b"app", "password": b"canary-hunter2"}
POLICY = FIRST_POLICY + (
    '@id("deploy") permit (principal == Pipeline::"deploy", action == Action::"FetchSecrets", '
    'resource in Folder::"team/app");\n'
    '@id("labelled") permit (principal in Group::"label-a", action, resource is Secret) '
    'when { resource.hasTag("team") && resource.getTag("team") == "a" };\n'
    '@id("lists") permit (principal in Group::"label-a", action == Action::"ListSecrets", resource);\n'
)


class SecretsHouse(World):
    """A world in which secrets are used, with its first root key."""

    def __init__(self, store: Any, hsm: Any, *, keep: float = 60, clock: Clock | None = None) -> None:
        super().__init__(store, hsm, clock, policy=POLICY, keep=timedelta(seconds=keep))
        self.secrets.roots.ensure(self.own("root/1"))

    def call(self, method: str, principal: Principal = ADMIN, **more: Any) -> Call:
        service = "SessionService" if method == "FetchSecrets" else "SecretService"
        return self.asked(f"{service}/{method}", principal, **more)

    def put(
        self,
        name: str = "team/app/db",
        fields: Mapping[str, bytes] | None = None,
        *,
        expected: int | None = None,
        labels: dict[str, str] | None = None,
        expires_at: datetime | None = None,
        principal: Principal = ADMIN,
        **more: Any,
    ) -> Secret:
        return self.secrets.put(
            self.call("PutSecret", principal, **more),
            name,
            FIELDS if fields is None else fields,
            expected_version=expected,
            labels=labels or {},
            expires_at=expires_at,
        ).secret

    def patch(
        self,
        fields: Mapping[str, bytes],
        *remove: str,
        name: str = "team/app/db",
        expected: int | None = None,
        principal: Principal = ADMIN,
        **more: Any,
    ) -> Secret:
        made = self.call("PatchSecret", principal, **more)
        return self.secrets.patch(made, name, fields, list(remove), expected_version=expected).secret

    def read(self, text: str = "team/app/db", principal: Principal = ADMIN) -> Opened:
        return self.secrets.read(self.call("FetchSecrets", principal), parse_reference(text))

    def names(self, prefix: str = "", contains: str = "", limit: int = 100, principal: Principal = ADMIN) -> list[str]:
        """Through all pages."""
        found: list[str] = []
        after: tuple[str | int, ...] = ()
        while True:
            page = self.secrets.page(self.call("ListSecrets", principal), prefix, contains, after, limit)
            assert len(page.items) <= limit
            found += [secret.name for secret, _ in page.items]
            after = page.next
            if not after:
                return found

    def destroy(self, name: str, *versions: int) -> Secret:
        return self.secrets.destroy(self.call("DestroySecretVersions"), name, list(versions))

    def work(self) -> int:
        """One round of the background loop; how many pieces there were."""
        return self.do_chores(self.secrets)


class RotationHouse(SecretsHouse):
    """With a view of the root keys in the store and in the HSM."""

    store: MemoryStore
    hsm: SoftwareHsm

    def rotate(self, **more: Any) -> int:
        return self.secrets.rotate_root(self.call("RotateRootKey", **more))

    def root(self) -> tuple[int, int]:
        newest, waiting = self.secrets.root(self.call("GetRootKey"))
        return newest.version, waiting

    def versions(self) -> list[int]:
        return [root.version for root in self.store.page(RootKey, limit=1000)]

    def in_hsm(self) -> set[bytes]:
        return set(self.hsm.keys)

    def quiet(self) -> None:
        """The background loop, until there is nothing left to do, however long it takes."""
        for hours in (0, 0, 25, 0):
            self.clock.forward(hours=hours)
            self.work()


class TamperedHouse(SecretsHouse):
    """With rows that somebody can change behind the broker's back."""

    store: MemoryStore
    hsm: SoftwareHsm

    def version(self, name: str, number: int) -> SecretVersion:
        found = self.store.get(SecretVersion, name, number)
        assert found is not None
        return found

    def tamper(self, version: SecretVersion) -> None:
        self.store.rows[SecretVersion][version.secret, version.number] = version
