"""What an import asks of the token, by the shim's log: never a value, and an ephemeral key that only wraps and goes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pkcs11
import pytest
from pkcs11 import Attribute, Mechanism, ObjectClass

from broker.core.kinds import KeyType, KeyUsage, OaepHash
from broker.hsm.config import HsmConfig
from tests.contracts.hsm.keys import ALGORITHMS, Target, made, spki_of, unmade
from tests.servers.shim import Call, Shim, make_shim_token
from tests.servers.softhsm import FRESH, KeysHsm, alone

SECRET_VALUES = {
    int(value)
    for value in (
        Attribute.VALUE,
        Attribute.PRIVATE_EXPONENT,
        Attribute.PRIME_1,
        Attribute.PRIME_2,
        Attribute.EXPONENT_1,
        Attribute.EXPONENT_2,
        Attribute.COEFFICIENT,
    )
}
SECRET_CLASSES = {int(ObjectClass.PRIVATE_KEY), int(ObjectClass.SECRET_KEY)}
USES = {
    int(use): name
    for name, use in {
        "encrypt": Attribute.ENCRYPT,
        "decrypt": Attribute.DECRYPT,
        "wrap": Attribute.WRAP,
        "unwrap": Attribute.UNWRAP,
        "sign": Attribute.SIGN,
        "verify": Attribute.VERIFY,
        "derive": Attribute.DERIVE,
    }.items()
}
ID = bytes(16)


def import_like(config: HsmConfig, kind: KeyType, folder: Path) -> tuple[bytes, bytes | None]:
    """All that an import does with the token: make, read the public half, wrap for a target, sign a challenge."""
    hsm = KeysHsm(config)
    Shim(folder).forget()
    target = Target()
    usage = KeyUsage.ENCRYPT if kind.symmetric else KeyUsage.SIGN
    key = made(hsm, unmade(kind, usage, hsm_id=ID), exportable=True)
    assert hsm.public_key(key) == key.public_key
    plaintext = target.open(hsm.wrap(key, target.kek, OaepHash.SHA1, exact=True), OaepHash.SHA1)
    if not kind.symmetric:
        hsm.sign(key, ALGORITHMS[kind][0], [b"challenge"])
    hsm.close()
    return plaintext, key.public_key


def objects_in(config: HsmConfig) -> list[tuple[int, bytes]]:
    """Class and id of everything in the token, by the bare binding."""
    os.environ.update(config.environment)
    library = pkcs11.lib(str(config.module))
    token = library.get_token(token_label=config.token_label)
    with token.open(user_pin=config.pin_file.read_text().strip()) as session:
        found = [(int(thing[Attribute.CLASS]), thing[Attribute.ID]) for thing in session.get_objects()]
    library.finalize()
    return sorted(found)


PAIR = sorted([(int(ObjectClass.PUBLIC_KEY), ID), (int(ObjectClass.PRIVATE_KEY), ID)])


def values_read(calls: list[Call]) -> list[Call]:
    """Calls that got, or may have got, a secret value."""
    return [
        call
        for call in calls
        if call.function in {"C_GetAttributeValue", "C_CopyObject", "C_GetObjectSize"}
        and call.code == 0
        and {cls for _, cls in call.objects} & (SECRET_CLASSES | {None})
        and SECRET_VALUES & call.template().keys()
    ]


def uses(call: Call, number: int = 0) -> set[str]:
    return {name for use, name in USES.items() if call.template(number).get(use)}


@pytest.mark.parametrize("kind", [KeyType.EC_P256, KeyType.EC_SECP256K1, KeyType.RSA_2048, KeyType.AES_256])
def test_BY_11_an_import_reads_no_value_and_its_ephemeral_key_only_wraps_and_goes(
    tmp_path: Path, kind: KeyType
) -> None:
    folder = tmp_path / "token"
    config = make_shim_token(folder)
    plaintext, public_key = alone(import_like, config, kind, folder)
    assert kind.symmetric or spki_of(plaintext) == public_key
    calls = Shim(folder).calls()
    assert values_read(calls) == []

    generated = [call for call in calls if call.function in {"C_GenerateKey", "C_GenerateKeyPair"}]
    assert len(generated) == 2, "the key and the ephemeral, each made once"
    key, ephemeral = generated
    secret = key.template(0 if kind.symmetric else 1)
    assert (secret[Attribute.SENSITIVE], secret[Attribute.EXTRACTABLE], secret[Attribute.TOKEN]) == (True, True, True)
    assert uses(key, 0 if kind.symmetric else 1) == ({"encrypt", "decrypt"} if kind.symmetric else {"sign"})
    assert uses(ephemeral) == {"wrap"}
    flags = ephemeral.template()
    assert (flags[Attribute.TOKEN], flags[Attribute.SENSITIVE]) == (False, True)

    wraps = [call for call in calls if call.function == "C_WrapKey"]
    assert {call.mechanism for call in wraps} == {int(Mechanism.RSA_PKCS_OAEP), int(Mechanism.AES_KEY_WRAP_PAD)}
    (last_wrap,) = [at for at, call in enumerate(calls) if call is wraps[-1]]
    destroyed = {call.objects[0][0] for call in calls[last_wrap:] if call.function == "C_DestroyObject"}
    (made_kek,) = [call.made[0] for call in calls if call.function == "C_CreateObject"]
    assert destroyed == {ephemeral.made[0], made_kek}
    assert alone(objects_in, config) == ([(int(ObjectClass.SECRET_KEY), ID)] if kind.symmetric else PAIR)


def _start(config: HsmConfig) -> None:
    KeysHsm(config).close()


def test_HS_23_the_one_value_that_is_asked_for_is_the_throw_aways_that_must_not_be_had(tmp_path: Path) -> None:
    config = make_shim_token(tmp_path / "token")
    alone(_start, config)
    asked = [
        call
        for call in Shim(tmp_path / "token").calls("C_GetAttributeValue")
        if {cls for _, cls in call.objects} & SECRET_CLASSES and SECRET_VALUES & call.template().keys()
    ]
    assert asked
    assert values_read(asked) == []


STEPS = {
    "the pair is made": "C_GenerateKeyPair kill late",
    "the KEK is there": "C_CreateObject kill late from=2",
    "the ephemeral key is made": "C_GenerateKey kill late mechanism=0x1080 from={ephemeral}",
    "the ephemeral key is wrapped": "C_WrapKey kill late mechanism=0x9 from={oaep}",
    "the key is wrapped": "C_WrapKey kill late mechanism=0x210a from={pad}",
}
"""Where the process dies; the counts skip what the probe does at start."""


def counted(calls: list[Call], function: str, mechanism: int) -> int:
    return sum(call.function == function and call.mechanism == mechanism for call in calls)


def run_until_killed(config: HsmConfig, folder: Path) -> int | None:
    process = FRESH.Process(target=import_like, args=(config, KeyType.EC_P256, folder))
    process.start()
    process.join(200)
    return process.exitcode


def test_BY_09_killed_at_any_step_nothing_but_the_key_is_left_in_the_token(tmp_path: Path) -> None:
    folder = tmp_path / "token"
    config, shim = make_shim_token(folder), Shim(folder)
    alone(_start, config)
    started = shim.calls()
    skip = {
        "ephemeral": counted(started, "C_GenerateKey", 0x1080) + 1,
        "oaep": counted(started, "C_WrapKey", 0x9) + 1,
        "pad": counted(started, "C_WrapKey", 0x210A) + 1,
    }
    objects = sum(call.function == "C_CreateObject" for call in started)
    pairs = sum(call.function == "C_GenerateKeyPair" for call in started)
    for step, rule in STEPS.items():
        if "Pair" in rule:
            rule = f"{rule} from={pairs + 1}"  # noqa: PLW2901
        shim.obey(rule.format(**skip).replace("from=2", f"from={objects + 1}"))
        assert run_until_killed(config, folder) == -signal.SIGKILL, step
        shim.obey()
        assert alone(objects_in, config) == PAIR, step
