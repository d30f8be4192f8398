"""A token that other programs use too: what is theirs is counted, and neither touched nor stumbled over."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from pkcs11 import Attribute, ObjectClass
from pkcs11 import KeyType as CkKeyType

from broker.core.errors import BrokerError
from broker.core.kinds import EncryptionAlgorithm, KeyType, SignatureAlgorithm
from broker.hsm.config import HsmConfig
from broker.hsm.sessions import Worker
from tests.contracts.hsm.keys import fresh
from tests.servers.modules import softhsm_but
from tests.servers.softhsm import PIN, KeysHsm, alone, make_token

MANY = 120


def tool(config: HsmConfig, *arguments: str) -> str:
    """What another program would do, done with OpenSC's own tool."""
    command = ["pkcs11-tool", "--module", str(config.module), "--token-label", config.token_label]
    return subprocess.run(
        [*command, "--login", "--pin", PIN, *arguments],
        env={**os.environ, **config.environment},
        check=True, capture_output=True, text=True, timeout=200,
    ).stdout  # fmt: skip


def _foreign(name: bytes) -> list[dict[Attribute, Any]]:
    """Objects as others make them: of types that the broker never makes, without names, readable, named like ids."""
    dsa = {Attribute.PRIME: b"\xff" * 128, Attribute.SUBPRIME: b"\xf1" * 20, Attribute.BASE: b"\x02"}
    as_key = {Attribute.ID: name, Attribute.LABEL: name.hex(), Attribute.KEY_TYPE: CkKeyType.DSA}
    readable = {Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True, Attribute.VALUE: b"r" * 32}
    secret = {Attribute.CLASS: ObjectClass.SECRET_KEY, **readable}
    return [
        {Attribute.CLASS: ObjectClass.PUBLIC_KEY, **as_key, **dsa, Attribute.VALUE: b"\x05" * 128},
        {Attribute.CLASS: ObjectClass.PRIVATE_KEY, **as_key, **dsa, Attribute.VALUE: b"\x05" * 20},
        {**secret, Attribute.KEY_TYPE: CkKeyType.AES, Attribute.ID: name[::-1], Attribute.LABEL: name[::-1].hex()},
        {**secret, Attribute.KEY_TYPE: CkKeyType.GENERIC_SECRET, Attribute.LABEL: "broker:key"},
        {**secret, Attribute.KEY_TYPE: CkKeyType.AES, Attribute.LABEL: "broker:key:payments/1", Attribute.WRAP: True},
        {**secret, Attribute.KEY_TYPE: CkKeyType.GENERIC_SECRET},
        {Attribute.CLASS: ObjectClass.DATA, Attribute.LABEL: "x" * 5000, Attribute.VALUE: b"data"},
        {Attribute.CLASS: ObjectClass.DATA, Attribute.VALUE: b"strange", Attribute.LABEL: "strange"},
        {Attribute.CLASS: ObjectClass.DATA, Attribute.VALUE: b"", Attribute.APPLICATION: "nobody's"},
        *[{Attribute.CLASS: ObjectClass.DATA, Attribute.LABEL: f"one of many {number}"} for number in range(MANY)],
    ]


def _put(hsm: KeysHsm) -> int:
    templates = _foreign(os.urandom(16))

    def put(worker: Worker) -> int:
        for template in templates:
            worker.session.create_object({Attribute.TOKEN: True, Attribute.PRIVATE: True, **template})
        return len(templates)

    return hsm.sessions.run(put)


def _lived(config: HsmConfig) -> tuple[str, list[str]]:
    """Start, do all that a broker does with keys of its own, and what the start had found."""
    hsm = KeysHsm(config)
    signer, cipher = fresh(hsm, KeyType.EC_P256), fresh(hsm, KeyType.AES_256)
    told = [str(len(hsm.sign(signer, SignatureAlgorithm.ES256, [b"m"])))]
    sealed = hsm.encrypt(cipher, EncryptionAlgorithm.AES_GCM, b"m", b"")
    told.append(hsm.decrypt(cipher, EncryptionAlgorithm.AES_GCM, sealed, b"").decode())
    hsm.destroy(signer)
    hsm.destroy(cipher)
    (probe,) = [one for one in hsm.report().probes if one.name == "objects"]
    hsm.close()
    return probe.detail, told


