"""OpenSSL's error queue, which TLS needs empty.

A PKCS#11 module lives in this process and may use the same libcrypto: SoftHSM leaves errors of its own in the calling
thread's queue when it is initialised. The next TLS read on that thread would then take them for its own and fail
(SSL_get_error(3): "the current thread's error queue must be empty before the TLS/SSL I/O operation").
"""

from __future__ import annotations

import _ssl
import ctypes
from collections.abc import Callable


def _find() -> Callable[[], None]:
    # The libcrypto that Python's ssl is linked to, found through it; statically linked, it is in the program itself.
    clear = ctypes.CDLL(getattr(_ssl, "__file__", None)).ERR_clear_error
    clear.argtypes, clear.restype = [], None
    return clear


clear_errors: Callable[[], None] = _find()
"""Empty the calling thread's queue."""
