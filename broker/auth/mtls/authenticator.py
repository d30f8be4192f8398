"""The Authenticator port on client certificates.

A certificate is read once; that it is valid now, and that its operator is enabled and has not revoked it, is asked at
every call, because a connection outlives both (AN-28).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

from cryptography import x509
from pydantic import BaseModel, ConfigDict, StringConstraints

from broker.auth.mtls.certificate import ANEW, TRUST_DOMAIN, Identity, read
from broker.core import ports
from broker.core.errors import Unauthenticated, WrongState
from broker.core.identity import Credentials
from broker.core.kinds import OperatorState
from broker.core.model import Operator, Principal
from broker.core.reasons import Reason

MAX_KNOWN = 1024


class MtlsConfig(BaseModel):
    """``operator_ca_file``: PEM with the certificates that sign operators; of another CA than the broker's, but one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trust_domain: Annotated[str, StringConstraints(max_length=255, pattern=f"^{TRUST_DOMAIN.pattern}$")] = "broker"
    operator_ca_file: Path


class Mtls:
    """Operators by certificate: ``Principal(kind="operator")`` with the groups of the operator's record."""

    def __init__(
        self,
        config: MtlsConfig,
        store: ports.Store,
        now: ports.Now,
        authorities: Callable[[], Sequence[x509.Certificate]] | None = None,
    ) -> None:
        """``authorities``: the CAs that count at this moment; without it, the one in the file."""
        self._trust_domain = config.trust_domain
        only = _load(config.operator_ca_file)
        self._authorities = authorities or (lambda: [only])
        self._store = store
        self._now = now
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Identity] = OrderedDict()  # by PEM

    def authenticate(self, credentials: Credentials) -> Principal | None:
        """None without a certificate; Unauthenticated ``CERTIFICATE_…`` or ``OPERATOR_…`` for one that will not do."""
        if credentials.certificate is None:
            return None
        if not credentials.chain_verified:
            raise Unauthenticated(
                Reason.CERTIFICATE_UNVERIFIED, "The client certificate was not verified by the connection."
            )
        authorities = self._authorities()
        identity = self._identity(credentials.certificate, authorities)
        operator = self._store.get(Operator, identity.operator)
        _current(identity, operator, self._now())
        return Principal(
            kind="operator",
            name=identity.operator,
            groups=operator.groups if operator else (),
            method="mtls",
            credential=identity.serial,
        )

    def _identity(self, pem: bytes, authorities: Sequence[x509.Certificate]) -> Identity:
        with self._lock:
            known = self._known.get(pem)
            if known is not None and known.authority in authorities:
                self._known.move_to_end(pem)
                return known
        identity = read(pem, authorities, self._trust_domain)
        with self._lock:
            self._known[pem] = identity
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        return identity


def _load(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise WrongState(
            Reason.OPERATOR_CA_INVALID,
            f"The operator CA file {path} cannot be used "
            f"({getattr(error, 'strerror', None) or 'no certificate in PEM'}); name the right one (operator_ca_file "
            "under [server]).",
        ) from error


def _current(identity: Identity, operator: Operator | None, now: datetime) -> None:
    """Return if the certificate counts at this moment."""
    if not identity.not_before <= now <= identity.not_after:
        raise _refused(
            identity,
            Reason.CERTIFICATE_EXPIRED,
            f"The client certificate is not valid now, {now:%Y-%m-%d %H:%M:%S} UTC by the broker's clock; if this "
            f"machine's clock agrees, {ANEW}.",
        )
    if not identity.authority.not_valid_before_utc <= now <= identity.authority.not_valid_after_utc:
        raise _refused(
            identity,
            Reason.CERTIFICATE_EXPIRED,
            "The operator CA's certificate is not valid now by the broker's clock; tell who runs the broker, whose "
            "`broker doctor` shows the cause.",
        )
    # One answer for an operator who never was and one who was removed: the caller learns nothing of the list.
    if operator is None or operator.state is not OperatorState.ENABLED:
        raise _refused(
            identity,
            Reason.OPERATOR_UNKNOWN,
            "The certificate's operator is not registered with this broker; ask an administrator of it.",
        )
    # Certificates count whole seconds (RFC 5280 4.1.2.5): one that started in the second of its revocation is refused.
    if identity.not_before < operator.not_before:
        raise _refused(
            identity,
            Reason.CERTIFICATE_REVOKED,
            f"The client certificate was revoked; {ANEW}.",
        )


def _refused(identity: Identity, reason: str, sentence: str) -> Unauthenticated:
    return Unauthenticated(reason, sentence, operator=identity.operator, certificate_serial=identity.serial)
