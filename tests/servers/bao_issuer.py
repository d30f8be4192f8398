"""CI jobs of a real issuer: OpenBao's identity tokens (OpenID Connect), which this project did not write."""

from __future__ import annotations

import secrets
from typing import Any

from tests.servers.openbao import OpenBao

AUDIENCE = "broker"
PATH = "identity/oidc"


class BaoIssuer:
    """OpenBao as the CI: ``token`` is what it gives to a job of the project."""

    def __init__(self, bao: OpenBao, project: str = "42") -> None:
        self._bao = bao
        self.project = project
        self.name = f"job-{secrets.token_hex(4)}"
        self.url = f"{bao.address}/v1/{PATH}"
        template = '{"project_id": "' + project + '", "entity": {{identity.entity.id}}}'
        bao.request("POST", f"{PATH}/key/{self.name}", {"algorithm": "ES256", "allowed_client_ids": ["*"]})
        role = {"key": self.name, "client_id": AUDIENCE, "ttl": "10m", "template": template}
        bao.request("POST", f"{PATH}/role/{self.name}", role)
        policy = f'path "{PATH}/token/{self.name}" {{ capabilities = ["read"] }}'
        bao.request("PUT", f"sys/policies/acl/{self.name}", {"policy": policy})
        bao.request("POST", f"sys/auth/{self.name}", {"type": "userpass"})
        password = secrets.token_urlsafe(18)
        bao.request("POST", f"auth/{self.name}/users/ci", {"password": password, "token_policies": [self.name]})
        login = bao.request("POST", f"auth/{self.name}/login/ci", {"password": password})
        self._runner: str = login["auth"]["client_token"]
        self.entity: str = login["auth"]["entity_id"]

    def token(self) -> str:
        """A fresh identity token for a job."""
        found: dict[str, Any] = self._bao.request("GET", f"{PATH}/token/{self.name}", token=self._runner)
        token: str = found["data"]["token"]
        return token
