"""A fake Key Vault by hand: starts one, says how a broker is told of it, and serves until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import tempfile
from pathlib import Path

from .vault import FakeVault


def main() -> None:
    """Serve until a signal says stop; then all that it held is gone."""
    parser = argparse.ArgumentParser(prog="fake-azure", description=main.__doc__)
    parser.add_argument("--kind", choices=("premium", "managed-hsm"), default="premium")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    asked = parser.parse_args()
    stop = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)  # before any thread is there, so that all of them leave it to us
    with tempfile.TemporaryDirectory(prefix="fake-azure-") as folder:
        vault = FakeVault(Path(folder), kind=asked.kind, port=asked.port)
        with vault:
            print(_told(vault), flush=True)
            signal.sigwait(stop)


def _told(vault: FakeVault) -> str:
    return f"""\
A fake Azure {"Key Vault Premium" if vault.kind == "premium" else "Managed HSM"} is at {vault.url}
It keeps keys in memory only. Stop it with Ctrl-C.

In the broker's configuration, then restart it:

    [[targets.private_vaults]]
    host = "{vault.host}"
    kind = "{vault.kind}"
    ca_file = "{vault.ca_file}"
    token_file = "{vault.token_file}"
    targets = ["try-out"]

Then register it, with a key exchange key made there and pinned:

    broker target add azure-key-vault try-out --vault-url {vault.url} --kek kek --create-kek --credential token-file
"""


if __name__ == "__main__":
    main()
