"""What the log says of a bug: where it happened and what kind it was."""

from __future__ import annotations

import traceback

import structlog

MAX_CHAIN = 8
MAX_FRAMES = 32
"""The innermost of each error: a recursion without an end has a thousand."""

_log = structlog.get_logger(__name__)


def log_bug(error: BaseException, *, rpc: str, call_id: str = "") -> None:
    """Never the text or the locals, which may hold what the caller sent. Raises nothing for what ``error`` holds."""
    try:
        chain = _chain(error)
    except BaseException as second:  # noqa: BLE001 (memory may be short; the kind is told without any)
        chain = [_kind(error), _kind(second)]
    _log.error("call failed", call_id=call_id, rpc=rpc, error=chain)


def _chain(error: BaseException) -> list[str]:
    chain: list[str] = []
    current: BaseException | None = error
    while current is not None and len(chain) < MAX_CHAIN:
        frames = traceback.extract_tb(current.__traceback__, limit=-MAX_FRAMES)
        places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        chain.append(f"{_kind(current)} at {' > '.join(places)}")
        current = current.__cause__ or current.__context__
    return chain


def _kind(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}"
