"""What every test can ask for: real servers, each started once on free loopback ports and stopped afterwards."""

from __future__ import annotations

pytest_plugins = ["tests.servers.softhsm", "tests.servers.postgres", "tests.servers.openbao", "tests.servers.live"]
