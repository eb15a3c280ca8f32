"""Where a reader of `job_events` is, though ids become visible out of their order. Pure: no I/O.

A transaction that took its number first may commit last. So a place in the stream is not one number but two things: the
highest id that was seen, and the ids below it that were not: gaps, which are filled later or, where a transaction was
rolled back, never. Both together are exact: what is in no gap was delivered, once. As text it is the `id:` of an event.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ID_MAX = 2**63 - 1
# An `id:` comes back as a header, and headers may be 16 KB. Between two positions the gaps of both can be told.
GAPS_MAX = 150
_TOKEN = re.compile(r"([0-9]{1,19})(?:~([0-9.\-]{1,15000}))?")
_GAP = re.compile(r"([0-9]{1,19})(?:-([0-9]{1,19}))?")

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Position:
    """`last` is the highest id seen; `gaps` are ranges (both ends within) below it, ascending, that were not."""

    last: int
    gaps: tuple[Range, ...] = ()

    def has_seen(self, number: int) -> bool:
        """Whether that event was delivered, or is known never to come."""
        if number > self.last:
            return False
        at = bisect_right(self.gaps, (number, ID_MAX)) - 1
        return at < 0 or number > self.gaps[at][1]

    def token(self) -> str:
        """As text, short where nothing is open."""
        return str(self.last) + gaps_text(self.gaps)

    @classmethod
    def parse(cls, token: str) -> Position | None:
        """The position that a token stands for; None for any other text."""
        match = _TOKEN.fullmatch(token)
        if match is None or int(match[1]) > ID_MAX:
            return None
        gaps: list[Range] = []
        last, before = int(match[1]), 0
        for text in match[2].split(".") if match[2] else ():
            found = _GAP.fullmatch(text)
            if found is None:
                return None
            low, high = int(found[1]), int(found[2] or found[1])
            if not before < low <= high <= last or len(gaps) >= 2 * GAPS_MAX:
                return None
            gaps.append((low, high))
            before = high
        return cls(last, tuple(gaps))


def between(start: Position, end: Position, number: int) -> Position:
    """Where a reader is that went from `start` towards `end`, by id, and has come to `number`.

    Up to there it knows what `end` knows, beyond it what `start` knew.
    """
    passed = ((low, min(high, number)) for low, high in end.gaps if low <= number)
    ahead = ((max(low, number + 1), high) for low, high in start.gaps if high > number)
    return Position(max(number, start.last), (*passed, *ahead))


def gaps_text(gaps: Iterable[Range]) -> str:
    """The part of a token that tells the gaps."""
    text = ".".join(str(low) if low == high else f"{low}-{high}" for low, high in gaps)
    return f"~{text}" if text else ""


class Cursor:
    """A position that moves. `is_full` where one more gap would be too many to tell."""

    def __init__(self, position: Position) -> None:
        self.last = position.last
        self._gaps = list(position.gaps)
        self._text: str | None = None

    @property
    def gaps(self) -> Sequence[Range]:
        """The gaps, ascending."""
        return self._gaps

    @property
    def position(self) -> Position:
        """As a fact."""
        return Position(self.last, tuple(self._gaps))

    def token(self) -> str:
        """As `Position.token`; the gaps' text is kept while they stay the same."""
        if self._text is None:
            self._text = gaps_text(self._gaps)
        return str(self.last) + self._text

    def take(self, number: int) -> bool:
        """Mark one event as delivered. False where it was before, or where it would open one gap too many."""
        if number > self.last:
            if number > self.last + 1:
                if len(self._gaps) >= GAPS_MAX:
                    return False
                self._gaps.append((self.last + 1, number - 1))
                self._text = None
            self.last = number
            return True
        at = bisect_right(self._gaps, (number, ID_MAX)) - 1
        if at < 0 or number > self._gaps[at][1]:
            return False
        low, high = self._gaps[at]
        parts = [part for part in ((low, number - 1), (number + 1, high)) if part[0] <= part[1]]
        if len(self._gaps) + len(parts) - 1 > GAPS_MAX:
            return False
        self._gaps[at : at + 1] = parts
        self._text = None
        return True

    def settle(self, low: int, high: int) -> None:
        """Nothing more will come in this gap."""
        if (low, high) in self._gaps:
            self._gaps.remove((low, high))
            self._text = None
