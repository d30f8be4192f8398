"""What must be true after a storm: one version of each key, the right one, and nothing left behind in the token."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from broker.config import load as load_config
from tests.servers.azure_key_vault import KeyVersion
from tests.servers.live import Client
from tests.servers.live_load import census
from tests.servers.live_storm import AES_256, FAILED, PROVEN, Journey, Storm
from tests.servers.shim import Call
from tests.servers.softhsm import alone

CKA_TOKEN, OBJECT_HANDLE_INVALID = 0x1, 0x82
AES_HEADER, GCM_IV = 5, 12


def judge(storm: Storm) -> Counter[str]:
    """Fail on the first import that is not as it must be; how many came to which end."""
    client = storm.live.client()
    rows = {(one.key, one.version, one.target): one for one in client.everything("ListImports", "imports")}
    ends: Counter[str] = Counter()
    for journey in storm.journeys:
        ends[_judged(client, journey, rows[journey.name, journey.version, journey.target])] += 1
    assert sum(ends.values()) == len(storm.journeys)
    return ends


def _judged(client: Client, journey: Journey, row: Any) -> str:
    held = [one for name in journey.remote_names for one in journey.vault.versions(name)]
    ours = _ours(client, journey, held)
    usable = [one.version for one in ours if one.enabled]
    told = f"{journey}\n{row}\n{[(one.version, one.enabled, one.key_ops) for one in ours]}"
    if row.state != PROVEN:
        assert (row.state, usable) == (FAILED, []), told
        assert row.failure, told
        return str(row.failure)
    (kept,) = [one for one in ours if one.version == row.remote_version]
    assert usable == ([kept.version] if journey.usable else []), told
    assert set(journey.terms.get("operations", kept.key_ops)) == set(kept.key_ops), told
    assert journey.terms.get("tags", {}).items() <= kept.tags.items(), told
    assert ("not_before" in journey.terms) == (kept.attributes.not_before is not None), told
    return "proven"


def _ours(client: Client, journey: Journey, held: list[KeyVersion]) -> list[KeyVersion]:
    """The remote versions that are this very key, whatever they are called."""
    if journey.kind == AES_256:
        sealed = client.ask("Encrypt", name=journey.name, plaintext=b"whose?").ciphertext[AES_HEADER:]
        return [one for one in held if _opens(one, sealed)]
    pem = client.ask("GetPublicKey", name=journey.name, version=journey.version).pem
    der = load_pem_public_key(pem.encode()).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return [one for one in held if one.public_key == der]


def _opens(held: KeyVersion, sealed: bytes) -> bool:
    assert isinstance(held.material, bytes)
    try:
        return AESGCM(held.material).decrypt(sealed[:GCM_IV], sealed[GCM_IV:], b"") == b"whose?"
    except InvalidTag:
        return False


@dataclass
class Leavings:
    """The session objects that a process has made and not destroyed, by the shim's log."""

    session_of: dict[int, int] = field(default_factory=dict)  # by object

    def hear(self, call: Call) -> None:
        """The next call of this process."""
        if call.function in {"C_GenerateKey", "C_CreateObject", "C_GenerateKeyPair"}:
            for number, made in enumerate(call.made):
                if not call.template(number if len(call.templates) > 1 else 0).get(CKA_TOKEN):
                    self.session_of[made] = call.session
        elif call.function == "C_DestroyObject" and (
            call.code == 0 or (call.code == OBJECT_HANDLE_INVALID and not call.injected)
        ):
            self.session_of.pop(int(call.objects[0][0] or 0), None)
        elif call.function == "C_CloseSession" and call.code == 0:
            self.session_of = {made: session for made, session in self.session_of.items() if session != call.session}
        elif call.function in {"C_Finalize", "C_CloseAllSessions"} and call.code == 0:
            self.session_of.clear()


def left_in_token(calls: list[Call], process: int) -> dict[int, int]:
    """Session objects of a running process: what is left of ephemeral keys and of KEKs."""
    leavings = Leavings()
    for call in calls:
        if call.process == process:
            leavings.hear(call)
    return leavings.session_of


def assert_only_the_keys(storm: Storm) -> None:
    """The token, whose broker has ended, holds one whole key for each version, the broker's own, and nothing else."""
    found = alone(census, load_config(storm.live.broker.config).hsm)
    found.pop("", None)  # remnants of objects that a kill cut short in SoftHSM's own writing
    symmetric = sum(one.kind == AES_256 for one in storm.journeys)
    kinds = Counter(tuple(kinds) for kinds in found.values())
    assert kinds == {("PRIVATE_KEY", "PUBLIC_KEY"): len(storm.journeys) - symmetric + 3, ("SECRET_KEY",): symmetric + 2}
