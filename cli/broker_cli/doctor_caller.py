"""The doctor's look at the way from this caller to the broker, step by step; what a failed step hides is skipped."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from broker_cli import inventory, profiles
from broker_cli.doctor_checks import Check, environment, failed, lifetime, ok, skipped, warning
from broker_cli.refusal import Refusal
from broker_cli.screen import plain
from broker_cli.status import health
from broker_cli.wire import Wire
from broker_cli.words import record

CONNECT_SECONDS = 5
HEAD_SECONDS = 3600
ALARMS = {"UNPROVEN", "TARGET_CANNOT_DISABLE"}
"""Why a copy should not be used that may be usable."""
RENEW = 'get a fresh one with "broker operator renew", or from an administrator ("broker operator issue").'
NOT_ACCEPTED = "The broker does not accept your certificate: it is from another broker, or ran out; " + RENEW

# OpenSSL's X509_V_ERR_* numbers.
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_CA = {2, 18, 19, 20, 21}
_WRONG_NAME = {62, 64}
_PLAINTEXT = {
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "UNEXPECTED_MESSAGE",
    "RECORD_LAYER_FAILURE",
}


class _Stop(Exception):
    """Nothing after this step can be looked at."""


def checks(flags: dict[str, str | None], timeout: float) -> Iterator[Check]:
    """Everything about the caller's side, in the order in which it is needed."""
    yield from environment()
    try:
        place = yield from _profile(flags)
        yield from _client_certificate(place)
        yield from _network(place)
        yield from _handshake(place)
    except _Stop:
        yield skipped("broker", "not asked: mend what is above first")
        return
    with Wire(flags=flags, timeout=min(timeout, 10)) as wire:
        yield from _broker(wire)


def _profile(flags: dict[str, str | None]) -> Generator[Check, None, profiles.Place]:
    try:
        place = profiles.locate(flags)
    except Refusal as refused:
        yield failed("profile", refused.message)
        raise _Stop from None
    try:
        place = replace(place, address=profiles.address(place.address, profiles.ADDRESS_FROM))
    except Refusal as refused:
        yield failed("profile", refused.message)
        raise _Stop from None
    if place.ca is None or place.certificate is None or place.key is None:
        yield failed("profile", "CA file, certificate and key are not all given: use a whole profile folder.")
        raise _Stop
    yield ok("profile", f"{place.folder or 'flags and environment'}, broker at {place.address}")
    return place


def _client_certificate(place: profiles.Place) -> Iterator[Check]:
    """The key's privacy, the certificate's validity, and that they and the CA fit."""
    from cryptography import x509  # noqa: PLC0415  slow to load
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    try:
        identity = profiles.load(place)
        yield ok("key-file", f"{place.key} is private")
        certificate = x509.load_pem_x509_certificate(identity.certificate)
        authorities = x509.load_pem_x509_certificates(identity.ca)
        key = serialization.load_pem_private_key(identity.key, password=None)
    except Refusal as refused:
        yield failed("key-file" if "key" in refused.message else "profile-files", refused.message)
        raise _Stop from None
    except (ValueError, TypeError):
        yield failed(
            "profile-files", "CA file, certificate or key is not PEM (or the key is encrypted): get the profile anew."
        )
        raise _Stop from None
    now = datetime.now(UTC)
    if key.public_key() != certificate.public_key():
        yield failed(
            "key-match", "The private key is not the certificate's: they are from two profiles; take both from one."
        )
        raise _Stop
    yield ok("key-match", "the private key is the certificate's")
    mine = lifetime(
        "certificate", "Your certificate", certificate.not_valid_before_utc, certificate.not_valid_after_utc, now, RENEW
    )
    yield mine
    yield from _authority_life(authorities[0], now)
    if mine.status == "failed":
        raise _Stop


def _authority_life(authority: Any, now: datetime) -> Iterator[Check]:
    yield lifetime(
        "ca",
        "The broker's CA",
        authority.not_valid_before_utc,
        authority.not_valid_after_utc,
        now,
        "get the new CA file from an administrator.",
    )


def _network(place: profiles.Place) -> Iterator[Check]:
    host, port = _split(place.address)
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except socket.gaierror:
        yield failed("network", f"The name {host} is not known to the resolver: is it spelt right, is the VPN up?")
    except TimeoutError:
        yield failed("network", f"{place.address} does not answer: a firewall drops it, or the host is down.")
    except ConnectionRefusedError:
        yield failed("network", f"Nothing listens at {place.address}: start the broker, or correct the port.")
    except OSError as fault:
        yield failed("network", f"{place.address} cannot be reached: {fault.strerror}.")
    else:
        yield ok("network", f"{place.address} accepts connections")
        return
    raise _Stop


