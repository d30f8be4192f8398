"""TLS to a server that is not ours: whom to trust is chosen here, and the cause of a failure told in its own words."""

from __future__ import annotations

import ssl
from pathlib import Path

MAX_CAUSES = 16


def trusting(ca_pem: str, sockets: type[ssl.SSLSocket]) -> ssl.SSLContext:
    """Verify servers with these CAs (PEM; else ssl.SSLError), or with the system's when there are none.

    ``sockets``: what is made of its connections, which is where they get their limits.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # requires a certificate and checks the name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = sockets
    if ca_pem:
        context.load_verify_locations(cadata=ca_pem)
    else:
        _trust_the_systems(context)
    return context


def _trust_the_systems(context: ssl.SSLContext) -> None:
    """Not load_default_certs: variables of the environment (SSL_CERT_FILE, SSL_CERT_DIR) would say whom to trust."""
    paths = ssl.get_default_verify_paths()
    if Path(paths.openssl_cafile).is_file():
        context.load_verify_locations(cafile=paths.openssl_cafile)
    if Path(paths.openssl_capath).is_dir():
        context.load_verify_locations(capath=paths.openssl_capath)


def cause(error: BaseException | None) -> str:
    """The system's or OpenSSL's own reason for a request that came to nothing; "" when there is none to tell."""
    for _ in range(MAX_CAUSES):
        if error is None:
            return ""
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message or "it cannot be verified"
        if isinstance(error, ssl.SSLError):
            plain = error.reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST"}
            return "it does not speak TLS on that port" if plain else str(error.reason or "")
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        inner = getattr(error, "reason", None) or next((one for one in error.args if one is not error), None)
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__
    return ""
