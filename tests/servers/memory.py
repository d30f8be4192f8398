"""What a process has in its memory, and in which forms a key could be there."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pkcs11
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import load_der_private_key
from pkcs11 import Attribute, Mechanism, ObjectClass
from pkcs11 import KeyType as CkKeyType

from broker.hsm.config import HsmConfig
from tests.contracts.hsm.keys import der_length

_LEAST = 16  # bytes that are not found by chance
_LONGEST = 64  # of the forms
_BLOCK = 1 << 18
_ZEROS = bytes(_BLOCK + _LONGEST)


def image(process: int) -> Iterator[bytes]:
    """What the process has written in each readable mapping; PermissionError when it lets nobody look.

    It comes in blocks, each with the end of the one before; those that are all zeros (most of a stack) are left out.
    The process stands still meanwhile: what it gives back could not be read any more.
    """
    with (
        Path(f"/proc/{process}/maps").open(encoding="ascii") as maps,
        Path(f"/proc/{process}/mem").open("rb") as memory,
        _stopped(process),
    ):
        for line in maps:
            addresses, permissions, *_ = line.split()
            if "r" not in permissions or "[v" in line:  # the kernel's own pages
                continue
            start, end = (int(part, 16) for part in addresses.split("-"))
            for at in range(start, end, _BLOCK):
                first = max(start, at - _LONGEST)
                memory.seek(first)
                block = memory.read(min(end, at + _BLOCK) - first)
                if block != _ZEROS[: len(block)]:
                    yield block


@contextmanager
def _stopped(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def holds(process: int, forms: dict[str, bytes]) -> list[str]:
    """The names of the forms that the process has in memory."""
    assert max(map(len, forms.values())) <= _LONGEST
    found: set[str] = set()
    for part in image(process):
        found |= {name for name, form in forms.items() if form in part}
    return sorted(found)


def forms(plaintext: bytes) -> dict[str, bytes]:
    """Bytes that give an AES or PKCS#8 key away: as wrapped, and each secret number in both byte orders."""
    if len(plaintext) in {16, 32}:
        return {"value": plaintext, "hex": plaintext.hex().encode()}
    pkcs8 = plaintext[: der_length(plaintext)]
    key = load_der_private_key(pkcs8, None)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        numbers = {"scalar": key.private_numbers().private_value}
    else:
        assert isinstance(key, rsa.RSAPrivateKey)
        private = key.private_numbers()
        numbers = {"d": private.d, "p": private.p, "q": private.q, "dp": private.dmp1, "dq": private.dmq1}
        numbers["qi"] = private.iqmp
    ways = {"end of DER": pkcs8[-_LEAST:]}
    for name, number in numbers.items():
        big = number.to_bytes((number.bit_length() + 7) // 8, "big")
        ways |= {name: big[:_LEAST], f"{name} in limbs": big[::-1][:_LEAST], f"{name} in hex": big.hex().encode()[:32]}
    return ways


def plaintexts(config: HsmConfig) -> list[bytes]:
    """Every extractable secret or private token object, by way of a wrapping key that this process knows.

    With the bare binding: run it where no broker is, as an administrator with the PIN would.
    """
    os.environ.update(config.environment)
    library = pkcs11.lib(str(config.module))
    token = library.get_token(token_label=config.token_label)
    value = os.urandom(32)
    wrapper = {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.KEY_TYPE: CkKeyType.AES,
        Attribute.VALUE: value,
        Attribute.TOKEN: False,
        Attribute.WRAP: True,
        Attribute.EXTRACTABLE: True,  # the shim carries it over to a key that encrypts
    }
    with token.open(rw=True, user_pin=config.pin_file.read_text().strip()) as session:
        wrapping = session.create_object(wrapper)
        blobs = [
            wrapping.wrap_key(thing, mechanism=Mechanism.AES_KEY_WRAP_PAD)  # type: ignore[attr-defined]
            for kind in (ObjectClass.SECRET_KEY, ObjectClass.PRIVATE_KEY)
            for thing in session.get_objects(
                {Attribute.CLASS: kind, Attribute.TOKEN: True, Attribute.EXTRACTABLE: True}
            )
        ]
    library.finalize()
    return [aes_key_unwrap_with_padding(value, blob) for blob in blobs]
