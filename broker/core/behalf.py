"""Who is meant by a name that stands on record since they asked for something that is done later."""

from __future__ import annotations

from broker.core.errors import NotFound
from broker.core.kinds import OperatorState
from broker.core.model import Operator, Principal
from broker.core.ports import Store
from broker.core.reasons import Reason


def who_asked(store: Store, named: str, method: str, cure: str) -> Principal:
    """They, as they are now: the groups that they have lost do not count any more.

    NotFound ``OPERATOR_NOT_FOUND`` when they may not call any more; ``cure``: what to do about it then.
    """
    kind, _, name = named.partition("/")
    operator = store.get(Operator, name) if kind == "operator" else None
    if operator is None or operator.state is not OperatorState.ENABLED:
        raise NotFound(Reason.OPERATOR_NOT_FOUND, f"{named}, who asked for this, may not call any more; {cure}.")
    return Principal(kind=kind, name=name, groups=operator.groups, method=method)
