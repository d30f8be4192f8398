"""``broker key public|sign|verify|encrypt|decrypt``: messages come from files or standard input, never as arguments."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from broker_cli import files, values, words
from broker_cli.output import Output, check_raw, check_target, formatted
from broker_cli.refusal import Exit, Refusal
from broker_cli.screen import chat
from broker_cli.wire import Wire, remote
from broker_cli.words import record

MAX_MESSAGE = 64 * 1024
MAX_CIPHERTEXT = MAX_MESSAGE + 64
MAX_SIGNATURE = 4096
MAX_DIGEST = 64
MAX_BATCH = 100
MAX_BATCH_BYTES = 3 * 1024 * 1024  # one call carries 4 MiB
SIGNATURE_COLUMNS = ("file", "signature_file", "version", "algorithm")

_source = click.option(
    "--in", "source", default="-", metavar="FILE", show_default=True, help="Where to read; /dev/fd/N for a descriptor."
)
_target = click.option("--out", "target", metavar="FILE", help="A new private file for the bytes; never overwritten.")
_signature_algorithm = click.option(
    "--algorithm",
    type=click.Choice(words.SIGNATURE_ALGORITHMS, case_sensitive=False),
    help="The key's default, unless said.",
)
_encoding = click.option(
    "--encoding",
    type=click.Choice(words.SIGNATURE_ENCODINGS),
    default="der",
    show_default=True,
    help="Form of an ECDSA signature.",
)
_digest = click.option("--digest", is_flag=True, help="The input is a digest made with the algorithm's hash.")
_encryption_algorithm = click.option(
    "--algorithm",
    type=click.Choice(words.ENCRYPTION_ALGORITHMS, case_sensitive=False),
    help="The key's default, unless said.",
)
_aad = click.option("--aad-file", metavar="FILE", help="Associated data (AES only); decryption needs the same.")
_version = click.option(
    "--version", type=values.Version(), metavar="N", default=0, help="A version; the primary one, unless said."
)


@click.command()
@click.argument("name", type=values.Name("key"))
@_version
@click.option("--jwk", is_flag=True, help="As a JWK instead of PEM.")
@click.option("--out", "target", metavar="FILE", help="A new file to write it to.")
@formatted
@remote
def public(wire: Wire, out: Output, name: str, version: int, target: str | None, *, jwk: bool) -> None:
    """Print the public key of NAME."""
    check_target(target)
    found = wire.ask("keys", "GetPublicKey", name=name, version=version)
    text = found.jwk + "\n" if jwk else found.pem
    if target is not None:
        files.create(Path(target), text.encode())
        chat(f"The public key is written to {target}.")
    elif out.asked in {None, "table"}:
        sys.stdout.write(words_only(text))
    else:
        out.one("key", record(found))


@click.command(
    epilog="\b\nExamples:\n  broker key sign payments --in order.json --out order.sig\n"
    "  openssl dgst -sha256 -binary big.iso | broker key sign payments --digest --out big.sig\n"
    "  broker key sign payments *.json          (in one call; leaves a FILE.sig beside each)\n"
)
@click.argument("name", type=values.Name("key"))
@click.argument("sources", nargs=-1, metavar="[FILE...]")
@_source
@_target
@_signature_algorithm
@_encoding
@_digest
@formatted
@remote
def sign(
    wire: Wire, out: Output, name: str, sources: tuple[str, ...], source: str, target: str | None, **how: Any
) -> None:
    """Sign a message with the key NAME, or each FILE into FILE.sig."""
    if sources:
        if source != "-" or target is not None:
            raise click.UsageError("Give files as arguments, or one message with --in and --out; not both.")
        _sign_files(wire, out, name, sources, **how)
        return
    check_target(target)
    made = wire.ask("keys", "Sign", name=name, input=_input(source, digest=how.pop("digest")), **_signature(**how))
    _announce(record(made)["algorithm"], **how)
    out.raw("signature", made.signature, record(made), target, secret=False, reveal=False)


def _sign_files(wire: Wire, out: Output, name: str, sources: tuple[str, ...], *, digest: bool, **how: Any) -> None:
    """One call for all: every signature is there, or none is."""
    if len(sources) > MAX_BATCH or len(set(sources)) < len(sources):
        raise click.UsageError(f"Name at most {MAX_BATCH} files, each once.")
    for one in sources:
        check_target(f"{one}.sig")
    inputs = [_input(one, digest=digest) for one in sources]
    if sum(len(content) for one in inputs for content in one.values()) > MAX_BATCH_BYTES:
        raise Refusal(
            "INPUT_TOO_LONG", "The files are longer than 3 MiB together: sign fewer of them at a time.", Exit.USAGE
        )
    made = wire.ask("keys", "BatchSign", name=name, inputs=inputs, **_signature(**how))
    for one, signature in zip(sources, made.signatures, strict=True):
        files.create(Path(f"{one}.sig"), signature)
    told = {name: value for name, value in record(made).items() if name != "signatures"}
    _announce(told["algorithm"], **how)
    out.many("signature", [{"file": one, "signature_file": f"{one}.sig", **told} for one in sources], SIGNATURE_COLUMNS)


@click.command(epilog="Ends with exit code 1 when the signature is not valid.")
@click.argument("name", type=values.Name("key"))
@_source
@click.option("--signature", "signature_file", required=True, metavar="FILE", help="The signature, as bytes.")
@_version
@_signature_algorithm
@_encoding
@_digest
@formatted
@remote
def verify(wire: Wire, out: Output, name: str, source: str, signature_file: str, **how: Any) -> None:
    """Verify a signature that the key NAME made."""
    answer = wire.ask(
        "keys",
        "Verify",
        name=name,
        version=how.pop("version"),
        signature=files.take(signature_file, MAX_SIGNATURE, "signature"),
        input=_input(source, digest=how.pop("digest")),
        **_signature(**how),
    )
    out.one("signature", record(answer))
    if not answer.valid:
        told = f" {answer.told}" if answer.told else ""
        raise Refusal("SIGNATURE_INVALID", f"The signature is not valid for this message and key.{told}")


@click.command(epilog="\b\nExample:\n  broker key encrypt backups --in dump.key --out dump.key.enc\n")
@click.argument("name", type=values.Name("key"))
@_source
@_target
@_encryption_algorithm
@_aad
@formatted
@remote
def encrypt(wire: Wire, out: Output, name: str, source: str, target: str | None, **how: Any) -> None:
    """Encrypt a plaintext under the key NAME."""
    check_target(target)
    made = wire.ask(
        "keys",
        "Encrypt",
        name=name,
        plaintext=_plaintext(source),
        **_encryption(**how),
    )
    out.raw("ciphertext", made.ciphertext, record(made), target, secret=False, reveal=False)


@click.command(epilog="\b\nExample:\n  broker key decrypt backups --in dump.key.enc --out dump.key\n")
@click.argument("name", type=values.Name("key"))
@_source
@_target
@_version
@_encryption_algorithm
@_aad
@click.option("--reveal", is_flag=True, help="Show the plaintext on this terminal.")
@formatted
@remote
def decrypt(wire: Wire, out: Output, name: str, source: str, target: str | None, *, reveal: bool, **how: Any) -> None:
    """Decrypt a ciphertext with the key NAME."""
    check_raw(target, reveal=reveal)
    made = wire.ask(
        "keys",
        "Decrypt",
        name=name,
        version=how.pop("version"),
        ciphertext=files.take(source, MAX_CIPHERTEXT, "ciphertext"),
        **_encryption(**how),
    )
    out.raw("plaintext", made.plaintext, record(made), target, secret=True, reveal=reveal)


def words_only(text: str) -> str:
    """PEM and JWK are plain ASCII; anything else in an answer is not shown."""
    if not all(one == "\n" or " " <= one <= "~" for one in text):
        raise Refusal(
            "ANSWER_INVALID", "The broker's answer is not a public key in text form; report this.", Exit.FAILURE
        )
    return text


def _announce(used: str, *, algorithm: str | None, encoding: str) -> None:
    """Say how a signature was made where others would guess another way, unless that way was asked for."""
    if used.startswith("PS") and algorithm is None:
        salt = int(used[2:]) // 8
        chat(
            f"Signed with {used}: RSA-PSS, a salt of {salt} bytes. openssl dgst -verify takes -sigopt "
            f"rsa_padding_mode:pss -sigopt rsa_pss_saltlen:{salt}; --algorithm RS{used[2:]} makes PKCS#1 v1.5."
        )
    if encoding == "jose" and used.startswith("ES"):
        chat("The signature is r and s side by side; openssl takes DER only, which is made without --encoding.")


def _input(source: str, *, digest: bool) -> dict[str, bytes]:
    if digest:
        return {"digest": _digest_of(source)}
    try:
        return {"message": files.take(source, MAX_MESSAGE, "message")}
    except Refusal as refused:
        if refused.reason != "INPUT_TOO_LONG":
            raise
        raise Refusal(
            refused.reason,
            "The message is longer than 64 KiB, the most that is sent. With an RSA or EC key hash it here, by the "
            "algorithm's hash, and give the digest: "
            '"openssl dgst -sha256 -binary FILE | broker key sign NAME --digest" '
            "(-sha384 for ec-p384, -sha512 for ec-p521). An Ed25519 key takes no digest: it signs nothing longer.",
            Exit.USAGE,
        ) from None


def _digest_of(source: str) -> bytes:
    """A digest, raw; one that is text is named for what it is."""
    content = files.take(source, 4096, "digest")
    if len(content) > MAX_DIGEST:
        raise Refusal(
            "DIGEST_LENGTH",
            f"A digest has at most {MAX_DIGEST} bytes, and this has {len(content)}: give its bytes, as openssl dgst "
            "-binary writes them, and not the message or hexadecimal digits.",
            Exit.USAGE,
        )
    return content


def _plaintext(source: str) -> bytes:
    try:
        return files.take(source, MAX_MESSAGE, "plaintext")
    except Refusal as refused:
        if refused.reason != "INPUT_TOO_LONG":
            raise
        raise Refusal(
            refused.reason,
            "The plaintext is longer than 64 KiB, the most that is sent: encrypt a random key of 32 bytes here, and "
            "the file with that key, by age or openssl.",
            Exit.USAGE,
        ) from None


def _signature(*, algorithm: str | None, encoding: str) -> dict[str, str]:
    return {
        "algorithm": words.wire_name("SIGNATURE_ALGORITHM", algorithm),
        "encoding": words.wire_name("SIGNATURE_ENCODING", encoding),
    }


def _encryption(*, algorithm: str | None, aad_file: str | None) -> dict[str, Any]:
    return {
        "algorithm": words.wire_name("ENCRYPTION_ALGORITHM", algorithm),
        "aad": files.take(aad_file, MAX_MESSAGE, "associated data") if aad_file else b"",
    }
