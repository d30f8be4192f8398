"""Many jobs that log in at once, as callers on the wire that try nothing again by themselves."""

from __future__ import annotations

from typing import Any

import grpc
from broker_api.v1 import sessions_pb2, sessions_pb2_grpc

A_CHANNEL = 50
"""Calls on one connection; a server takes a hundred."""


def storm(port: int, ca: bytes, tokens: list[str], timeout: float = 100) -> list[str]:
    """What came of a login with each of the tokens, all at once: "OK" or the name of the status."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    channels = [
        grpc.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(ca), options=options)
        for _ in range(0, len(tokens), A_CHANNEL)
    ]
    try:
        for channel in channels:
            grpc.channel_ready_future(channel).result(200)
        calls = [_login(channels[number // A_CHANNEL], token, timeout) for number, token in enumerate(tokens)]
        return [each.code().name for each in calls]
    finally:
        for channel in channels:
            channel.close()


def _login(channel: grpc.Channel, token: str, timeout: float) -> Any:
    login: Any = sessions_pb2_grpc.SessionServiceStub(channel).Login
    return login.future(sessions_pb2.LoginRequest(), metadata=(("authorization", f"Bearer {token}"),), timeout=timeout)
