"""The fake opens a transfer file that only OpenSSL's command made, and no file with one byte changed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.servers.azure_key_vault import FakeVault, Refused
from tests.servers.azure_key_vault.transfer import TransferFile
from tests.servers.fake_azure import b64, byok, public_kek, raw_to, wrapped

KINDS = {
    "P-256": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "P-521": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"],
    "P-256K": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"],
    "": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
}


def openssl(*words: str | Path, given: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *words], input=given, stdout=subprocess.PIPE, check=True).stdout


def wrapped_by_openssl(folder: Path, kek: bytes, target: Path) -> bytes:
    """What the specification's two steps give; the KEK as a PEM, the target as a file of DER."""
    ephemeral = os.urandom(32)
    (folder / "kek.pem").write_bytes(kek)
    (folder / "ephemeral").write_bytes(ephemeral)
    oaep = ["rsa_padding_mode:oaep", "rsa_oaep_md:sha1", "rsa_mgf1_md:sha1"]
    options = [word for each in oaep for word in ("-pkeyopt", each)]
    sealed = openssl(
        "pkeyutl", "-encrypt", "-pubin", "-inkey", folder / "kek.pem", "-in", folder / "ephemeral", *options
    )
    wrap = ["-id-aes256-wrap-pad", "-K", ephemeral.hex(), "-iv", "A65959A6"]
    return sealed + openssl("enc", *wrap, "-in", target)


@pytest.mark.parametrize("crv", KINDS)
def test_a_file_made_by_openssl_alone_is_accepted(premium: FakeVault, tmp_path: Path, crv: str) -> None:
    kid = premium.add_kek()
    kek = public_kek(premium).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    target = tmp_path / "target.der"
    pem = openssl("genpkey", *KINDS[crv])
    target.write_bytes(openssl("pkcs8", "-topk8", "-nocrypt", "-outform", "DER", given=pem))
    file = byok(kid, wrapped_by_openssl(tmp_path, kek, target))
    key = {"kty": "EC-HSM", "crv": crv, "key_hsm": b64(file)} if crv else {"kty": "RSA-HSM", "key_hsm": b64(file)}
    with raw_to(premium) as raw:
        status, answer = raw.ask("PUT", "/keys/k", {"key": key})
    assert status == 200, answer
    assert premium.versions("k")[0].public_key == openssl("pkey", "-pubout", "-outform", "DER", given=pem)


def test_BY_07_no_byte_of_the_ciphertext_can_be_changed() -> None:
    kek = rsa.generate_private_key(65537, 2048)
    right = wrapped(kek.public_key(), os.urandom(32))
    assert len(TransferFile(b64(byok("x", right))).open(kek, "oct-HSM", None)) == 32  # type: ignore[arg-type]
    for place in range(len(right)):
        altered = right[:place] + bytes([right[place] ^ 0x40]) + right[place + 1 :]
        with pytest.raises(Refused):
            TransferFile(b64(byok("x", altered))).open(kek, "oct-HSM", None)
