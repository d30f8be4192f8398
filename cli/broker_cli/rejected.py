"""Why a broker that is there does not answer: in TLS 1.3 the server refuses a certificate after the handshake is over.

What gRPC tells of that is no more than of a server that is away.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import closing

from broker_cli.profiles import Place
from broker_cli.refusal import Exit, Refusal

SECONDS = 5.0


def explained(refused: Refusal, place: Place) -> Refusal:
    """The refusal of a broker that is not reached; another one if it refuses our certificate."""
    if place.ca is None or place.certificate is None or place.key is None:
        return refused
    if not _refused(place):
        return refused
    return Refusal(
        "CERTIFICATE_REFUSED",
        f"The broker at {place.address} hangs up once it has seen your certificate {place.certificate}"
        f"{_described(place)}: it has run out, or the operator CA that signed it is not, or no longer, the broker's "
        "(`broker authority retire`). An administrator gives you another one with `broker operator issue`; if nobody "
        "has one that is taken, stop the broker and run `broker init` for its folder again.",
        Exit.NOT_LOGGED_IN,
    )


def _refused(place: Place) -> bool:
    """Whether the server ends a connection of ours by itself once it has seen our certificate.

    One that takes it begins to speak HTTP/2 at once. Of the others some send an alert, and gRPC only hangs up.
    """
    host, _, port = place.address.rpartition(":")
    host = host.strip("[]")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(str(place.ca))
        context.load_cert_chain(str(place.certificate), str(place.key))
        with closing(socket.create_connection((host, int(port)), SECONDS)) as plain:
            plain.settimeout(SECONDS)
            with context.wrap_socket(plain, server_hostname=host) as secured:
                return _hung_up(secured)
    except (OSError, ValueError):  # it is not reached, or it is we who do not trust it
        return False


def _hung_up(secured: ssl.SSLSocket) -> bool:
    try:
        return secured.selected_alpn_protocol() == "h2" and not secured.recv(1)
    except ssl.SSLError as alert:
        return "UNKNOWN_CA" in (alert.reason or "") or "CERTIFICATE" in (alert.reason or "")
    except ConnectionResetError:
        return True


def _described(place: Place) -> str:
    """When it was good, and who signed it, as far as it can be read."""
    from cryptography import x509  # noqa: PLC0415  slow to load

    try:
        certificate = x509.load_pem_x509_certificate(place.certificate.read_bytes() if place.certificate else b"")
    except (OSError, ValueError):
        return ""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return f" (serial {certificate.serial_number:x}, {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC)"
