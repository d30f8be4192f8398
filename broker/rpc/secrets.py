"""SecretService: decode, one call, encode. No answer here holds a value."""

# ruff: noqa: D102 (the contract of each RPC stands in its .proto file)

from __future__ import annotations

from broker_api.v1 import secrets_pb2 as wire
from google.protobuf.duration_pb2 import Duration

from broker.core.call import Call
from broker.core.kinds import RootKeyState, SecretVersionState
from broker.core.model import Secret, SecretRead, SecretVersion
from broker.core.secrets.lifecycle import Secrets
from broker.rpc import codec
from broker.rpc.pages import PageTokens, page_size

STATE = codec.Names(wire.SecretVersionState, SecretVersionState)
ROOT_STATE = codec.Names(wire.RootKeyState, RootKeyState)


class SecretMethods:
    """The RPCs of SecretService."""

    def __init__(self, secrets: Secrets, pages: PageTokens) -> None:
        self._secrets = secrets
        self._pages = pages

    def put_secret(self, call: Call, request: wire.PutSecretRequest) -> wire.PutSecretResponse:
        written = self._secrets.put(
            call,
            request.name,
            dict(request.fields),
            expected_version=request.expected_version if request.HasField("expected_version") else None,
            labels=dict(request.labels),
            expires_at=codec.moment(request, "expire_time"),
        )
        return wire.PutSecretResponse(
            secret=_secret(written.secret),
            dropped=written.dropped,
            dropped_expire_time=codec.timestamp(written.dropped_expiry),
        )

    def patch_secret(self, call: Call, request: wire.PatchSecretRequest) -> wire.PatchSecretResponse:
        written = self._secrets.patch(
            call,
            request.name,
            dict(request.fields),
            list(request.remove),
            expected_version=request.expected_version if request.HasField("expected_version") else None,
        )
        return wire.PatchSecretResponse(secret=_secret(written.secret))

    def get_secret(self, call: Call, request: wire.GetSecretRequest) -> wire.GetSecretResponse:
        return wire.GetSecretResponse(secret=self._shown(*self._secrets.get(call, request.name)))

    def list_secrets(self, call: Call, request: wire.ListSecretsRequest) -> wire.ListSecretsResponse:
        query = (request.prefix, request.contains, *(["overdue"] if request.overdue else []))
        after = self._pages.open(call, query, request.page_token)
        page = self._secrets.page(
            call, request.prefix, request.contains, after, page_size(request.page_size), overdue=request.overdue
        )
        return wire.ListSecretsResponse(
            secrets=[self._shown(*each) for each in page.items],
            next_page_token=self._pages.token(call, query, page.next),
        )

    def list_secret_versions(
        self, call: Call, request: wire.ListSecretVersionsRequest
    ) -> wire.ListSecretVersionsResponse:
        query = (request.name,)
        after = self._pages.open(call, query, request.page_token)
        page = self._secrets.versions(call, request.name, after, page_size(request.page_size))
        return wire.ListSecretVersionsResponse(
            versions=[_version(each) for each in page.items], next_page_token=self._pages.token(call, query, page.next)
        )

    def delete_secret_versions(
        self, call: Call, request: wire.DeleteSecretVersionsRequest
    ) -> wire.DeleteSecretVersionsResponse:
        secret = self._secrets.delete(call, request.name, list(request.versions))
        return wire.DeleteSecretVersionsResponse(secret=_secret(secret))

    def undelete_secret_versions(
        self, call: Call, request: wire.UndeleteSecretVersionsRequest
    ) -> wire.UndeleteSecretVersionsResponse:
        secret = self._secrets.undelete(call, request.name, list(request.versions))
        return wire.UndeleteSecretVersionsResponse(secret=_secret(secret))

    def destroy_secret_versions(
        self, call: Call, request: wire.DestroySecretVersionsRequest
    ) -> wire.DestroySecretVersionsResponse:
        secret = self._secrets.destroy(call, request.name, list(request.versions))
        return wire.DestroySecretVersionsResponse(secret=_secret(secret))

    def set_secret_max_age(self, call: Call, request: wire.SetSecretMaxAgeRequest) -> wire.SetSecretMaxAgeResponse:
        most = codec.duration(request, "max_age", least=0, most=codec.LONG_AGES)
        return wire.SetSecretMaxAgeResponse(secret=self._shown(self._secrets.set_max_age(call, request.name, most)))

    def rotate_root_key(self, call: Call, _request: wire.RotateRootKeyRequest) -> wire.RotateRootKeyResponse:
        return wire.RotateRootKeyResponse(version=self._secrets.rotate_root(call))

    def get_root_key(self, call: Call, _request: wire.GetRootKeyRequest) -> wire.GetRootKeyResponse:
        root, waiting = self._secrets.root(call)
        held = [
            wire.HeldRootKey(version=one.version, state=ROOT_STATE.wire(one.state))
            for one in self._secrets.roots.frozen()
        ]
        return wire.GetRootKeyResponse(
            version=root.version, create_time=codec.timestamp(root.created_at), waiting=waiting, held=held
        )

    def settle_root_key(self, call: Call, request: wire.SettleRootKeyRequest) -> wire.SettleRootKeyResponse:
        keep = codec.keep(request.settlement)
        self._secrets.roots.settle(call, codec.version(request.version), keep=keep)
        return wire.SettleRootKeyResponse(version=request.version)

    def _shown(self, secret: Secret, read: SecretRead | None = None) -> wire.Secret:
        shown, standing = _secret(secret, read), self._secrets.standing(secret)
        shown.overdue, shown.due_soon = standing.overdue, standing.soon
        return shown


def _secret(secret: Secret, read: SecretRead | None = None) -> wire.Secret:
    return wire.Secret(
        name=secret.name,
        labels=secret.labels,
        latest_version=secret.latest,
        create_time=codec.timestamp(secret.created_at),
        update_time=codec.timestamp(secret.updated_at),
        expire_time=codec.timestamp(secret.expires_at),
        last_reader=read.principal if read else "",
        last_read_time=codec.timestamp(read.read_at if read else None),
        revision=secret.revision,
        max_age=Duration(seconds=secret.max_age) if secret.max_age else None,
        renew_time=codec.timestamp(secret.renew_at),
    )


def _version(version: SecretVersion) -> wire.SecretVersion:
    return wire.SecretVersion(
        version=version.number,
        state=STATE.wire(version.state),
        fields=version.fields,
        create_time=codec.timestamp(version.created_at),
        author=version.author,
    )
