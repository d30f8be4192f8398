"""Which hosts are Azure's, who gives tokens for them, and which token each of them may be shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from broker.core.errors import InvalidRequest
from broker.core.reasons import Reason
from broker.targets import PrivateVault, Surroundings
from broker.targets.azure_key_vault.settings import AzureKeyVaultSettings

Tier = Literal["premium", "managed-hsm"]

_NAME = r"(?=[a-z0-9-]{3,24}\.)[a-z](?:-?[a-z0-9])+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """One of Azure's clouds. The first of ``logins`` is where tokens are asked for; challenges may name any of them."""

    domains: dict[str, Tier]
    logins: tuple[str, ...]


CLOUDS = (
    Cloud(
        domains={"vault.azure.net": "premium", "managedhsm.azure.net": "managed-hsm"},
        logins=("login.microsoftonline.com", "login.windows.net"),
    ),
    Cloud(
        domains={"vault.usgovcloudapi.net": "premium", "managedhsm.usgovcloudapi.net": "managed-hsm"},
        logins=("login.microsoftonline.us",),
    ),
    Cloud(  # 21Vianet's Managed HSM takes no keys from outside
        domains={"vault.azure.cn": "premium"},
        logins=("login.partner.microsoftonline.cn", "login.chinacloudapi.cn"),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One vault or Managed HSM: the only server that is asked, and all that a token may be for."""

    url: str
    host: str  # "host:port"
    tier: Tier
    resource: str  # "https://vault.azure.net": what tokens are for
    logins: tuple[str, ...]  # where tokens are given; () for a private one, which is shown a token of its own
    tenant: str = ""  # the only one whose tokens will do; "" where the operator named none
    private: PrivateVault | None = None

    @property
    def scope(self) -> str:
        """The one scope a token is ever asked for."""
        return f"{self.resource}/.default"

    @property
    def name(self) -> str:
        """As Azure's own command line calls it."""
        return self.url.removeprefix("https://").split(".", maxsplit=1)[0]


def locate(settings: AzureKeyVaultSettings, surroundings: Surroundings) -> Place:
    """The place that these settings mean, if the broker's configuration allows it (BY-03)."""
    private = surroundings.private_vaults.get(settings.host)
    if private is not None:
        return _private(settings, private)
    if settings.host not in surroundings.allowed_hosts:
        raise InvalidRequest(
            Reason.TARGET_HOST_NOT_ALLOWED,
            f"{settings.host} is not among the hosts and ports that the broker's configuration allows; if it is right, "
            "have it added to allowed_hosts under [targets] there, and the broker started again.",
        )
    if settings.credential == "token-file":
        raise InvalidRequest(
            Reason.TARGET_SETTINGS_INVALID,
            "A token file is for the private vaults in the broker's configuration; name another credential for Azure.",
        )
    for cloud in CLOUDS:
        for domain, tier in cloud.domains.items():
            if re.fullmatch(rf"https://{_NAME}\.{re.escape(domain)}", settings.vault_url, re.ASCII):
                return Place(
                    url=settings.vault_url,
                    host=settings.host,
                    tier=tier,
                    resource=f"https://{domain}",
                    logins=cloud.logins,
                    tenant=settings.tenant_id,
                )
    raise InvalidRequest(
        Reason.TARGET_HOST_NOT_ALLOWED,
        "The host is not one of a vault or Managed HSM in an Azure cloud that takes keys from outside; another server "
        "with the same API belongs under [[targets.private_vaults]] in the broker's configuration.",
    )


def _private(settings: AzureKeyVaultSettings, private: PrivateVault) -> Place:
    if settings.credential != "token-file":
        raise InvalidRequest(
            Reason.TARGET_SETTINGS_INVALID,
            "A private vault is shown a token from a file; the credential is token-file.",
        )
    tier: Tier = "managed-hsm" if private.kind == "managed-hsm" else "premium"
    return Place(
        url=settings.vault_url, host=settings.host, tier=tier, resource=settings.vault_url, logins=(), private=private
    )
