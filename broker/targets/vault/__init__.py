"""Vault or OpenBao: the transit engine."""

from __future__ import annotations

from broker.targets import Kind
from broker.targets.vault.settings import VaultSettings
from broker.targets.vault.target import VaultTarget

KIND: Kind[VaultSettings] = Kind(
    name="vault", settings=VaultSettings, build=VaultTarget, credential=lambda settings: settings.shown
)
