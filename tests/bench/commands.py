"""Whole commands: how long a person or a job waits for them."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.stage import SECRETS, BaoSide, BrokerSide, token_file
from tests.servers.issuer import Issuer
from tests.servers.openbao import bao_binary


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command; ``before``: what it needs anew each time, which is not measured."""

    name: str
    words: list[str]
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    before: Callable[[], object] = lambda: None


def alternate(times: int, *commands: Command) -> dict[str, float]:
    """The median milliseconds of each, in turns; every one must end with 0."""
    took: dict[str, list[float]] = {each.name: [] for each in commands}
    for _ in range(times):
        for each in commands:
            each.before()
            start = time.perf_counter()
            subprocess.run(each.words, stdout=subprocess.DEVNULL, check=True, env=each.environment)
            took[each.name].append((time.perf_counter() - start) * 1000)
    return {name: statistics.median(values) for name, values in took.items()}


def program() -> str:
    """The installed command line."""
    return str(Path(sys.executable).with_name("broker"))


def starts() -> tuple[Command, Command]:
    """The command line, beside an interpreter that only imports click."""
    return (
        Command(name="broker --help", words=[program(), "--help"]),
        Command(name='python -c "import click"', words=[sys.executable, "-c", "import click"]),
    )


def runs(ours: BrokerSide, theirs: BaoSide, issuer: Issuer, folder: Path) -> tuple[Command, Command]:
    """A job of one secret and a command that does nothing, beside a read of one secret."""
    place = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    address = {"BROKER_PIPELINES_ADDRESS": ours.broker.pipelines, "BROKER_CA_FILE": str(ours.broker.ca_file)}
    identity = {"BROKER_ID_TOKEN_FILE": str(token_file(folder, issuer))}
    server, secret = theirs.server, SECRETS[0]
    token = {"BAO_ADDR": server.address, "BAO_CACERT": str(server.ca_file), "BAO_TOKEN": theirs.reader}
    return (
        Command(
            name="broker run -- true",
            words=[program(), "run", "--secret", f"VALUE=broker://{secret}#value", "--", "true"],
            environment={**place, **address, **identity},
            before=lambda: token_file(folder, issuer),
        ),
        Command(
            name="bao kv get",
            words=[str(bao_binary()), "kv", "get", "-mount=secret", "-field=value", secret],
            environment={**place, **token},
        ),
    )
