"""The ``Device`` port on any PKCS#11 module."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric import rsa

from broker.core.errors import InvalidRequest, Unavailable
from broker.core.kinds import Purpose
from broker.core.ports import Hsm, KeyRef
from broker.core.reasons import Reason
from broker.core.report import HsmReport
from broker.hsm import adoption, claims, selftest
from broker.hsm.config import HsmConfig
from broker.hsm.features import features
from broker.hsm.findings import Findings
from broker.hsm.generation import Generation
from broker.hsm.keyring import Keyring, Parts
from broker.hsm.lending import Finder
from broker.hsm.login import serial_of
from broker.hsm.probe import Examination
from broker.hsm.sessions import Clock, TokenSessions, Worker
from broker.hsm.survey import survey
from broker.hsm.wrapping import Carrier


class Pkcs11Hsm:
    """One token of one PKCS#11 module; see ``broker.core.ports.Device`` for the contract.

    Building it loads the module, logs in (one attempt) and probes the token. A fault in the set-up is WrongState or
    Unavailable with a reason beginning ``HSM_``, or ``KEY_AMBIGUOUS`` for a double of one of the broker's own keys. A
    module serves one instance of a process at a time. ``clock`` gives seconds and paces the recovery.
    """

    def __init__(self, config: HsmConfig, clock: Clock = time.monotonic) -> None:
        self._sessions = TokenSessions(config, clock)
        self._finder = Finder(self._sessions)
        try:
            findings = self._sessions.run(self._examine)
            self._report = _describe(config, self._sessions, findings)
        except BaseException:
            self._sessions.close()
            raise
        self._parts = Parts(
            sessions=self._sessions,
            finder=self._finder,
            generation=Generation(self._sessions, self._finder, findings, clock),
            carrier=Carrier(self._sessions, self._finder, findings),
            report=self._report,
        )

    def keyring(self, purpose: Purpose) -> Hsm:
        """See the port."""
        return Keyring(purpose, self._parts)

    def adopt(self, keys: Iterable[tuple[Purpose, KeyRef]]) -> int:
        """Give these keys of an earlier release the labels that bind them; how many. For the set-up only.

        WrongState ``KEY_NOT_THIS`` (and nothing is changed) when what is said of one does not agree with the token,
        ``HSM_LABEL_FIXED`` when the token does not let labels be changed.
        """
        wanted = list(keys)

        def adopt(worker: Worker) -> int:
            with self._sessions.objects:
                return adoption.adopt(self._sessions, self._finder, worker, wanted)

        return self._sessions.run(adopt)

    def claims(self) -> list[bytes]:
        """See the port."""

        def read(worker: Worker) -> list[bytes]:
            with self._sessions.objects:
                return claims.read(self._sessions, worker)

        return self._sessions.run(read)

    def add_claim(self, value: bytes) -> None:
        """See the port."""

        def add(worker: Worker) -> None:
            with self._sessions.objects:
                claims.add(self._sessions, worker, value)

        self._sessions.run(add)

    def drop_claims(self, values: Collection[bytes]) -> None:
        """See the port."""

        def drop(worker: Worker) -> None:
            with self._sessions.objects:
                claims.drop(self._sessions, worker, values)

        self._sessions.run(drop)

    def guard(self, check: Callable[[], None]) -> None:
        """See the port."""
        self._parts.guard = check

    def random(self, length: int) -> bytes:
        """See the port."""
        if not 1 <= length <= 1024:
            raise InvalidRequest(Reason.RANDOM_LENGTH, "The HSM gives 1 to 1024 random bytes at a time.")
        drawn: bytes = self._sessions.run(lambda worker: worker.session.generate_random(length * 8))
        if len(drawn) != length or (length >= 16 and len(set(drawn)) == 1):
            raise Unavailable(
                Reason.HSM_FAULT, "The HSM's random generator does not work; nothing was released. Check the device."
            )
        return drawn

    def report(self) -> HsmReport:
        """See the port."""
        return self._report

    def check(self) -> None:
        """See the port."""
        self._sessions.run(lambda _: self._sessions.confirm())

    def close(self) -> None:
        """See the port."""
        self._sessions.close()

    def _examine(self, worker: Worker) -> Findings:
        throw_away = rsa.generate_private_key(65537, 2048)
        enforced = selftest.refuse_lax_token(self._sessions, worker, throw_away.public_key().public_numbers())
        with self._sessions.objects:
            objects = survey(self._sessions, worker).probe()
        found = Examination(self._sessions, worker, throw_away).findings()
        return replace(found, probes=(*found.probes, *enforced, objects))


def _describe(config: HsmConfig, sessions: TokenSessions, found: Findings) -> HsmReport:
    token, library = sessions.token, sessions.module.library
    return HsmReport(
        module=str(config.module),
        library=f"{library.library_description} {'.'.join(map(str, library.library_version))}".strip(),
        token_label=token.label,
        token_serial=serial_of(token),
        manufacturer=token.manufacturer_id,
        model=token.model,
        firmware=".".join(map(str, token.firmware_version)),
        key_types=found.key_types,
        oaep_hashes=found.oaep_hashes,
        exact_wrap=found.exact,
        one_call_wrap=bool(found.one_call_hashes),
        probes=found.probes,
        features=features(found),
    )
