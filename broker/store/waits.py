"""How long the store waits for what: all of it follows from one number of the configuration.

A call is refused while it can still say why, so each wait is shorter than what it is part of: the server gives up a
lock before the statement, the statement before the broker hangs up, and that before the journal's turn is over.
"""

from __future__ import annotations

from dataclasses import dataclass

USUAL, SHORTEST, LONGEST = 1.0, 0.2, 30.0
"""Seconds of patience: what it is unless the configuration says, and the bounds of that."""

HEARD_OF = 5.0
"""Seconds that a process may be silent at least, however short the patience: it speaks once in each of them."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Each in seconds. ``patience``: within about how many a caller learns that the store does not answer."""

    patience: float = USUAL

    @property
    def journal(self) -> float:
        """For entries to be durable."""
        return 0.9 * self.patience

    @property
    def server(self) -> float:
        """For all that one call asks the database's server, connecting included."""
        return 0.8 * self.patience

    @property
    def statement(self) -> float:
        """For one statement, by the server."""
        return 0.7 * self.patience

    @property
    def lock(self) -> float:
        """For a row that another change holds, by the server."""
        return 0.5 * self.patience

    @property
    def turn(self) -> float:
        """For a connection that others are using."""
        return 0.4 * self.patience

    @property
    def together(self) -> float:
        """For the changes that share a commit; nobody knows what became of a change that waited in vain."""
        return 2.0 * self.patience

    @property
    def silence(self) -> float:
        """For the next word of a process that leads or has locked something, which others get when it is over."""
        return max(HEARD_OF, 5.0 * self.patience)

    @property
    def last_words(self) -> float:
        """For what a process that ends has yet to write."""
        return max(4.0, 4.0 * self.patience)
