"""The login, the sessions, and getting both back when the device loses them.

PKCS#11's rules that shape this: closing a session that logged in logs the whole process out, so one login session is
kept and never lent; a session is for one thread at a time, so each operation borrows a worker session that was opened
without the PIN; ``C_Finalize`` under a running call is undefined, so a reload first takes all workers back.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog
from pkcs11 import exceptions as ck
from pkcs11.constants import Attribute

from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.reasons import Reason
from broker.hsm import ground
from broker.hsm.binding import Binding, ambiguous
from broker.hsm.codes import told
from broker.hsm.config import HsmConfig
from broker.hsm.login import PinRefusedError, begun, find_token, log_in
from broker.hsm.things import MAPPER, Thing

if TYPE_CHECKING:
    from pkcs11.types import Token

_log = structlog.get_logger(__name__)
R = TypeVar("R")
Clock = Callable[[], float]
"""Seconds that never go back."""

_MISSING: Final = (ck.MechanismInvalid, ck.MechanismParamInvalid, ck.FunctionNotSupported)
_MAX_STRAYS: Final = 1024
_SILENT: Final = "The HSM does not answer: "
_FAILS: Final = "The HSM answers, and fails at this: "


@dataclass(frozen=True, slots=True)
class Worker:
    """A borrowed session and the handles that are valid in its login epoch."""

    session: Any  # python-pkcs11's Session; its type stub leaves the handle out
    epoch: int
    handles: dict[Binding, int] = field(repr=False)


class AmbiguousError(ck.PKCS11Error):
    """Several objects that all say they are the key with this label.

    SoftHSM shows an object twice when two processes make objects at the same moment; a reload puts that right, and what
    a reload does not put right is real.
    """

    def __init__(self, label: bytes) -> None:
        super().__init__()
        self.label = label


LOST: Final = (
    ck.GeneralError,
    ck.DeviceError,
    ck.DeviceRemoved,
    ck.TokenNotPresent,
    ck.TokenNotRecognised,
    ck.SlotIDInvalid,
    ck.SessionHandleInvalid,
    ck.SessionClosed,
    ck.ObjectHandleInvalid,
    ck.KeyHandleInvalid,
    ck.UserNotLoggedIn,
    AmbiguousError,
)
"""What can mean that the device, the session or the login is gone."""


class _LostError(Exception):
    """The operation met an error that may mean a loss.

    ``epoch``: in which login. ``why``: the code, or what the last attempt to get all back ended with. ``answering``:
    the login held and the token was there when they were asked thereafter.
    """

    def __init__(self, epoch: int, why: str, *, answering: bool) -> None:
        super().__init__(epoch)
        self.epoch = epoch
        self.why = why
        self.answering = answering


class TokenSessions:
    """A pool of worker sessions in one token. Refusals at start are WrongState or Unavailable, one sentence each."""

    def __init__(self, config: HsmConfig, clock: Clock) -> None:
        self.objects = threading.Lock()
        """Held while objects are made, searched and destroyed: SoftHSM 2.6.1 races these against each other."""
        self.strays: set[bytes] = set()
        """Labels of keys that were there twice, and still were so after a reload."""
        self.token: Token
        self._config = config
        self._clock = clock
        self._idle: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()  # None: there is no session to be had
        self._size = 0
        self._epoch = 0
        self._login: Any
        self._reloading = threading.Lock()
        self._next_reload = float("-inf")
        self._serial: bytes | None = None
        self._halted = ""  # why there will be no further reload
        self._cause = ""  # why there is no session, when there is none
        self.module = begun(config)
        try:
            self._connect()
        except ck.PKCS11Error as fault:
            self.module.finalize()
            raise self._unavailable(f"it does not start ({told(fault)})") from fault
        except BaseException:
            self.module.finalize()
            raise

    def run(self, operation: Callable[[Worker], R], using: str = "") -> R:
        """Run the operation on a borrowed session and return what it returns. ``using``: its mechanism, for refusals.

        An operation that meets a loss is run again, so it must be idempotent: once more on a fresh session if the token
        still answers, then once more after the module was reloaded. The first reload is made at once, the next no
        sooner than ``reload_interval`` after one that worked and ``retry_interval`` after one that did not.
        """
        try:
            return self._once(operation, using)
        except _LostError as lost:
            self._refuse_stray(lost)
            if not lost.answering:
                self._reload(lost)
        try:
            return self._once(operation, using)
        except _LostError as lost:
            self._doubt(lost)
            self._reload(lost)
        try:
            return self._once(operation, using)
        except _LostError as lost:
            self._refuse_stray(lost)
            raise self._unavailable(f"{lost.why}, also after the module was begun anew", lost=lost) from lost

    def search(self, worker: Worker, template: Mapping[Attribute, Any]) -> list[Thing]:
        """All objects with these attributes, our own and others'. Hold the objects lock."""
        packed = {int(kind): MAPPER.pack_attribute(kind, value) for kind, value in template.items()}
        return [Thing(self.module, worker.session, one) for one in self.module.find(worker.session, packed)]

    def trouble(self) -> str:
        """What the system shows of the module's trouble, as half a sentence; "" when it shows none."""
        return ground.trouble(self._config.module)

    def confirm(self) -> None:
        """Return when the login holds and the token is there; else raise the PKCS11Error that marks them lost.

        To be asked before an absence is believed: after a logout private objects are invisible, and SoftHSM answers
        a search in a token whose folder is gone with nothing at all.
        """
        if not self.module.logged_in(self._login):
            raise ck.UserNotLoggedIn
        if self.token.slot.get_token().serial != self._serial:
            raise ck.TokenNotPresent

    def close(self) -> None:
        """Log out and finalise the module. Doing it twice is the same as once."""
        with self._reloading:
            if self._halted == "it is closed":
                return
            self._halted = "it is closed"
            self._drain()
            with contextlib.suppress(ck.PKCS11Error):  # the login may be lost already; finalising ends it anyway
                self._login.close()
            self.module.finalize()
            self._fill(self._size * [None])

    def _once(self, operation: Callable[[Worker], R], using: str) -> R:
        worker = self._borrow()
        try:
            return operation(worker)
        except ck.PKCS11Error as fault:
            silence = self._silence()
            if not silence:
                worker = self._renew(worker)
            if not isinstance(fault, AmbiguousError):
                _log.warning("the HSM refused", code=told(fault), using=using, when_asked_again=silence or "it answers")
            if isinstance(fault, LOST) or silence:
                raise _LostError(worker.epoch, silence or told(fault), answering=not silence) from fault
            raise translated(fault, using, self.trouble()) from fault
        except Exception:
            raise
        except BaseException:  # a library's panic: an operation may be half begun
            worker = self._renew(worker)
            raise
        finally:
            self._idle.put(worker)

    def _doubt(self, lost: _LostError) -> None:
        """Let a reload show whether a key is there twice, but once for each key, and never wait for one's time.

        A reload stops all callers for a moment; a stray object is a matter of its own key alone.
        """
        self._refuse_stray(lost)
        if isinstance(lost.__cause__, AmbiguousError):
            if self._clock() < self._next_reload or len(self.strays) >= _MAX_STRAYS:
                raise ambiguous(lost.__cause__.label) from lost
            self.strays.add(lost.__cause__.label)

    def _refuse_stray(self, lost: _LostError) -> None:
        if isinstance(lost.__cause__, AmbiguousError) and lost.__cause__.label in self.strays:
            raise ambiguous(lost.__cause__.label) from lost

    def _silence(self) -> str:
        """Why the token or the login is not there, by its code; "" when both are."""
        try:
            self.confirm()
        except ck.PKCS11Error as fault:
            return told(fault)
        return ""

    def _borrow(self) -> Worker:
        try:
            worker = self._idle.get(timeout=self._config.session_wait)
        except queue.Empty:
            raise _unavailable("all its sessions are busy") from None
        if worker is None:
            self._idle.put(None)
            raise _LostError(self._epoch, self._cause, answering=False)
        return worker

    def _renew(self, worker: Worker) -> Worker:
        """Replace a session that met an error, so that no half-begun operation or session object stays in it."""
        try:
            if not self.module.has_lost(worker.session):
                self._close(worker.session)
            return Worker(self.token.open(rw=True), worker.epoch, worker.handles)
        except ck.PKCS11Error:
            return worker  # it is gone, and its next user will notice and reload

    def _close(self, session: Any) -> None:
        """Close it, at the second try if need be: the fault that was met may be at this call too, and but once."""
        try:
            session.close()
        except ck.PKCS11Error:
            if not self.module.has_lost(session):
                session.close()

    def _reload(self, lost: _LostError) -> None:
        with self._reloading:
            if self._epoch != lost.epoch:
                return  # another thread has done it meanwhile
            if self._halted:
                raise self._unavailable(self._halted)
            now = self._clock()
            if now < self._next_reload:
                wait = f"the next attempt to reach it is due in {self._next_reload - now:.0f} s"
                raise self._unavailable(lost.why, wait, lost=lost) from lost
            self._next_reload = now + self._config.retry_interval
            self._drain()
            try:
                self.module.finalize()
                self.module.initialize()
                self._connect()
            except (BrokerError, ck.PKCS11Error) as fault:
                self._cause = fault.message if isinstance(fault, BrokerError) else f"it does not start ({told(fault)})"
                _log.warning("the HSM cannot be reached", sentence=self._cause)
                self._fill(self._size * [None])
                raise self._unavailable(self._cause) from fault
            except BaseException:
                self._fill(self._size * [None])  # else nobody would ever try again
                raise
            self._next_reload = now + self._config.reload_interval

    def _unavailable(self, why: str, wait: str = "", *, lost: _LostError | None = None) -> Unavailable:
        """The refusal that tells the cause first, then what the system shows of it, then when it will be tried."""
        seen = self.trouble()
        parts = (why.removeprefix(_SILENT).rstrip("."), "" if seen in why else seen, wait)
        lead = _FAILS if lost and lost.answering else _SILENT
        return Unavailable(Reason.HSM_UNAVAILABLE, f"{lead}{'; '.join(part for part in parts if part)}.")

    def _connect(self) -> None:
        """Find the token, log in once and open the workers; a new epoch begins, with no handle known."""
        self.token = find_token(self.module, self._config)
        if self._serial not in {None, self.token.serial}:
            self._halted = "another token took the configured one's place; check the HSM and restart the broker"
            raise WrongState(Reason.HSM_TOKEN_CHANGED, self._halted)
        self._serial = self.token.serial
        try:
            self._login = log_in(self.token, self._config.pin_file)
        except PinRefusedError as refusal:
            self._halted = f"{refusal.message} Then restart the broker"
            raise
        workers = self._open_workers()
        self._size = len(workers)
        self._epoch += 1
        handles: dict[Binding, int] = {}
        self._fill([Worker(session, self._epoch, handles) for session in workers])

    def _open_workers(self) -> list[Any]:
        workers: list[Any] = []
        try:
            while len(workers) < self._config.sessions:
                workers.append(self.token.open(rw=True))
        except ck.SessionCount as fault:  # the token allows fewer than configured: use what there is
            if not workers:
                raise _unavailable("the token has no free session") from fault
        return workers

    def _drain(self) -> None:
        """Take every worker back, so that no call is inside the module."""
        taken: list[Worker | None] = []
        try:
            while len(taken) < self._size:
                taken.append(self._idle.get(timeout=self._config.session_wait))
        except queue.Empty:
            self._fill(taken)
            raise _unavailable("a call into the module does not return") from None

    def _fill(self, workers: Sequence[Worker | None]) -> None:
        for worker in workers:
            self._idle.put(worker)


def translated(fault: ck.PKCS11Error, using: str = "", seen: str = "") -> BrokerError:
    """The refusal for an error that is neither a loss nor expected by the operation; ``seen``: its likely cause."""
    what = told(fault)
    if isinstance(fault, _MISSING):
        return WrongState(
            Reason.HSM_MECHANISM_MISSING,
            f"This token does not do {using or 'that operation'} ({what}); `broker hsm` says what it can.",
        )
    at = (f"{what} at {using}" if using else what) + (f"; {seen}" if seen else "")
    return Unavailable(Reason.HSM_FAULT, f"The HSM refused the operation ({at}); nothing was released.", fault=what)


def _unavailable(why: str) -> Unavailable:
    return Unavailable(Reason.HSM_UNAVAILABLE, f"{_SILENT}{why}.")
