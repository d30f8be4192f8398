"""What every test can ask for: real servers, each started once on free loopback ports and stopped afterwards."""

from __future__ import annotations

import os

# Before gRPC is loaded: its fork handlers run in a child that becomes another user, and can end it before it is there.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

pytest_plugins = ["tests.servers.softhsm", "tests.servers.postgres", "tests.servers.openbao", "tests.servers.live"]
