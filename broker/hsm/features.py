"""What a token must be able to do for which part of the broker, and which parts this one is good for."""

from __future__ import annotations

from collections.abc import Iterator

from broker.core.errors import WrongState
from broker.core.kinds import KeyType, OaepHash
from broker.core.reasons import Reason
from broker.core.report import HsmReport, Probe
from broker.hsm.findings import Findings
from broker.hsm.mechanisms import generator
from broker.hsm.sanity import CURVES, RSA_BITS

AUDIT = "audit key and certificates"
SECRETS = "secrets and database"
NEW_KEYS = "new keys"
NEEDED = (AUDIT, SECRETS, NEW_KEYS)
"""Without these there is no broker; without any other only that part is missing."""
OBJECTS = "objects"
"""The probe that tells of what is in the token."""


def features(found: Findings) -> tuple[Probe, ...]:
    """Each part of the broker: whether it is to be had, and else the mechanisms that are missing."""
    closed = f"None can be made: {found.closed}." if found.closed else ""
    parts = [(name, f"The token lacks {lacking}." if lacking else "") for name, lacking in _lacking(found)]
    return tuple(
        Probe(name=name, passed=not sentence, detail=sentence or "Available.")
        for name, sentence in [*parts[:2], (NEW_KEYS, closed), *parts[2:]]
    )


def fit(report: HsmReport) -> bool:
    """Whether all is to be had without which no broker can be made, and every object of the broker's is as it was."""
    return all(one.passed for one in report.features if one.name in NEEDED) and all(
        one.passed for one in report.probes if one.name == OBJECTS
    )


def described(report: HsmReport) -> str:
    """In one sentence: what is to be had, what is not and why, and what else is in the token."""
    available = ", ".join(one.name for one in report.features if one.passed)
    missing = "; ".join(f"{one.name} ({one.detail.rstrip('.')})" for one in report.features if not one.passed)
    objects = "".join(f" {one.detail}" for one in report.probes if one.name == OBJECTS)
    return f"available: {available or 'nothing'}; not available: {missing or 'nothing'}.{objects}"


def refuse_unfit(report: HsmReport) -> None:
    """WrongState ``HSM_UNFIT``, with all that is missing, when no broker can be made on this token."""
    missing = [f"{one.name}: {one.detail}" for one in report.features if one.name in NEEDED and not one.passed]
    if missing:
        raise WrongState(
            Reason.HSM_UNFIT,
            f"The token {report.token_label!a} cannot hold a broker's own keys. {' '.join(missing)} docs/hsm.md lists "
            "what a token must be able to do.",
        )


def _lacking(found: Findings) -> Iterator[tuple[str, str]]:
    yield AUDIT, _joined(found, f"{generator(KeyType.EC_P256)} for ec-p256", "CKM_ECDSA")
    yield SECRETS, _joined(found, f"{generator(KeyType.AES_256)} for aes-256", "CKM_AES_GCM")
    for kind in KeyType:
        made = f"{generator(kind)} for {kind}"
        if kind in RSA_BITS:
            yield f"{kind} sign", found.lack(made) or _both(found, "CKM_RSA_PKCS", "CKM_RSA_PKCS_PSS")
            yield f"{kind} encrypt", _joined(found, made, "CKM_RSA_PKCS_OAEP")
        elif kind.symmetric:
            yield f"{kind} encrypt", _joined(found, made, "CKM_AES_GCM")
        else:
            yield f"{kind} sign", _joined(found, made, "CKM_ECDSA" if kind in CURVES else "CKM_EDDSA")
    for oaep_hash in OaepHash:
        yield f"import with OAEP-{oaep_hash}", import_lack(found, oaep_hash)


def import_lack(found: Findings, oaep_hash: OaepHash) -> str:
    """What is missing to carry a key out for a target that opens OAEP with this hash; "" when nothing is."""
    if oaep_hash in found.one_call_hashes or (found.padded_wrap and oaep_hash in found.oaep_hashes):
        return ""
    return _joined(found, "CKM_AES_KEY_WRAP_KWP or CKM_AES_KEY_WRAP_PAD", f"CKM_RSA_PKCS_OAEP with {oaep_hash}")


def _joined(found: Findings, *needs: str) -> str:
    return ", ".join(lack for one in needs if (lack := found.lack(one)))


def _both(found: Findings, *choices: str) -> str:
    """Either will do."""
    lacking = [found.lack(one) for one in choices]
    return " and ".join(lacking) if all(lacking) else ""
