"""Rows of the attack list that concern the whole broker, against the running one."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from broker.core import audit
from broker.core.model import KeyType
from tests.servers.live import Client, Live, Refused, cli
from tests.servers.openbao import OpenBao


def outcome(live: Live, before: int) -> dict[str, Any]:
    """The one outcome record written since then."""
    (found,) = [one for one in live.since(before) if one["kind"] == "entry" and one["phase"] == "outcome"]
    return found
