"""Each code of a module reaches the log by the standard's name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pkcs11 import exceptions as ck

from broker.hsm import codes

_HEADER = Path("/usr/include/p11-kit-1/p11-kit/pkcs11.h")


def test_every_code_of_the_system_s_header_has_its_name() -> None:
    if not _HEADER.exists():
        pytest.skip("libp11-kit-dev is not installed")
    defined = re.findall(r"#define (CKR_\w+)\s+\((0x[0-9a-fA-F]+|\d+)(?:UL)?\)", _HEADER.read_text())
    assert len(defined) > 80
    assert {name: codes.name_of(int(number, 0)) for name, number in defined} == {name: name for name, _ in defined}


def test_every_exception_of_the_binding_has_its_code_and_back() -> None:
    kinds = set(ck.PKCS11Error.__subclasses__()) - codes.NO_CODE
    mapped = {kind for kind in kinds if kind.__module__ == ck.__name__}
    assert mapped == set(codes.EXCEPTIONS.values())
    for code, kind in codes.EXCEPTIONS.items():
        assert type(codes.error_of(code)) is kind
        assert codes.told(kind()) == codes.name_of(code)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (0x80000001, "CKR_VENDOR_DEFINED 0x80000001"),
        (0xFFFFFFFF, "CKR_VENDOR_DEFINED 0xffffffff"),
        (0x31337, "CKR 0x31337"),
        (0x1B8, "CKR_PIN_TOO_WEAK"),
        (0x1C3, "CKR_PIN_TOO_WEAK"),
        (0x190, "CKR_CRYPTOKI_NOT_INITIALIZED"),
    ],
)
def test_a_code_without_an_exception_is_told_too(code: int, name: str) -> None:
    assert codes.told(codes.error_of(code)) == name
