"""What an operation does, as its noun states it: read from top to bottom a plan is the state machine.

    begin ─▶ RUNNING: step 0 ─▶ step 1 ─▶ … ─▶ DONE
                        │ refused
                        └─────▶ UNDOING ─▶ UNDONE

A plan's steps never change while rows of its kind may exist; another shape is another kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from broker.core.call import BACKGROUND, Call
from broker.core.errors import BrokerError
from broker.core.model import Operation
from broker.core.ports import Write


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a step is given: who carries the operation on, and the operation as it stands.

    ``fresh``: nothing of it can have been done before, since it was begun just now by this very call. ``given``: what
    this call has looked up already, and what it wants to hear of besides; None in the background.
    """

    call: Call
    operation: Operation
    fresh: bool = False
    given: object = None
    learned: dict[str, str] = field(default_factory=dict)

    @property
    def attended(self) -> bool:
        """Whether somebody waits for it, whose permission was asked for just now; else the background carries it on."""
        return self.call.principal != BACKGROUND

    @property
    def memory(self) -> Mapping[str, str]:
        """What earlier steps, and in ``keep`` this one, have found."""
        return self.operation.memory

    def learn(self, **facts: str) -> None:
        """Have this remembered even if the step does not come to its end."""
        self.learned.update(facts)


class Over(Exception):
    """Raised by a step: the operation is over for this refusal, even if that is ``Unavailable``."""

    def __init__(self, refusal: BrokerError) -> None:
        super().__init__(refusal)
        self.refusal = refusal


class NotYet(Exception):
    """Raised by a step: nothing is amiss, but its time has not come.

    ``until``: when it will; None when it waits for other operations, which wake it (``Operations.wake``).
    """

    def __init__(self, until: datetime | None = None) -> None:
        super().__init__(until)
        self.until = until


HSM = "the HSM"
"""The place of what waits for the token; no target can have that name."""

Act = Callable[[Work], Mapping[str, str] | None]
Keep = Callable[[Write, Work], None]


def nothing(_write: Write, _work: Work) -> None:
    """Keep nothing but that the step is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """``act`` touches the outside and gives what later steps need of it; ``keep`` writes what came of that.

    ``act`` may run twice, at the same time even, so it looks first. ``keep`` runs once, in the transaction that moves
    the operation on. Either may refuse: by ``Unavailable`` the operation stays where it is, by any other refusal (or
    ``Over``) it is undone, if it can be.
    """

    name: str
    act: Act
    keep: Keep = nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps of one kind of operation, and what becomes of one that is given up.

    Without ``undo`` it only goes forward, for ever. Each of these goes with its move: ``paused`` when a step was
    ``Unavailable`` (without it nothing is written then), ``turned`` when it turns back, ``undone`` when that is done.
    """

    kind: str
    steps: tuple[Step, ...]
    patience: timedelta  # longer than all the steps take: nobody takes it up before
    undo: Act | None = None
    undone: Keep = nothing
    undone_reason: str = "UNDONE"  # what the audit says of that; "": what it was undone for is the call's own outcome
    paused: Keep | None = None
    turned: Keep = nothing
    urgent: Callable[[Operation], bool] = lambda _: False  # whether the background takes up at once what has paused
    alarm: Callable[[Operation], str] = lambda _: "an operation waits"  # what the log says while it cannot go on
    told: Callable[[BrokerError, BrokerError], BrokerError] = lambda refusal, _: refusal
    """What the caller is told of a refusal for which it could not even be undone, for the second reason."""
    abandoned_is_undone: bool = False  # what the background does with one whose call has died; else it goes forward
    place: Callable[[Operation], str] = lambda _: HSM  # whom it waits for, one at a time; no target has such a name
    longest_pause: timedelta = timedelta(seconds=20)  # between two attempts of the background
    slow: frozenset[str] = frozenset()  # refusals of which each attempt leaves something outside: an hour in between

    @property
    def can_turn(self) -> bool:
        """Whether there is a way back."""
        return self.undo is not None
