"""The login, the sessions, and getting both back when the device loses them.

PKCS#11's rules that shape this: closing a session that logged in logs the whole process out, so one login session is
kept and never lent; a session is for one thread at a time, so each operation borrows a worker session that was opened
without the PIN; ``C_Finalize`` under a running call is undefined, so a reload first takes all workers back.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pkcs11 import exceptions as ck
from pkcs11.constants import Attribute, TokenFlag

from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.hsm.binding import Binding, ambiguous
from broker.hsm.config import HsmConfig, read_pin
from broker.hsm.module import Module

if TYPE_CHECKING:
    from pkcs11.types import Token

R = TypeVar("R")
Clock = Callable[[], float]
"""Seconds that never go back."""

_MISSING: Final = (ck.MechanismInvalid, ck.MechanismParamInvalid, ck.FunctionNotSupported)
_MAX_STRAYS: Final = 1024
_REFUSED_PIN: Final = (ck.PinIncorrect, ck.PinInvalid, ck.PinLenRange, ck.PinExpired)


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

    ``epoch``: in which login. ``answering``: the login held and the token was there when they were asked thereafter.
    """

    def __init__(self, epoch: int, *, answering: bool) -> None:
        super().__init__(epoch)
        self.epoch = epoch
        self.answering = answering


class Sessions:
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
        os.environ.update(config.environment)
        self.module = Module(config.module)
        self.module.initialize()
        try:
            self._connect()
        except BaseException:
            self.module.finalize()
            raise

    def run(self, operation: Callable[[Worker], R]) -> R:
        """Run the operation on a borrowed session and return what it returns.

        An operation that meets a loss is run again, so it must be idempotent: once more on a fresh session if the token
        still answers, then once more after the module was reloaded. The first reload is made at once, the next no
        sooner than ``reload_interval`` after one that worked and ``retry_interval`` after one that did not.
        """
        try:
            return self._once(operation)
        except _LostError as lost:
            self._refuse_stray(lost)
            if not lost.answering:
                self._reload(lost.epoch)
        try:
            return self._once(operation)
        except _LostError as lost:
            self._doubt(lost)
            self._reload(lost.epoch)
        try:
            return self._once(operation)
        except _LostError as lost:
            self._refuse_stray(lost)
            raise _unavailable("the device or the login was lost again") from lost

    def search(self, worker: Worker, template: dict[Attribute, Any]) -> list[Any]:
        """All objects with these attributes. Hold the objects lock.

        python-pkcs11 ends a search that could not begin from a destructor, where its own failure is printed instead of
        raised; so a session that is gone is noticed before.
        """
        if not self.module.knows(worker.session):
            raise ck.SessionHandleInvalid
        return list(worker.session.get_objects(template))

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

    def _once(self, operation: Callable[[Worker], R]) -> R:
        worker = self._borrow()
        try:
            return operation(worker)
        except ck.PKCS11Error as fault:
            answering = self._answers()
            if answering:
                worker = self._renew(worker)
            if isinstance(fault, LOST) or not answering:
                raise _LostError(worker.epoch, answering=answering) from fault
            raise translated(fault) from fault
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

    def _answers(self) -> bool:
        try:
            self.confirm()
        except ck.PKCS11Error:
            return False
        return True

    def _borrow(self) -> Worker:
        try:
            worker = self._idle.get(timeout=self._config.session_wait)
        except queue.Empty:
            raise _unavailable("all its sessions are busy") from None
        if worker is None:
            self._idle.put(None)
            raise _LostError(self._epoch, answering=False)
        return worker

    def _renew(self, worker: Worker) -> Worker:
        """Replace a session that met an error, so that no half-begun operation or session object stays in it."""
        try:
            if not self.module.has_lost(worker.session):
                worker.session.close()
            return Worker(self.token.open(rw=True), worker.epoch, worker.handles)
        except ck.PKCS11Error:
            return worker  # it is gone, and its next user will notice and reload

    def _reload(self, epoch: int) -> None:
        with self._reloading:
            if self._epoch != epoch:
                return  # another thread has done it meanwhile
            if self._halted:
                raise _unavailable(self._halted)
            now = self._clock()
            if now < self._next_reload:
                raise _unavailable(f"the next attempt to reach it is due in {self._next_reload - now:.0f} s")
            self._next_reload = now + self._config.retry_interval
            self._drain()
            try:
                self.module.finalize()
                self.module.initialize()
                self._connect()
            except (BrokerError, ck.PKCS11Error) as fault:
                self._fill(self._size * [None])
                raise _unavailable(fault.message if isinstance(fault, BrokerError) else "it does not start") from fault
            except BaseException:
                self._fill(self._size * [None])  # else nobody would ever try again
                raise
            self._next_reload = now + self._config.reload_interval

    def _connect(self) -> None:
        """Find the token, log in once and open the workers; a new epoch begins, with no handle known."""
        self.token = self._find_token()
        if self._serial not in {None, self.token.serial}:
            self._halted = "another token took the configured one's place; check the HSM and restart the broker"
            raise WrongState("HSM_TOKEN_CHANGED", self._halted)
        self._serial = self.token.serial
        self._login = self._log_in()
        workers = self._open_workers()
        self._size = len(workers)
        self._epoch += 1
        handles: dict[Binding, int] = {}
        self._fill([Worker(session, self._epoch, handles) for session in workers])

    def _find_token(self) -> Token:
        label, found, blank = self._config.token_label, [], False
        for slot in self.module.library.get_slots(token_present=True):
            with contextlib.suppress(ck.TokenNotPresent, ck.TokenNotRecognised):
                token = slot.get_token()
                if not token.flags & TokenFlag.TOKEN_INITIALIZED:
                    blank = True
                elif token.label == label:
                    found.append(token)
        if len(found) == 1:
            return found[0]
        if found:
            raise WrongState(
                "HSM_TOKEN_AMBIGUOUS", f"{len(found)} tokens are labelled {label!a}; give each token its own label."
            )
        hint = "the module only shows a token that is not initialised: initialise it" if blank else "check the label"
        raise WrongState("HSM_TOKEN_NOT_FOUND", f"The module shows no token labelled {label!a}; {hint}.")

    def _log_in(self) -> Any:
        """Exactly one attempt; after a refused PIN none is ever made again by this object."""
        if self.token.flags & TokenFlag.USER_PIN_LOCKED:
            raise self._refused("HSM_PIN_LOCKED", "The token's PIN is locked; its security officer must set a new one.")
        if not self.token.flags & TokenFlag.USER_PIN_INITIALIZED:
            raise WrongState("HSM_TOKEN_NOT_FOUND", "The token has no user PIN yet; its security officer must set one.")
        pin = read_pin(self._config.pin_file)
        try:
            return self.token.open(rw=True, user_pin=pin)
        except ck.PinLocked as fault:
            reason, text = "HSM_PIN_LOCKED", "The token's PIN is locked; its security officer must set a new one."
            raise self._refused(reason, text) from fault
        except _REFUSED_PIN as fault:
            text = f"The token refused the PIN in {self._config.pin_file}; correct the file. It is not tried again."
            raise self._refused("HSM_PIN_INCORRECT", text) from fault
        except ck.PKCS11Error as fault:
            raise _unavailable(f"it does not let the broker log in ({type(fault).__name__})") from fault

    def _refused(self, reason: str, text: str) -> WrongState:
        self._halted = f"{text} Then restart the broker"
        return WrongState(reason, text)

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


def translated(fault: ck.PKCS11Error) -> BrokerError:
    """The refusal for an error that is neither a loss nor expected by the operation."""
    what = type(fault).__name__
    if isinstance(fault, _MISSING):
        return WrongState("HSM_MECHANISM_MISSING", "This token cannot do that operation; use another token for it.")
    return Unavailable("HSM_FAULT", f"The HSM refused the operation ({what}); nothing was released.", fault=what)


def _unavailable(why: str) -> Unavailable:
    return Unavailable("HSM_UNAVAILABLE", f"The HSM does not answer: {why.rstrip('.')}.")
