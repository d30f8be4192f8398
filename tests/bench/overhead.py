"""What the broker adds to a key's way to a target, beside the HSM's own calls and the target's own answers."""

from __future__ import annotations

import json
import statistics
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from broker_api.v1 import imports_pb2, imports_pb2_grpc, keys_pb2, keys_pb2_grpc, targets_pb2, targets_pb2_grpc
from grpc import Channel

from tests.bench import peers
from tests.bench.bare import Bare
from tests.bench.relay import Relay
from tests.bench.tables import table
from tests.servers.azure_key_vault import FakeVault
from tests.servers.openbao import OpenBao
from tests.servers.shim import make_shim_token, put_shim_before

KINDS = {"P-256": "ec-p256", "RSA-3072": "rsa-3072"}
TYPES = {"ec-p256": keys_pb2.KEY_TYPE_EC_P256, "rsa-3072": keys_pb2.KEY_TYPE_RSA_3072}
TARGETS = {"OpenBao": "bao", "Azure (fake)": "vault"}
CUT = 0.1
"""Of the samples, at both ends: how long an RSA key takes is a matter of luck, and so is a disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    """Seconds of one key: from the first call to the proof, and of these the target's own."""

    wall: float
    target: float


def measure(folder: Path, bao: OpenBao, count: int) -> str:
    """The table. ``count`` P-256 keys for each target, and as many bare; half as many of RSA."""
    folder.mkdir()
    before_bao, before_vault = Relay(), Relay()
    (folder / "fake").mkdir()
    token = make_shim_token(folder / "bare")
    token.environment.pop("PKCS11_SHIM_LOG")
    bare = Bare(token)
    try:
        with (
            FakeVault(folder / "fake", known_as=before_vault.port) as vault,
            before_bao.before(bao.port),
            before_vault.before(vault.port),
            _broker(folder / "broker", bao, vault, before_bao.host) as channel,
        ):
            relays = {"OpenBao": before_bao, "Azure (fake)": before_vault}
            lines: list[list[str]] = []
            for title, kind in KINDS.items():
                lines += _lines(title, kind, channel, bare, relays, count if kind == "ec-p256" else count // 2)
    finally:
        bare.close()
    heads = ["keys", "bare PKCS#11 calls ms", "the target's answers ms", "all the rest ms", "rest / bare calls"]
    return (
        "## Import overhead: what the broker adds to a key's generation, import and proof\n\n"
        + table(heads, lines)
        + "\nOne key at a time, SoftHSM through the shim. *Bare*: generate the pair, generate an ephemeral key, wrap "
        "both, by python-pkcs11 alone in another token of the same kind, in turns with the rest. *The target's "
        "answers*: from the last byte of each request to the last byte of its answer. *All the rest*: the two calls' "
        "wall time without those, and so with the same PKCS#11 calls in it. Means without the tenth at each end.\n"
    )


def _lines(
    title: str, kind: str, channel: Channel, bare: Bare, relays: dict[str, Relay], count: int
) -> Iterator[list[str]]:
    bares: list[float] = []
    journeys: dict[str, list[Journey]] = {name: [] for name in relays}
    for number in range(-2, count):
        alone = [bare.generate(kind) for _ in relays]
        found = {name: _journey(channel, kind, name, relay) for name, relay in relays.items()}
        if number >= 0:  # the first ones are for warming up
            bares += alone
            for name, one in found.items():
                journeys[name].append(one)
    least = _mean(bares)
    for name, many in journeys.items():
        rest = _mean([one.wall - one.target for one in many])
        print(f"overhead: {title} to {name}: {rest / least:.2f}", file=sys.stderr)
        figures = [least, _mean([one.target for one in many]), rest]
        yield [f"{title} to {name}", str(count), *(f"{one * 1000:.1f}" for one in figures), f"{rest / least:.2f}"]


def _journey(channel: Channel, kind: str, target: str, relay: Relay) -> Journey:
    keys, imports = keys_pb2_grpc.KeyServiceStub(channel), imports_pb2_grpc.ImportServiceStub(channel)
    before, start = relay.answering, time.perf_counter()
    name = f"k-{uuid.uuid4().hex[:12]}"
    keys.CreateKey(
        keys_pb2.CreateKeyRequest(
            name=name,
            type=TYPES[kind],
            usage=keys_pb2.KEY_USAGE_SIGN,
            exportable=True,
            request_id=str(uuid.uuid4()),
        )
    )
    request = imports_pb2.ImportKeyRequest(name=name, target=TARGETS[target], request_id=str(uuid.uuid4()))
    answer = imports.ImportKey(request)
    assert getattr(answer, "import").state == imports_pb2.IMPORT_STATE_PROVEN
    return Journey(wall=time.perf_counter() - start, target=relay.answering - before)


def _mean(seconds: list[float]) -> float:
    cut = int(len(seconds) * CUT)
    return statistics.fmean(sorted(seconds)[cut : len(seconds) - cut])


@contextmanager
def _broker(folder: Path, bao: OpenBao, vault: FakeVault, bao_host: str) -> Iterator[Channel]:
    """A connection to a broker of its own, behind the shim, that has both for targets."""

    def change(config: Path) -> None:
        put_shim_before(config, folder)
        lines = config.read_text(encoding="utf-8").splitlines(keepends=True)
        config.write_text("".join(line for line in lines if not line.startswith("PKCS11_SHIM_LOG")), encoding="utf-8")
        with config.open("a", encoding="utf-8") as file:
            file.write(f'\n[[targets.private_vaults]]\nhost = "{vault.host}"\nkind = "{vault.kind}"\n')
            file.write(f"ca_file = {_text(vault.ca_file)}\ntoken_file = {_text(vault.token_file)}\n")
            file.write('targets = ["*"]\n')

    with peers.broker_dev(folder, bao_host, "127.0.0.1:1", change=change) as broker, broker.channel() as channel:
        peers.register_target(broker, bao, TARGETS["OpenBao"], bao_host)
        settings = targets_pb2.AzureKeyVaultSettings(vault_url=vault.url, kek="kek", credential="token-file")
        targets_pb2_grpc.TargetServiceStub(channel).CreateTarget(
            targets_pb2.CreateTargetRequest(
                name=TARGETS["Azure (fake)"], azure_key_vault=settings, create_kek=True, request_id=str(uuid.uuid4())
            )
        )
        yield channel


def _text(file: Path) -> str:
    return json.dumps(str(file))