def _handshake(place: profiles.Place) -> Iterator[Check]:
    """One TLS handshake of our own, because OpenSSL says why it fails and gRPC does not."""
    host, port = _split(place.address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(str(place.ca))
    context.load_cert_chain(str(place.certificate), str(place.key))
    context.set_alpn_protocols(["h2"])
    try:
        with closing(socket.create_connection((host, port), CONNECT_SECONDS)) as plain_socket:
            plain_socket.settimeout(CONNECT_SECONDS)
            with context.wrap_socket(plain_socket, server_hostname=host) as secured:
                # In TLS 1.3 the server judges our certificate after its own part is done, and may just hang up.
                seen = list(_judge(secured)) if secured.recv(1) else [failed("tls", NOT_ACCEPTED)]
    except ssl.SSLCertVerificationError as fault:
        yield failed("tls", _untrusted(fault, host))
    except ssl.SSLError as fault:
        yield failed("tls", _broken(fault, place.address))
    except OSError as fault:
        why = fault.strerror or "no answer"
        yield failed("tls", f"{place.address} broke off the TLS handshake ({why}): is it the broker's, and no proxy's?")
    else:
        yield from seen
        if all(one.status != "failed" for one in seen):
            return
    raise _Stop


def _judge(secured: ssl.SSLSocket) -> Iterator[Check]:
    version, protocol = secured.version(), secured.selected_alpn_protocol()
    if version != "TLSv1.3":
        yield failed("tls", f"Only {version} came about, and the broker wants TLS 1.3: is a proxy in between?")
    elif protocol != "h2":
        yield failed("tls", "The server does not speak HTTP/2, so it is no gRPC server: is it the right port?")
    else:
        yield ok("tls", "TLS 1.3, and the server has the broker's name")
    described: Any = secured.getpeercert() or {}
    if "notAfter" in described:
        start, end = (
            datetime.fromtimestamp(ssl.cert_time_to_seconds(described[name]), UTC) for name in ("notBefore", "notAfter")
        )
        cure = "the broker's administrator must renew it."
        yield lifetime("server-certificate", "The broker's certificate", start, end, datetime.now(UTC), cure)


def _untrusted(fault: ssl.SSLCertVerificationError, host: str) -> str:
    code = fault.verify_code
    if code in _WRONG_NAME:
        return f"The server's certificate is not for the name {host}: use the name that the broker was set up with."
    if code == _EXPIRED:
        return "The server's certificate ran out (or this clock is ahead): set the clock, or renew it on the broker."
    if code == _NOT_YET_VALID:
        return "The server's certificate starts in the future: the clock of this machine is behind; set it right."
    if code in _UNKNOWN_CA:
        return (
            "The server's certificate is not from the CA in the CA file: wrong CA file, or another server; get it anew."
        )
    return f"The server's certificate is not accepted ({plain(fault.verify_message)})."


def _broken(fault: ssl.SSLError, address: str) -> str:
    reason = fault.reason or ""
    if reason in _PLAINTEXT:
        return f"{address} does not speak TLS: it is a plaintext port; the broker's ports are never plaintext."
    if "UNKNOWN_CA" in reason or "CERTIFICATE" in reason:
        return NOT_ACCEPTED
    if "VERSION" in reason or "PROTOCOL" in reason:
        return "No TLS version in common: the broker wants TLS 1.3."
    return f"The TLS handshake with {address} failed ({plain(reason) or 'no reason given'})."


def _broker(wire: Wire) -> Iterator[Check]:
    """What the broker itself says, once it can be talked to."""
    try:
        serving = health(wire)
        yield (
            ok("health", "the broker serves")
            if serving
            else failed(
                "health",
                "The broker runs but does not serve: look at its HSM and database (broker doctor --config there).",
            )
        )
        caller = wire.ask("operators", "WhoAmI")
    except Refusal as refused:
        yield failed("identity", _unknown(refused))
        return
    yield ok("identity", f"you are {caller.principal}, groups: {', '.join(caller.groups) or 'none'}")
    if caller.clock_trouble:
        yield failed("broker-clock", caller.clock_trouble)
    if caller.token_trouble:
        yield failed("token", caller.token_trouble)
    yield from _permitted(wire)


def _unknown(refused: Refusal) -> str:
    if refused.reason == "METHOD_UNKNOWN":
        return "This port knows no operators: it is the pipelines' port; use the operators' port of the broker."
    return refused.format_message()


def _permitted(wire: Wire) -> Iterator[Check]:
    try:
        hsm = wire.ask("hsm", "GetHsm")
        yield (
            ok("hsm", f"the token {hsm.token_label} answers")
            if hsm.answering
            else failed("hsm", "The HSM does not answer: look at its module, PIN and token on the broker's host.")
        )
        yield from _heads(wire.ask("audit", "GetAuditState").heads)
        yield _copies(wire)
        yield _drift(wire)
        yield compromised(wire)
        yield overdue("keys", wire.pages("keys", "ListKeys", "keys", overdue=True))
        yield _held(wire)
        yield overdue("secrets", wire.pages("secrets", "ListSecrets", "secrets", overdue=True))
    except Refusal as refused:
        yield warning("permission", f"{refused.format_message()} This look is an administrator's or auditor's.")


def _copies(wire: Wire) -> Check:
    """Whether a key that could not be proven, or was withdrawn, may still be used at a target."""
    rows = [record(one) for one in wire.pages("imports", "ListImports", "imports")]
    alarms = [one for one in rows if one["state"] == "disabling" or one["failure"] in ALARMS]
    if not alarms:
        return ok("imports", "no key that could not be proven, or was withdrawn, is known to be enabled at a target")
    named = ", ".join(f"{one['remote_name']} at {one['target']}" for one in alarms[:5])
    return failed(
        "imports",
        f"{len(alarms)} not proven or withdrawn and, as far as is known, enabled: {named}. Use none of them; see that "
        "the target answers and lets the broker disable keys, or disable them there.",
    )


def _drift(wire: Wire) -> Check:
    """What the last looks at the places where keys live have found."""
    try:
        reports = [record(one) for one in wire.pages("drift", "ListDrift", "reports")]
    except Refusal as refused:
        if refused.reason not in {"METHOD_UNKNOWN", "POLICY_DENIED"}:
            raise
        return skipped("drift", 'not asked: "ListDrift" is not permitted to you, or not known to this broker')
    found = [(report["target"] or "the HSM", one) for report in reports for one in report["findings"]]
    if not found:
        return ok("drift", "no place where keys live is known to differ from the record")
    named = ", ".join(f"{one['drift']} ({one['key'] or 'KEK'}, {place})" for place, one in found[:5])
    return failed("drift", f'{len(found)} unlike the record: {named}. "broker drift" has the repairs.')


def _held(wire: Wire) -> Check:
    try:
        return held(wire.pages("keys", "ListKeys", "keys", held=True))
    except Refusal as refused:
        if refused.reason != "FIELD_UNKNOWN":
            raise
        return skipped("schedules", "not asked: this broker does not tell which schedules are held")


def held(found: Iterator[Any]) -> Check:
    """Whose schedules rotate nothing until somebody sets them again."""
    why = [(one.name, "it was restored" if one.schedule.held else one.schedule.failure) for one in found]
    if not why:
        return ok("schedules", "no schedule of the keys that you may see is held")
    named = ", ".join(f"{name} ({reason})" for name, reason in why[:5])
    return warning(
        "schedules",
        f"{len(why)} of the keys are not rotated until their schedule is set again: {named}; `broker key schedule NAME "
        "--every TIME` does, and asks for the approvals that are needed (`broker key list --held` has them all).",
    )


def compromised(wire: Wire) -> Check:
    """Keys that protect nothing, since nobody has put another version in the place of one that is compromised."""
    try:
        found = [record(one) for one in wire.pages("keys", "ListKeys", "keys", compromised=True)]
    except Refusal as refused:
        if refused.reason != "FIELD_UNKNOWN":
            raise
        return skipped("keys-compromised", "not asked: this broker does not tell such keys")
    if not found:
        return ok(
            "keys-compromised", "none of the keys that you may see waits for the replacement of a compromised version"
        )
    return failed("keys-compromised", inventory.repair(found))


def overdue(what: str, late: Iterator[Any]) -> Check:
    """What should have been rotated, or written anew, by now, and why it was not, if that is known."""
    found = [record(one) for one in late]
    if not found:
        return ok(f"{what}-age", f"none of the {what} that you may see is overdue")
    why = [(one["name"], (one.get("schedule") or {}).get("failure")) for one in found]
    named = ", ".join(f"{name} ({failure})" if failure else name for name, failure in why[:5])
    cure = (
        "mend the reason that stands there (docs/errors.md), or `broker key rotate NAME`"
        if what == "keys"
        else "put new values (`broker secret put NAME`)"
    )
    return warning(f"{what}-age", f"{len(found)} of the {what} are overdue: {named}; {cure}.")


def _heads(heads: Any) -> Iterator[Check]:
    if not heads:
        yield warning("audit-head", 'No audit head is signed yet: "broker audit sign-head".')
        return
    newest = max(head.sign_time.ToDatetime(tzinfo=UTC) for head in heads)
    age = (datetime.now(UTC) - newest).total_seconds()
    if age > HEAD_SECONDS:
        yield warning("audit-head", f"The newest audit head is {age / 3600:.0f} h old: if the broker was used since, "
                      "its background loop is stuck; restart it.")  # fmt: skip
    elif age < -CONNECT_SECONDS:
        yield failed("clock", f"The broker's clock is {-age:.0f} s ahead of this one: set both by NTP.")
    else:
        yield ok("audit-head", f"the newest audit head is {max(age, 0):.0f} s old")


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
