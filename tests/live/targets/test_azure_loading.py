"""What a fresh process loads for Azure."""

from __future__ import annotations

import subprocess
import sys

from tests.unit.targets.test_azure_settings import CLIENT, GIVEN


def test_azures_client_is_not_loaded_before_a_target_is_asked_something() -> None:
    program = (
        "import sys; from pathlib import Path; from broker.targets import Surroundings, connector\n"
        "around = Surroundings(allowed_hosts=frozenset({'team-keys.vault.azure.net:443'}), credentials=Path('/x'),\n"
        f" credentials_for={{'team-keys.vault.azure.net:443/workload-identity:{CLIENT}': ('hsm',)}})\n"
        f"connector(around)('hsm', 'azure-key-vault', {GIVEN!r})\n"
        "print([name for name in sys.modules if name.split('.')[0] in {'azure', 'msal'}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
