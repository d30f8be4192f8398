"""ImportService: decode, one call, encode."""

# ruff: noqa: D102 (the contract of each RPC stands in its .proto file)

from __future__ import annotations

from broker_api.v1 import imports_pb2 as wire

from broker.core.call import Call
from broker.core.imports import Imports
from broker.core.model import Import
from broker.rpc import codec
from broker.rpc.pages import PageTokens, page_size


class ImportMethods:
    """The RPCs of ImportService."""

    def __init__(self, imports: Imports, pages: PageTokens) -> None:
        self._imports = imports
        self._pages = pages

    def import_key(self, call: Call, request: wire.ImportKeyRequest) -> wire.ImportKeyResponse:
        version = codec.version(request.version)
        done = self._imports.import_key(call, request.name, version, request.target, request.remote_name)
        return wire.ImportKeyResponse(**{"import": _import(done)})  # "import" is a word of Python

    def prove_import(self, call: Call, request: wire.ProveImportRequest) -> wire.ProveImportResponse:
        done = self._imports.prove(call, request.name, codec.version(request.version), request.target)
        return wire.ProveImportResponse(**{"import": _import(done)})

    def list_imports(self, call: Call, request: wire.ListImportsRequest) -> wire.ListImportsResponse:
        query = (request.name, request.target)
        after = self._pages.open(call, query, request.page_token)
        page = self._imports.page(call, request.name, request.target, after, page_size(request.page_size))
        return wire.ListImportsResponse(
            imports=[_import(each) for each in page.items], next_page_token=self._pages.seal(call, query, page.next)
        )


def _import(each: Import) -> wire.Import:
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
    )
