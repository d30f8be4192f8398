"""What the stand-in of ``test_standin`` answers about the keys of the broker's own."""

from __future__ import annotations

import broker_api.v1.audit_pb2 as audit
import broker_api.v1.authorities_pb2 as authorities

from tests.live.cli.rotation_answers import ROTATION, WHEN, Answer

HANDOVER = audit.AuditHandover(
    former_key="30", successor_key="31", handover_time="2026-11-23T05:00:00.123456+00:00", former_signature="32",
    successor_signature="33",
)  # fmt: skip


def one(name: str, version: int, state: authorities.AuthorityState.ValueType) -> authorities.Authority:
    return authorities.Authority(
        name=name, version=version, state=state, create_time=WHEN, certificate_pem=f"{name} {version}\n"
    )


def authority_answers() -> dict[str, Answer]:
    former = one("server-ca", 1, authorities.AUTHORITY_STATE_FORMER)
    found = [former, one("server-ca", 2, authorities.AUTHORITY_STATE_ACTIVE), one("audit", 1, former.state)]
    return {
        "ListAuthorities": lambda _: authorities.ListAuthoritiesResponse(authorities=found),
        "RotateAuthority": lambda _: authorities.RotateAuthorityResponse(version=2, operation=ROTATION),
        "RetireAuthority": lambda _: authorities.RetireAuthorityResponse(versions=[1]),
    }
