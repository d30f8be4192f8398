"""What an act costs the processor, for bounds that tell a cost which explodes from one that does not."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable


def cost(act: Callable[[], object], times: int = 1) -> float:
    """The least processor time of this thread, in seconds, that ``act`` took in so many ``times``.

    Other threads do not count and no garbage of other tests is collected meanwhile; neighbours on the same core only
    ever add to it, so that the least is nearest to the truth.
    """

    def once() -> float:
        begun = time.thread_time()
        act()
        return time.thread_time() - begun

    gc.disable()
    try:
        return min(once() for _ in range(times))
    finally:
        gc.enable()