def _neighbours(folder: Path) -> tuple[int, str, list[str], bool]:
    config = make_token(folder)
    hsm = KeysHsm(config)
    count = _put(hsm)
    hsm.close()
    tool(config, "--keypairgen", "--key-type", "rsa:2048", "--id", "4711", "--label", "4711")
    before = tool(config, "--list-objects")
    detail, told = _lived(config)
    return count + 2, detail, told, tool(config, "--list-objects") == before


def test_K02_objects_of_another_program_are_told_of_and_left_as_they_are(tmp_path: Path) -> None:
    count, detail, told, unchanged = alone(_neighbours, tmp_path / "token")
    assert told == ["1", "m"]
    assert detail == (
        "1 objects with a label of the broker are not as it makes keys and are not used: broker:key:payments/1; "
        f"{count - 1} objects of other programs are left alone."
    )
    assert unchanged


_STRANGE = """
static unsigned long (*real_one)(unsigned long, unsigned long, struct attribute *, unsigned long);
/* An object with the label "strange" is of a vendor's class, or cannot be read at all. */
static unsigned long instead(unsigned long session, unsigned long object, struct attribute *wanted,
                             unsigned long count) {
  char label[7];
  struct attribute one = {3, label, sizeof label};
  unsigned long code = real_one(session, object, &one, 1), vendors = 0x80004711, n;
  int strange = !code && one.length == sizeof label && !memcmp(label, "strange", sizeof label);
  if (strange && strtoul(getenv("STRANGE"), 0, 0)) return strtoul(getenv("STRANGE"), 0, 0);
  code = real_one(session, object, wanted, count);
  for (n = 0; strange && n < count; n++)
    if (wanted[n].type == 0 && wanted[n].value) memcpy(wanted[n].value, &vendors, sizeof vendors);
  return code;
}
"""
_GET_ATTRIBUTE_VALUE = 25


def _beside_strange(config: HsmConfig, module: Path) -> list[tuple[str, list[str]]]:
    hsm = KeysHsm(config)
    _put(hsm)
    hsm.close()
    found = []
    for code in ("0", "0x5", "0x6", "0x12", "0x13", "0x82", "0x80000001"):
        environment = {**config.environment, "STRANGE": code}
        found.append(_lived(config.model_copy(update={"module": module, "environment": environment})))
    return found


def test_K02_one_object_that_nobody_understands_ends_nothing(tmp_path: Path) -> None:
    module = softhsm_but(tmp_path, _GET_ATTRIBUTE_VALUE, _STRANGE)
    found = alone(_beside_strange, make_token(tmp_path / "token"), module)
    assert len(found) == 7
    assert all(told == ["1", "m"] for _, told in found)
    assert {detail.rpartition("; ")[2] for detail, _ in found} == {
        f"{len(_foreign(b'')) - 1} objects of other programs are left alone."
    }


def _named_alike(folder: Path) -> list[str]:
    """A row that names another program's objects, of whatever class, reaches none of them."""
    hsm = KeysHsm(make_token(folder))
    key = fresh(hsm, KeyType.AES_256)
    others = {Attribute.TOKEN: True, Attribute.ID: key.hsm_id, Attribute.LABEL: "another's"}

    def put(worker: Worker) -> None:
        for kind in (ObjectClass.CERTIFICATE, ObjectClass.DATA):
            template = {**others, Attribute.CLASS: kind}
            if kind is ObjectClass.CERTIFICATE:
                template |= {Attribute.CERTIFICATE_TYPE: 0, Attribute.SUBJECT: b"0\0", Attribute.VALUE: b"0\0"}
            else:
                template.pop(Attribute.ID)
            worker.session.create_object(template)

    hsm.sessions.run(put)
    told = []
    try:
        hsm.encrypt(key, EncryptionAlgorithm.AES_GCM, b"m", b"")
        hsm.destroy(key)
        told.append("ok")
    except BrokerError as refusal:
        told.append(refusal.reason)
    left = hsm.sessions.run(lambda worker: hsm.sessions.search(worker, {Attribute.LABEL: "another's"}))
    told.append(str(len(left)))
    hsm.close()
    return told


def test_K02_a_certificate_under_a_keys_id_is_no_second_key(tmp_path: Path) -> None:
    assert alone(_named_alike, tmp_path / "token") == ["ok", "2"]
