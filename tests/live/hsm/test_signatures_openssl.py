"""What docs/signatures.md says of openssl, run by openssl itself on signatures of the token."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from broker.core import signatures
from broker.core.keys import mismatch
from broker.core.kinds import KeyType, KeyUsage, SignatureAlgorithm, VersionState
from broker.core.model import KeyVersion
from tests.contracts.hsm.keys import shared
from tests.contracts.store.samples import T0
from tests.servers.softhsm import KeysHsm

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs/signatures.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([a-z0-9-]+)` \| (\w+) \| `([^`]+)` \|$", DOCUMENT, re.MULTILINE)
MESSAGE = b"pay 10 to bob"


def test_K19_every_type_that_signs_and_every_algorithm_is_in_the_document() -> None:
    signing = {kind for kind, able in signatures.ALGORITHMS.items() if able}
    assert {kind for kind, _, _ in ROWS} == {kind.value for kind in signing} - {"rsa-4096"}
    assert {algorithm for _, algorithm, _ in ROWS} == {one.value for one in SignatureAlgorithm}


@pytest.mark.parametrize(("kind", "algorithm", "command"), ROWS)
def test_K19_openssl_verifies_as_the_document_says(
    hsm: KeysHsm, tmp_path: Path, kind: str, algorithm: str, command: str
) -> None:
    key = shared(hsm, KeyType(kind), KeyUsage.SIGN)
    signature = hsm.sign(key, SignatureAlgorithm(algorithm), [MESSAGE])[0]
    public = load_der_public_key(key.public_key or b"")
    (tmp_path / "payments.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (tmp_path / "order.sig").write_bytes(signature)
    for message, good in ((MESSAGE, True), (MESSAGE + b"\n", False)):
        (tmp_path / "order.txt").write_bytes(message)
        done = subprocess.run(shlex.split(command), cwd=tmp_path, capture_output=True, check=False, timeout=200)
        assert (done.returncode == 0) is good, done.stderr


def test_K19_what_openssl_signs_by_its_own_habits_is_named(tmp_path: Path) -> None:
    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=tmp_path, capture_output=True, check=True, timeout=200)

    openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "key.pem")
    openssl("pkey", "-in", "key.pem", "-pubout", "-outform", "DER", "-out", "public.der")
    (tmp_path / "order.txt").write_bytes(MESSAGE)
    public = (tmp_path / "public.der").read_bytes()
    version = KeyVersion(
        key="k", number=1, state=VersionState.ENABLED, hsm_id=b"", public_key=public, sealed=False, created_at=T0
    )
    habits = {
        "--algorithm RS256": ("-sha256",),
        "--algorithm RS512": ("-sha512",),
        "rsa_pss_saltlen:digest": ("-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:max"),
        "hexadecimal": ("-sha256", "-hex"),
    }
    for told, habit in habits.items():
        openssl("dgst", *habit, "-sign", "key.pem", "-out", "order.sig", "order.txt")
        signature = (tmp_path / "order.sig").read_bytes()
        signature = signature.rpartition(b"= ")[2] if "-hex" in habit else signature
        algorithm = SignatureAlgorithm.PS256
        found = mismatch.found(KeyType.RSA_2048, algorithm, version, [], MESSAGE, signature, prehashed=False)
        assert told in found
