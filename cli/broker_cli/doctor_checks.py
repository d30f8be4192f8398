"""What a check of the doctor comes to, and the checks that both sides share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

SPILLING = ("SSLKEYLOGFILE", "GRPC_TRACE", "OPENSSL_CONF", "PYTHONINSPECT", "PYTHONSTARTUP", "PYTHONASYNCIODEBUG")
LOADING = ("LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH", "PYTHONPATH")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. ``status``: ok, warning, failed, skipped; ``detail`` names the fix."""

    name: str
    status: str
    detail: str


def ok(name: str, detail: str) -> Check:
    """All is well."""
    return Check(name, "ok", detail)


def warning(name: str, detail: str) -> Check:
    """It works, and may not be what was meant."""
    return Check(name, "warning", detail)


def failed(name: str, detail: str) -> Check:
    """It must be mended."""
    return Check(name, "failed", detail)


def skipped(name: str, detail: str) -> Check:
    """It could not be looked at."""
    return Check(name, "skipped", detail)


def environment(environ: Mapping[str, str] = os.environ) -> Iterator[Check]:
    """Variables that spill secrets or load foreign code; only their names are told."""
    spilling = [name for name in SPILLING if environ.get(name)]
    loading = [name for name in LOADING if environ.get(name)]
    if spilling:
        yield failed("environment", f"{', '.join(spilling)} can write secrets out or change TLS: unset it.")
    elif loading:
        yield warning("environment", f"{', '.join(loading)} loads code from elsewhere into the process: is it meant?")
    else:
        yield ok("environment", "no variable that spills secrets or loads foreign code")


def lifetime(name: str, whose: str, start: datetime, end: datetime, now: datetime, cure: str) -> Check:
    """A certificate's validity against the clock."""
    if now < start:
        return failed(
            name,
            f"{whose} starts at {start:%Y-%m-%d %H:%M:%S} UTC, this clock says {now:%Y-%m-%d %H:%M:%S}: set the clock.",
        )
    if now >= end:
        return failed(name, f"{whose} ran out at {end:%Y-%m-%d %H:%M} UTC (or this clock is ahead): {cure}")
    if end - now < min((end - start) / 10, timedelta(days=30)):
        return warning(name, f"{whose} runs out at {end:%Y-%m-%d %H:%M} UTC: {cure}")
    return ok(name, f"{whose} is valid until {end:%Y-%m-%d %H:%M} UTC")
