"""ImportService: decode, one call, encode."""

# ruff: noqa: D102 (the contract of each RPC stands in its .proto file)

from __future__ import annotations

from typing import Any

from broker_api.v1 import imports_pb2 as wire

from broker.core.call import Call
from broker.core.imports.arrival import Extra
from broker.core.imports.handover import Handover
from broker.core.imports.importing import Imports
from broker.core.imports.whereabouts import Whereabouts
from broker.core.kinds import ImportState
from broker.core.model import Import, Terms
from broker.rpc import codec
from broker.rpc.pages import PageTokens, page_size

MAX_OPERATIONS = 16
MAX_TAGS = 64
MAX_WORD = 256
MAX_KEK = 4 * codec.KIBIBYTE


class ImportMethods:
    """The RPCs of ImportService."""

    def __init__(self, imports: Imports, handover: Handover, pages: PageTokens) -> None:
        self._imports = imports
        self._handover = handover
        self._pages = pages

    def import_key(self, call: Call, request: wire.ImportKeyRequest) -> wire.ImportKeyResponse:
        version, terms = codec.version(request.version), _terms(request)
        done = self._imports.import_key(call, request.name, version, request.target, request.remote_name, terms)
        return wire.ImportKeyResponse(extra_versions=_extra(done.extra), **_import(done.row))

    def prove_import(self, call: Call, request: wire.ProveImportRequest) -> wire.ProveImportResponse:
        done = self._imports.prove(
            call, request.name, codec.version(request.version), request.target, request.remote_name
        )
        return wire.ProveImportResponse(**_import(done.row))

    def export_key(self, call: Call, request: wire.ExportKeyRequest) -> wire.ExportKeyResponse:
        codec.at_most(len(request.kek_pem), MAX_KEK, "kek_pem")
        version, kek = codec.version(request.version), request.kek_pem.encode()
        made = self._handover.export(call, request.name, version, request.target, request.remote_name, kek)
        return wire.ExportKeyResponse(
            transfer_file=made.transfer_file, blob_sha256=made.blob_sha256, **_import(made.row)
        )

    def confirm_import(self, call: Call, request: wire.ConfirmImportRequest) -> wire.ConfirmImportResponse:
        version, terms = codec.version(request.version), _terms(request)
        done = self._handover.confirm(call, request.name, version, request.target, request.remote_name, terms)
        return wire.ConfirmImportResponse(extra_versions=_extra(done.extra), **_import(done.row))

    def list_imports(self, call: Call, request: wire.ListImportsRequest) -> wire.ListImportsResponse:
        query = (request.name, request.target)
        after = self._pages.open(call, query, request.page_token)
        page = self._imports.page(call, request.name, request.target, after, page_size(request.page_size))
        return wire.ListImportsResponse(
            imports=[_placed(each) for each in self._imports.whereabouts(page.items)],
            next_page_token=self._pages.token(call, query, page.next),
        )


def _terms(request: Any) -> Terms:
    given = request.terms
    codec.at_most(len(given.operations), MAX_OPERATIONS, "terms.operations")
    codec.at_most(len(given.tags), MAX_TAGS, "terms.tags")
    for word in (*given.operations, *given.tags, *given.tags.values()):
        codec.at_most(len(word), MAX_WORD, "terms")
    return Terms(
        operations=tuple(given.operations),
        tags=dict(given.tags),
        enabled=given.enabled if given.HasField("enabled") else True,
        not_before=codec.moment(given, "not_before"),
        expires_at=codec.moment(given, "expire_time"),
    )


def _extra(found: tuple[Extra, ...]) -> list[wire.ExtraVersion]:
    return [wire.ExtraVersion(remote_version=one.version, disabled=one.disabled) for one in found]


def _import(each: Import) -> dict[str, Any]:
    return {"import": row(each)}  # "import" is a word of Python


def _placed(each: Whereabouts) -> wire.Import:
    found = row(each.row)
    found.standing = codec.COPY_STANDING.wire(each.standing)
    found.drifts.extend(codec.DRIFT.wire(one) for one in each.drifts)
    return found


def row(each: Import) -> wire.Import:
    """A copy for the wire."""
    return wire.Import(
        key=each.key,
        version=each.version,
        target=each.target,
        remote_name=each.remote_name,
        remote_version=each.remote_version,
        state=codec.IMPORT_STATE.wire(each.state),
        kek_thumbprint=each.kek_thumbprint,
        blob_sha256=each.blob_sha256,
        failure=each.failure,
        start_time=codec.timestamp(each.started_at),
        prove_time=codec.timestamp(each.proven_at),
        never_sent=each.state is not ImportState.GONE and not each.may_be_there,
    )
