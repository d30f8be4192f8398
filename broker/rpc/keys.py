"""KeyService: decode, one call, encode."""

# ruff: noqa: D102 (the contract of each RPC stands in its .proto file)

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from broker_api.v1 import keys_pb2 as wire
from broker_api.v1 import operations_pb2

from broker.core.call import Call
from broker.core.errors import InvalidRequest
from broker.core.inventory.lifecycle import Inventory
from broker.core.keys.confirming import Settling
from broker.core.keys.lifecycle import Keys
from broker.core.keys.phases import phase_of
from broker.core.keys.use import KeyUse
from broker.core.kinds import VersionState
from broker.core.model import Key, KeyMove, KeyVersion, Operation
from broker.core.operations.oversight import Oversight
from broker.core.reasons import Reason
from broker.core.rotations.copies import Copy
from broker.core.rotations.lifecycle import Rotations
from broker.core.schedules.lifecycle import Schedules
from broker.rpc import codec, inventory
from broker.rpc.jwk import jwk, pem
from broker.rpc.operations import to_wire
from broker.rpc.pages import PageTokens, page_size

_MADE = frozenset({VersionState.ENABLED, VersionState.DESTROYED})
MAX_BYTES = 64 * codec.KIBIBYTE
MAX_DIGEST = 64
MAX_BATCH = 100
MAX_CIPHERTEXT = MAX_BYTES + 64
MAX_SIGNATURE = 1024


