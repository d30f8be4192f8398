"""The main job, many times: a key is created in the HSM, imported into OpenBao and proven there."""

from __future__ import annotations

import statistics
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from broker_api.v1 import imports_pb2, imports_pb2_grpc, keys_pb2, keys_pb2_grpc

from tests.bench.load import Figures
from tests.bench.peers import Broker

THREADS = 4


def measure(broker: Broker, count: int) -> Figures:
    """Bear ``count`` keys with a few clients at once; every one must end PROVEN."""
    with broker.channel() as channel, ThreadPoolExecutor(THREADS) as pool:
        keys, imports = keys_pb2_grpc.KeyServiceStub(channel), imports_pb2_grpc.ImportServiceStub(channel)

        def bear(number: int) -> float:
            start = time.perf_counter()
            name = f"generated-{number}"
            keys.CreateKey(
                keys_pb2.CreateKeyRequest(
                    name=name,
                    type=keys_pb2.KEY_TYPE_EC_P256,
                    usage=keys_pb2.KEY_USAGE_SIGN,
                    exportable=True,
                    request_id=str(uuid.uuid4()),
                )
            )
            request = imports_pb2.ImportKeyRequest(name=name, target="bench", request_id=str(uuid.uuid4()))
            answer = imports.ImportKey(request)
            assert getattr(answer, "import").state == imports_pb2.IMPORT_STATE_PROVEN
            return (time.perf_counter() - start) * 1000

        start = time.perf_counter()
        took = list(pool.map(bear, range(count)))
        percentile = statistics.quantiles(took, n=100)
        return Figures(rate=count / (time.perf_counter() - start), p50=percentile[49], p99=percentile[98])
