"""Sessions over a store, with the software HSM, two pipelines, some secrets, and a clock that the test moves."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

from broker.core.call import Call
from broker.core.identity import Proof
from broker.core.kinds import LeaseState, MatcherKind, Preset
from broker.core.model import Lease, Matcher, Principal, Session, TrustRule
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.ports import Store
from broker.core.quota import LeaseQuota
from broker.core.sessions.lifecycle import Fetched, Opening
from tests.contracts.store.samples import entry
from tests.fakes.calls import Clock, document, operator
from tests.worlds.world import World

ISSUER = "https://ci.example"
GRANTS = """
@id("deploy") permit (principal == Pipeline::"deploy", action == Action::"FetchSecrets", resource in Folder::"app");
@id("other") permit (principal == Pipeline::"other", action == Action::"FetchSecrets", resource in Folder::"other");
@id("readers") permit (principal in Group::"readers", action == Action::"FetchSecrets", resource);
"""
ADMIN = operator("root", "admins")


def pipeline(name: str = "deploy", *, jti: str = "", revision: int = 1) -> Principal:
    """As the identity token of a job of that pipeline makes it."""
    token_id = jti or uuid4().hex
    proof = Proof(
        rule=name,
        rule_revision=revision,
        issuer=ISSUER,
        subject=f"repo:{name}",
        token_id=token_id,
        expires_at=Clock().time + timedelta(hours=1),
        claims={"project_id": name},
    )
    return Principal(kind="pipeline", name=name, method="oidc", credential=token_id, proof=proof)


class Bench(World):
    """A world with sessions, under a policy that can be set."""

    def __init__(self, store: Store, quota: LeaseQuota | None = None) -> None:
        self.text, self.version = FIRST_POLICY + GRANTS, 1
        super().__init__(store, policy=self.text, quota=quota or LeaseQuota())
        self.secrets.roots.ensure(self.asked("-/Init", ADMIN))

    def set_policy(self, text: str) -> None:
        self.text, self.version = text, self.version + 1
        self.guard.load(document(text, self.version))

    def add_rule(self, name: str = "deploy", **changes: Any) -> TrustRule:
        rule = TrustRule(
            name=name,
            preset=Preset.GITLAB,
            issuer=ISSUER,
            audience="broker",
            matchers=(Matcher(claim="project_id", kind=MatcherKind.EXACT, values=(name,)),),
            pipeline=name,
            max_session_seconds=3600,
            single_use=False,
            ca_pem="",
            grade="A",
            findings=(),
            created_at=self.clock(),
        )
        rule = replace(rule, **changes)
        with self.store.write(entry()) as write:
            write.add(rule)
        return rule

    def change_rule(self, name: str = "deploy", **changes: Any) -> None:
        with self.store.write(entry()) as write:
            found = write.get(TrustRule, name)
            assert found is not None
            write.replace(found, replace(found, **changes))

    def delete_rule(self, name: str = "deploy") -> None:
        with self.store.write(entry()) as write:
            found = write.get(TrustRule, name)
            assert found is not None
            write.delete(found)

    def put(self, name: str, expires_at: Any = None, labels: dict[str, str] | None = None, **fields: bytes) -> None:
        self.secrets.put(
            self.call("SecretService/PutSecret"),
            name,
            fields or {"value": name.encode()},
            expected_version=None,
            labels=labels or {},
            expires_at=expires_at,
        )

    def call(self, rpc: str, principal: Principal = ADMIN, **how: Any) -> Call:
        return self.asked(rpc, principal, **how)

    def login(self, principal: Principal | None = None, seconds: float | None = None) -> Opening:
        ttl = None if seconds is None else timedelta(seconds=seconds)
        return self.sessions.login(self.call("SessionService/Login", principal or pipeline()), ttl)

    def fetch(
        self, who: Principal | str, *references: str, partial: bool = False, seconds: float | None = None
    ) -> tuple[list[Fetched], Opening | None]:
        principal = self.sessions.authenticate(who) if isinstance(who, str) else who
        made = self.call("SessionService/FetchSecrets", principal)
        ttl = None if seconds is None else timedelta(seconds=seconds)
        return self.sessions.fetch(made, list(references), partial=partial, ttl=ttl)

    def renew(self, token: str, seconds: float | None = None) -> Session:
        made = self.call("SessionService/RenewSession", self.sessions.authenticate(token))
        return self.sessions.renew(made, None if seconds is None else timedelta(seconds=seconds))

    def end(self, token: str) -> None:
        self.sessions.end(self.call("SessionService/EndSession", self.sessions.authenticate(token, ended=True)))

    def revoke(self, **which: str) -> int:
        return self.sessions.revoke(self.call("SessionService/RevokeSessions"), **which)

    def chores(self) -> int:
        count = 0
        for resource, work in self.sessions.chores():
            work(self.own(resource))
            count += bool(resource)
        return count

    def session(self, name: str) -> Session:
        found: Session | None = self.store.get(Session, name)
        assert found is not None
        return found

    def states(self, session: str) -> list[LeaseState]:
        return [lease.state for lease in self.store.page(Lease, limit=1000, where={"session": session})]