class KeyMethods:
    """The RPCs of KeyService."""

    def __init__(
        self,
        keys: Keys,
        use: KeyUse,
        settling: Settling,
        rotations: Rotations,
        schedules: Schedules,
        inventory: Inventory,
        oversight: Oversight,
        pages: PageTokens,
    ) -> None:
        self._keys = keys
        self._use = use
        self._settling = settling
        self._rotations = rotations
        self._schedules = schedules
        self._inventory = inventory
        self._oversight = oversight
        self._pages = pages

    def create_key(self, call: Call, request: wire.CreateKeyRequest) -> wire.CreateKeyResponse:
        key = self._keys.create(
            call,
            request.name,
            codec.KEY_TYPE.required(request.type, "type"),
            codec.KEY_USAGE.required(request.usage, "usage"),
            exportable=request.exportable,
            labels=dict(request.labels),
            owner=request.owner,
        )
        return wire.CreateKeyResponse(key=inventory.key(key))

    def get_key(self, call: Call, request: wire.GetKeyRequest) -> wire.GetKeyResponse:
        entry = self._inventory.get(call, request.name)
        shown = inventory.shown(entry, self._settling.held(request.name))
        if request.ask_token:
            shown.origin.CopyFrom(inventory.origin(entry, *self._inventory.origin(entry), self._inventory.token_serial))
        return wire.GetKeyResponse(key=shown)

    def list_keys(self, call: Call, request: wire.ListKeysRequest) -> wire.ListKeysResponse:
        wanted, query = inventory.asked(request)
        after = self._pages.open(call, query, request.page_token)
        page = self._inventory.page(call, wanted, after, page_size(request.page_size))
        held = self._settling.held()
        return wire.ListKeysResponse(
            keys=[inventory.shown(one, held) for one in page.items],
            next_page_token=self._pages.token(call, query, page.next),
        )

    def set_key_schedule(self, call: Call, request: wire.SetKeyScheduleRequest) -> wire.SetKeyScheduleResponse:
        key, schedule = self._schedules.set(call, request.name, inventory.wish(request))
        shown = inventory.key(key)
        if schedule is not None:
            shown.schedule.CopyFrom(inventory.schedule(schedule))
        return wire.SetKeyScheduleResponse(key=shown)

    def list_key_versions(self, call: Call, request: wire.ListKeyVersionsRequest) -> wire.ListKeyVersionsResponse:
        query = (request.name,)
        after = self._pages.open(call, query, request.page_token)
        key, page = self._keys.versions(call, request.name, after, page_size(request.page_size))
        return wire.ListKeyVersionsResponse(
            versions=[_version(key, version) for version in page.items],
            next_page_token=self._pages.token(call, query, page.next),
        )

    def get_public_key(self, call: Call, request: wire.GetPublicKeyRequest) -> wire.GetPublicKeyResponse:
        key, version = self._keys.public_key(call, request.name, codec.version(request.version))
        if version.public_key is None:
            raise TypeError("a version without a public key was returned")
        return wire.GetPublicKeyResponse(
            version=version.number, pem=pem(version.public_key), jwk=jwk(version.public_key, key.usage)
        )

    def sign(self, call: Call, request: wire.SignRequest) -> wire.SignResponse:
        signatures, version, algorithm = self._sign(call, request, [request.input])
        return wire.SignResponse(signature=signatures[0], version=version, algorithm=algorithm)

    def batch_sign(self, call: Call, request: wire.BatchSignRequest) -> wire.BatchSignResponse:
        signatures, version, algorithm = self._sign(call, request, request.inputs)
        return wire.BatchSignResponse(signatures=signatures, version=version, algorithm=algorithm)

    def verify(self, call: Call, request: wire.VerifyRequest) -> wire.VerifyResponse:
        codec.at_most(len(request.signature), MAX_SIGNATURE, "signature")
        algorithm = codec.SIGNATURE_ALGORITHM.optional(request.algorithm)
        inputs, prehashed = _inputs([request.input])
        signature = request.signature
        if request.encoding == wire.SIGNATURE_ENCODING_JOSE:
            signature = codec.der_from_jose(signature, algorithm)
        valid, version, told = self._use.verify(
            call, request.name, codec.version(request.version), algorithm, inputs[0], signature, prehashed=prehashed
        )
        return wire.VerifyResponse(valid=valid, version=version, told=told)

    def encrypt(self, call: Call, request: wire.EncryptRequest) -> wire.EncryptResponse:
        codec.at_most(len(request.plaintext), MAX_BYTES, "plaintext")
        codec.at_most(len(request.aad), MAX_BYTES, "aad")
        algorithm = codec.ENCRYPTION_ALGORITHM.optional(request.algorithm)
        done = self._use.encrypt(call, request.name, algorithm, request.plaintext, request.aad)
        return wire.EncryptResponse(
            ciphertext=done.ciphertext,
            version=done.version,
            algorithm=codec.ENCRYPTION_ALGORITHM.wire(done.algorithm),
        )

    def decrypt(self, call: Call, request: wire.DecryptRequest) -> wire.DecryptResponse:
        codec.at_most(len(request.ciphertext), MAX_CIPHERTEXT, "ciphertext")
        codec.at_most(len(request.aad), MAX_BYTES, "aad")
        algorithm = codec.ENCRYPTION_ALGORITHM.optional(request.algorithm)
        version = codec.version(request.version)
        plaintext, used = self._use.decrypt(call, request.name, version, algorithm, request.ciphertext, request.aad)
        return wire.DecryptResponse(plaintext=plaintext, version=used)

    def rotate_key(self, call: Call, request: wire.RotateKeyRequest) -> wire.RotateKeyResponse:
        if not request.everywhere:
            return wire.RotateKeyResponse(key=inventory.key(self._keys.rotate(call, request.name)))
        done = self._rotations.rotate(call, request.name, codec.duration(request, "grace", least=0))
        return wire.RotateKeyResponse(
            key=inventory.key(done.key), operation=self._operation(done.operation), places=_places(done.places)
        )

    def prepare_key_version(self, call: Call, request: wire.PrepareKeyVersionRequest) -> wire.PrepareKeyVersionResponse:
        key = self._rotations.prepare(call, request.name)
        return wire.PrepareKeyVersionResponse(key=inventory.key(key), version=key.latest)

    def activate_key_version(
        self, call: Call, request: wire.ActivateKeyVersionRequest
    ) -> wire.ActivateKeyVersionResponse:
        key = self._rotations.activate(call, request.name, codec.version(request.version))
        return wire.ActivateKeyVersionResponse(key=inventory.key(key))

    def retire_key_version(self, call: Call, request: wire.RetireKeyVersionRequest) -> wire.RetireKeyVersionResponse:
        key = self._rotations.retire(call, request.name, codec.version(request.version))
        return wire.RetireKeyVersionResponse(key=inventory.key(key))

    def compromise_key_version(
        self, call: Call, request: wire.CompromiseKeyVersionRequest
    ) -> wire.CompromiseKeyVersionResponse:
        number = codec.version(request.version)
        done = self._rotations.compromise(call, request.name, number, request.reason, successor=request.replace)
        return wire.CompromiseKeyVersionResponse(
            key=inventory.key(done.key),
            version=done.version.number,
            operation=self._operation(done.operation),
            places=_places(done.places),
            replacement=self._operation(done.replacement),
            no_replacement=done.no_replacement,
        )

    def list_key_moves(self, call: Call, request: wire.ListKeyMovesRequest) -> wire.ListKeyMovesResponse:
        query = (request.name,)
        after = self._pages.open(call, query, request.page_token)
        page = self._rotations.moves(call, request.name, after, page_size(request.page_size))
        return wire.ListKeyMovesResponse(
            moves=[_move(one) for one in page.items], next_page_token=self._pages.token(call, query, page.next)
        )

    def enable_key(self, call: Call, request: wire.EnableKeyRequest) -> wire.EnableKeyResponse:
        return wire.EnableKeyResponse(key=inventory.key(self._keys.enable(call, request.name)))

    def disable_key(self, call: Call, request: wire.DisableKeyRequest) -> wire.DisableKeyResponse:
        return wire.DisableKeyResponse(key=inventory.key(self._keys.disable(call, request.name)))

    def schedule_key_destruction(
        self, call: Call, request: wire.ScheduleKeyDestructionRequest
    ) -> wire.ScheduleKeyDestructionResponse:
        begin = self._rotations.destroy if request.everywhere else self._keys.schedule_destruction
        key = begin(call, request.name, codec.duration(request, "delay"))
        return wire.ScheduleKeyDestructionResponse(key=inventory.key(key))

    def cancel_key_destruction(
        self, call: Call, request: wire.CancelKeyDestructionRequest
    ) -> wire.CancelKeyDestructionResponse:
        return wire.CancelKeyDestructionResponse(key=inventory.key(self._keys.cancel_destruction(call, request.name)))

    def seal_key(self, call: Call, request: wire.SealKeyRequest) -> wire.SealKeyResponse:
        if request.once_at and request.by_hand_only:
            raise InvalidRequest(
                Reason.FIELD_INVALID, "A key is sealed once it is at targets, or by hand only; send one of the two."
            )
        if request.once_at or request.by_hand_only:
            return wire.SealKeyResponse(
                key=inventory.key(self._keys.seal_once_at(call, request.name, tuple(request.once_at)))
            )
        return wire.SealKeyResponse(key=inventory.key(self._keys.seal(call, request.name)))

    def settle_key_version(self, call: Call, request: wire.SettleKeyVersionRequest) -> wire.SettleKeyVersionResponse:
        keep = codec.keep(request.settlement)
        key = self._settling.settle(call, request.name, codec.version(request.version), keep=keep)
        return wire.SettleKeyVersionResponse(key=inventory.key(key))

    def _operation(self, row: Operation | None) -> operations_pb2.Operation | None:
        return to_wire(self._oversight.shown(row)) if row else None

    def _sign(
        self, call: Call, request: wire.SignRequest | wire.BatchSignRequest, given: Sequence[wire.SignInput]
    ) -> tuple[list[bytes], int, wire.SignatureAlgorithm.ValueType]:
        inputs, prehashed = _inputs(given)
        algorithm = codec.SIGNATURE_ALGORITHM.optional(request.algorithm)
        signed = self._use.sign(call, request.name, algorithm, inputs, prehashed=prehashed)
        signatures = signed.signatures
        if request.encoding == wire.SIGNATURE_ENCODING_JOSE:
            signatures = [codec.jose_from_der(signature, signed.algorithm) for signature in signatures]
        return signatures, signed.version, codec.SIGNATURE_ALGORITHM.wire(signed.algorithm)


