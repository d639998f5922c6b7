"""Progress bars whose estimate knows that pieces of work differ.

tqdm takes every step for the same and trusts the last ones most. Of a profile neither holds: a
batch of long prompts takes longer than one of short ones, a cell of few tokens a hundredth of one
of many, and the first piece waits for what is read only once. What a piece costs beside others is
said beforehand (`Piece`); what a unit of it takes is measured on those that are done.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, MutableMapping, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm


class Piece(NamedTuple):
    """A piece of work.

    Attributes:
        size: how many units of the bar it is.
        cost: how much it takes beside other pieces.
        kind: pieces of one kind take as much for what they cost; others only about as much.
    """

    size: int
    cost: float
    kind: Hashable = None


class Pace:
    """How long the rest takes of pieces of work that are done in order.

    The first piece is left out as soon as there is a second: it takes what is needed only once.

    Args:
        pieces: what is to be done.
        clock: tells the time in seconds.
    """

    def __init__(self, pieces: Sequence[Piece], clock: Callable[[], float]) -> None:
        self.pieces, self.clock = list(pieces), clock
        self._done, self._last = 0, clock()
        self._taken = defaultdict[Hashable, float](float)  # of each kind: seconds, for this much
        self._cost = defaultdict[Hashable, float](float)
        self._rest = defaultdict[Hashable, float](float)
        for piece in self.pieces:
            self._rest[piece.kind] += piece.cost

    def step(self) -> Piece:
        """The next piece is done: this one."""
        piece, now = self.pieces[self._done], self.clock()
        if self._done == 1:
            self._taken.clear()
            self._cost.clear()
        self._taken[piece.kind] += now - self._last
        self._cost[piece.kind] += piece.cost
        self._rest[piece.kind] -= piece.cost
        self._done, self._last = self._done + 1, now
        return piece

    def left(self) -> float | None:
        """Seconds that the rest will take; None before anything is done."""
        if not self._done:
            return None
        pace = {kind: self._taken[kind] / cost for kind, cost in self._cost.items()}
        of_all = sum(self._taken.values()) / sum(self._cost.values())
        return sum(cost * pace.get(kind, of_all) for kind, cost in self._rest.items())


class Bar(tqdm):  # type: ignore[type-arg]
    """tqdm's bar with that estimate.

    Args:
        pieces: what is to be done, in order.
        before: units that were done in an earlier try.
        options: of tqdm.
    """

    def __init__(self, pieces: Sequence[Piece], before: int = 0, **options: Any) -> None:
        self.pace = Pace(pieces, time.monotonic)
        self._units = before + sum(piece.size for piece in pieces)
        super().__init__(total=self._units, initial=before, **options)

    def step(self) -> None:
        """The next piece is done."""
        self.update(self.pace.step().size)

    @property
    def format_dict(self) -> MutableMapping[str, Any]:
        """What tqdm shows: its rate is that of the rest, from which it tells the time left."""
        found: MutableMapping[str, Any] = super().format_dict
        left, rest = self.pace.left(), self._units - self.n
        if left and rest:
            found["rate"] = rest / left
        return found
