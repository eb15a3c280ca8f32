"""What a column's values go through when its type changes, and whether some of them may be lost. Pure: no I/O.

Without USING the server converts as for an INSERT (an assignment cast), which refuses what does not fit: a text that is
too long, a number out of range. Some assignment casts do not refuse but round or cut (numeric to integer, timestamp to
date); those are named here. An explicit cast (USING) refuses less still: `'a text'::varchar(3)` cuts.
"""

from __future__ import annotations

import re

# As format_type() writes them.
_INTEGERS = {"smallint": 2, "integer": 4, "bigint": 8}
_FLOATS = {"real": 4, "double precision": 8}
_TEXTS = frozenset({"text", "character varying", "character", "citext", "name", '"char"'})
_DEFAULT_PRECISION = 6  # of times, in digits behind the second
# The largest integers that a float holds exactly: 2^24 and 2^53. The next larger integer type does not fit.
_EXACT_IN = {("smallint", "real"), ("smallint", "double precision"), ("integer", "double precision")}

_TIMESTAMPS = frozenset({"timestamp without time zone", "timestamp with time zone"})
_TIMES_OF_DAY = frozenset({"time without time zone", "time with time zone"})
_WITH_PRECISION = (_TIMESTAMPS, _TIMES_OF_DAY, frozenset({"interval"}))
_FRACTIONS = frozenset({"numeric", *_FLOATS})
# From any of these to any of those, this is lost.
_ALWAYS = (
    (_FRACTIONS, frozenset(_INTEGERS), "the digits behind the point"),
    (_FRACTIONS, frozenset({"money"}), "digits behind the point"),
    (_TIMESTAMPS, frozenset({"date"}), "the time of day"),
    (_TIMESTAMPS, _TIMES_OF_DAY, "the date"),
)


def parsed(type_: str) -> tuple[str, tuple[int, ...], str]:
    """A type's name, its measures and its array brackets: `numeric(10,2)[]` is ("numeric", (10, 2), "[]")."""
    measures = re.search(r"\(([\d, -]+)\)", type_)
    brackets = "[]" if type_.endswith("[]") else ""
    name = re.sub(r"\([\d, -]+\)", "", type_).removesuffix("[]")
    return name, tuple(int(n) for n in measures[1].split(",")) if measures else (), brackets


def is_text(type_: str) -> bool:
    """Whether it is a type of character strings: what is read from one is refused where it cannot be read."""
    return parsed(type_)[0] in _TEXTS


def loses(was: str, now: str) -> str:
    """What an assignment cast from `was` to `now` may take away without an error, in words; empty: nothing."""
    (old, old_measures, old_array), (new, new_measures, new_array) = parsed(was), parsed(now)
    if old_array != new_array:
        return ""
    if new == "numeric" and new_measures:
        return _loses_scale(old, old_measures, new_measures)
    if new in _FLOATS:
        return _loses_in_float(old, new)
    if any(old in family and new in family for family in _WITH_PRECISION):
        kept = [measures[0] if measures else _DEFAULT_PRECISION for measures in (old_measures, new_measures)]
        return "digits behind the second" if kept[1] < kept[0] else ""
    return next((what for sources, targets, what in _ALWAYS if old in sources and new in targets), "")


def _loses_scale(old: str, old_measures: tuple[int, ...], new_measures: tuple[int, ...]) -> str:
    scale = new_measures[1] if len(new_measures) > 1 else 0
    if old in _INTEGERS:
        return "" if scale >= 0 else "the last digits"
    if old not in {"numeric", "money", *_FLOATS}:
        return ""
    before = (old_measures[1] if len(old_measures) > 1 else 0) if old_measures else None
    return "" if before is not None and before <= scale else "digits behind the point"


def _loses_in_float(old: str, new: str) -> str:
    if old in _FLOATS:
        return "digits" if _FLOATS[new] < _FLOATS[old] else ""
    if old in _INTEGERS:
        return "" if (old, new) in _EXACT_IN else "the last digits of large numbers"
    return "digits" if old == "numeric" else ""
