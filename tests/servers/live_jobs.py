"""A CI's jobs on the running broker: their connection to the pipelines' port, and the rule that lets them in."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from broker_api.v1 import trust_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message_factory import GetMessageClass

from tests.servers.issuer import Issuer
from tests.servers.live import METHODS, Client, Live
from tests.servers.refusals import Refused, on_the_wire

AUDIENCE = "broker"
GRANT = """
@id("deploy")
permit (principal == Pipeline::"deploy", action == Action::"FetchSecrets", resource in Folder::"team/app");
"""


class Job:
    """A job's connection to the pipelines' port. ``ask`` sends a bearer token along."""

    def __init__(self, broker: Live) -> None:
        self._client = Client(broker.pipelines, broker.ca, None, None)

    def ask(self, rpc: str, token: str, **fields: Any) -> Any:
        return self.send(rpc, token, GetMessageClass(METHODS[rpc].input_type)(**fields).SerializeToString())

    def send(self, rpc: str, token: str, request: bytes) -> Any:
        """The answer to a request that is bytes already; ``Refused``."""
        method = METHODS[rpc]
        call = self._client.channel.unary_unary(
            f"/{method.containing_service.full_name}/{rpc}",
            request_serializer=bytes,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        try:
            return call(request, timeout=200, metadata=(("authorization", f"Bearer {token}"),))
        except grpc.RpcError as error:
            raise on_the_wire(error) from None

    def refusal(self, rpc: str, token: str, **fields: Any) -> Refused:
        with pytest.raises(Refused) as found:
            self.ask(rpc, token, **fields)
        return found.value

    def why_not(self, rpc: str, token: str, **fields: Any) -> str:
        return self.refusal(rpc, token, **fields).reason

    def close(self) -> None:
        self._client.close()


def rule_for(issuer: Issuer, **changes: Any) -> trust_pb2.TrustRule:
    """The pipeline ``deploy`` for jobs of the repository 42, each token of which opens one session."""
    parts: dict[str, Any] = {
        "name": "deploy", "preset": trust_pb2.PRESET_GENERIC, "issuer": issuer.url, "audience": AUDIENCE,
        "matchers": [trust_pb2.Matcher(claim="repository_id", exact="42")], "pipeline": "deploy",
        "max_session": Duration(seconds=3600), "single_use": True, "ca_pem": issuer.ca_pem,
    }  # fmt: skip
    return trust_pb2.TrustRule(**{**parts, **changes})


def grant(admin: Client, text: str = GRANT) -> None:
    """Add to the policy in force."""
    policy = admin.ask("GetPolicy").policy
    admin.ask("SetPolicy", text=policy.text + text, expected_version=policy.version)
