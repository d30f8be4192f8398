"""What a process and its host do about the broker's own keys: take the versions there are, and tell of their end."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from threading import Lock

import structlog
from cryptography import x509

from broker import own_ends, own_files, setup
from broker.config import Config
from broker.core.authorities.known import OwnKeys
from broker.core.authorities.lifecycle import Authorities
from broker.core.authorities.page_keys import PageKeys
from broker.core.call import background_call
from broker.core.clock import Clock
from broker.core.kinds import Own
from broker.core.ports import Device
from broker.rpc.pages import PageTokens

log = structlog.get_logger("broker")

LEAD = timedelta(seconds=30)
"""How long a new version is taken by every process of several before it is in force; a process looks every second."""


class OwnKeyWork:
    """Of one process. ``pages``: the page tokens, under the keys that there are."""

    def __init__(self, config: Config, device: Device, own: OwnKeys, authorities: Authorities, clock: Clock) -> None:
        self._config = config
        self._device = device
        self._own = own
        self._authorities = authorities
        self._clock = clock
        self._turn = Lock()
        self._page_keys = PageKeys(device, own, config.trust_domain, lambda: setup.page_key(config))
        self._trusted: tuple[list[str], list[x509.Certificate]] = ([], [])
        self.pages = PageTokens(*self._page_keys.keys())

    def begin(self) -> None:
        """Before anything is served: the files as the rows are, a CA that has ended replaced, a certificate to show."""
        self._own.refresh()
        self.follow()
        for resource, rotate in list(self._authorities.due(self._clock.now())):
            rotate(background_call(resource, 0, self._clock.now))
        self.renew(setup.RENEW_AT_LAST)
        self.warn()

    def refresh(self) -> None:
        """Learn which versions there are, and have this host take them."""
        self._own.refresh()
        self.follow()

    def follow(self) -> None:
        """Have this host take the versions that are known: its files, what it shows, what it opens pages with."""
        with self._turn:
            self.pages.use(self._page_keys.keys())
            if own_files.follow(self._config, self._own):
                log.info("the broker's own keys: this host has taken the versions that there are now")
                self.renew(setup.RENEW_AT_LAST)

    def renew(self, before: timedelta) -> None:
        """Sign a new server certificate if it is time; the listeners take it up without a restart."""
        if setup.renew_server_certificate(self._config, self._device, self._clock.now(), before=before):
            log.info("server certificate renewed")

    def operator_cas(self) -> Sequence[x509.Certificate]:
        """The CAs whose operators are let in now."""
        pems = [one.certificate for one in self._own.taken(Own.OPERATOR_CA)]
        if pems != self._trusted[0]:
            self._trusted = pems, [x509.load_pem_x509_certificate(pem.encode()) for pem in pems]
        return self._trusted[1]

    def warn(self) -> None:
        """Tell in the log what ends soon."""
        for sentence in own_ends.ending(self._own.all(), self._clock.now()):
            log.warning("a key of the broker's own", sentence=sentence)


def own_file(config: Config) -> bool:
    """Whether operators are let in by the broker's own CA, or by one that somebody else keeps."""
    return config.server.operator_ca_file.resolve() == (config.certificates / f"{Own.OPERATOR_CA}.pem").resolve()
