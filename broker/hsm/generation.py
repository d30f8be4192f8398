"""How a key comes into the token: made once, bound to its purpose and name, read back before it is believed."""

from __future__ import annotations

import threading

from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.reasons import Reason
from broker.hsm import objects
from broker.hsm.binding import Binding
from broker.hsm.findings import Findings
from broker.hsm.lending import SECRETS, Finder, strange
from broker.hsm.mechanisms import generator
from broker.hsm.objects import Recipe
from broker.hsm.sessions import AmbiguousError, Clock, TokenSessions, Worker

FRESH_SECONDS = 1.0
"""For how long an id that was drawn just now is taken to be unknown to everybody else."""


class Generation:
    """Makes keys of every purpose, one at a time."""

    def __init__(self, sessions: TokenSessions, finder: Finder, findings: Findings, clock: Clock) -> None:
        self._sessions = sessions
        self._finder = finder
        self._findings = findings
        self._clock = clock
        self._one_at_a_time = threading.Lock()

    def make(self, binding: Binding, *, exportable: bool, fresh: bool) -> bytes | None:
        """See ``Hsm.generate``."""
        objects.check_usage(binding.type, binding.usage, exportable=exportable)
        if binding.type not in self._findings.key_types:
            lacking = self._findings.lack(f"{generator(binding.type)} for {binding.type}")
            raise WrongState(
                Reason.HSM_MECHANISM_MISSING,
                f"This token cannot make {binding.type} keys: it lacks {lacking}; choose another type.",
            )
        recipe = Recipe(binding.type, binding.usage, exportable, self._findings.copyable_known)
        # One at a time, as the objects lock has it anyway: those that wait for it must not hold the sessions meanwhile.
        # Two secret keys under one id would go unnoticed; two pairs would not, as the public key checks what they do.
        wait = FRESH_SECONDS if fresh and not binding.type.symmetric else float("-inf")
        fresh_until = self._clock() + wait

        def make(worker: Worker) -> bytes | None:
            nonlocal fresh_until
            with self._sessions.objects:
                unseen, fresh_until = self._clock() < fresh_until, float("-inf")
                if unseen and binding not in worker.handles:
                    return self._made(worker, binding, recipe)
                # Repeating after a loss is safe: it begins by looking for what an earlier run has made.
                return self._found_or_made(worker, binding, recipe)

        with self._one_at_a_time:
            return self._sessions.run(make, generator(binding.type))

    def _found_or_made(self, worker: Worker, binding: Binding, recipe: Recipe) -> bytes | None:
        there = self._finder.halves(worker, binding.hsm_id)
        if any(half.label != binding.label for half in there):
            raise strange(binding, there)
        whole = [half for half in there if half.kind in SECRETS and objects.generated(half.thing)]
        if whole:
            if len({half.kind for half in there}) != len(there):
                raise AmbiguousError(binding.label)
            for half in whole:
                self._finder.refuse_misfit(worker, binding, half.thing)
            return objects.accept([half.thing for half in there], recipe)
        self._sessions.confirm()  # else the private half may only be invisible
        for half in there:  # a public half alone, or a half without its value: a call that was cut short
            half.thing.destroy()
        return self._made(worker, binding, recipe)

    def _made(self, worker: Worker, binding: Binding, recipe: Recipe) -> bytes | None:
        made = objects.make(worker, binding.hsm_id, recipe, binding.label.decode())
        try:
            accepted = objects.accept(made, recipe)
            if any(self._finder.read_kind(worker, thing)[1] != binding.label for thing in made):
                raise WrongState(
                    Reason.HSM_LABEL_LOST,
                    "The token did not keep the key's label, by which the broker knows its keys; ask its vendor.",
                )
        except BrokerError as fault:
            for thing in made:
                thing.destroy()
            raise Unavailable(
                Reason.HSM_FAULT, "The HSM made another key than it was asked for; it was removed. Check the device."
            ) from fault
        if accepted is not None:
            self._finder.remember(worker, binding, made[0].handle)
        return accepted
