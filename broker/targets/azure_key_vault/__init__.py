"""Azure Key Vault Premium and Azure Key Vault Managed HSM.

Azure's own client is loaded when a target of this kind is first asked something, since it takes a second and tens of
megabytes: ``connection`` and ``credential`` import it, nothing else in here does.
"""

from __future__ import annotations

from broker.targets import Kind
from broker.targets.azure_key_vault.settings import AzureKeyVaultSettings
from broker.targets.azure_key_vault.target import AzureKeyVaultTarget

KIND: Kind[AzureKeyVaultSettings] = Kind(
    name="azure-key-vault",
    settings=AzureKeyVaultSettings,
    build=AzureKeyVaultTarget,
    credential=lambda settings: settings.shown,
)