def _inputs(given: Sequence[wire.SignInput]) -> tuple[list[bytes], bool]:
    """What is to be signed, and whether it is digests; the gate has seen to it that each has one or the other."""
    codec.at_most(len(given), MAX_BATCH, "inputs")
    kinds = {each.WhichOneof("data") for each in given}
    if len(kinds) != 1:
        raise InvalidRequest(
            Reason.INPUTS_INVALID, "The inputs are none, or messages and digests mixed; send 1 to 100 of one kind."
        )
    prehashed = kinds == {"digest"}
    inputs = [each.digest if prehashed else each.message for each in given]
    for each in inputs:
        codec.at_most(len(each), MAX_DIGEST if prehashed else MAX_BYTES, "digest" if prehashed else "message")
    return inputs, prehashed


def _places(copies: Sequence[Copy]) -> list[wire.KeyPlace]:
    return [wire.KeyPlace(version=one.version, target=one.target, remote_name=one.remote_name) for one in copies]


def _move(move: KeyMove) -> wire.KeyMove:
    return wire.KeyMove(
        version=move.version,
        phase=codec.PHASE.wire(move.phase),
        time=codec.timestamp(move.at),
        actor=move.actor,
        reason=move.reason,
    )


def _version(key: Key, version: KeyVersion) -> wire.KeyVersion:
    public_key = version.public_key
    return wire.KeyVersion(
        version=version.number,
        state=codec.VERSION_STATE.wire(version.state),
        create_time=codec.timestamp(version.created_at),
        public_key_sha256=hashlib.sha256(public_key).hexdigest() if public_key else "",
        sealed=version.sealed,
        phase=codec.PHASE.wire(phase_of(key, version))
        if version.state in _MADE
        else wire.KEY_VERSION_PHASE_UNSPECIFIED,
    )
