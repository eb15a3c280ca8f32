"""Steps as the texts of migration files. Pure: no I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from orchestrator.errors import MigrationError
from orchestrator.migrator.sql.statements import BREAKPOINT
from orchestrator.schema.steps import Rank

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from orchestrator.schema.renames import Rename
    from orchestrator.schema.steps import Step

_BREAKPOINT = BREAKPOINT.decode()
_CONCURRENT = frozenset({Rank.DROP_CONCURRENTLY, Rank.CONCURRENTLY})


class TextError(MigrationError):
    """A statement cannot stand in a file of Drizzle's. Nothing was written."""


def files(
    active: Sequence[Step], withheld: Sequence[Step], unasked: Sequence[Sequence[Rename]], *, values_first: bool
) -> tuple[tuple[str, str], ...]:
    """The files in their order, each as what to put behind its name and its text; none where there is nothing to write.

    With `values_first` the new values of enums get a file before all else, since what uses them runs in another
    transaction; what runs outside a transaction, and what waits for that, get files of their own.
    """
    if not active and not withheld:
        return ()
    parts: dict[str, list[Step]] = {"_values": [], "": [], "_indexes": [], "_finish": []}
    for step in active:
        # Renames run before all else, or the other file's statements would find other names.
        if values_first and (step.adds_enum_value or step.rank is Rank.ANSWER):
            parts["_values"].append(step)
        elif step.rank in _CONCURRENT:
            parts["_indexes"].append(step)
        else:
            parts["_finish" if step.rank > Rank.CONCURRENTLY else ""].append(step)
    for later in ("_indexes", "_finish"):
        parts[later].sort(key=lambda step: step.rank)
    comments = _comments(withheld, unasked)
    found = []
    for suffix, steps in parts.items():
        about = comments if suffix == "" else ""
        if steps or about:
            found.append((suffix, _statements(steps) + ("\n" if steps and about else "") + about))
    return tuple(found)


def _statements(steps: Sequence[Step]) -> str:
    return f"{_BREAKPOINT}\n".join(_statement(step) for step in steps)


def _statement(step: Step) -> str:
    if _BREAKPOINT in step.sql:
        raise TextError(
            f"a text in the code holds `{_BREAKPOINT}`, at which Drizzle would cut: {step.sql}",
            remedy="Write that text in another way.",
        )
    lines = [f"-- {step.note}"] * bool(step.note) + [f"-- lint: allow {step.allow}"] * bool(step.allow)
    return "".join(f"{line}\n" for line in (*lines, f"{step.sql};"))


def _comments(withheld: Sequence[Step], unasked: Sequence[Sequence[Rename]]) -> str:
    """What is not run: renames that nobody was asked about, each with what it is otherwise, and then the drops."""
    return "".join(f"{line}\n" for line in _comment_lines(withheld, unasked))


def _comment_lines(withheld: Sequence[Step], unasked: Sequence[Sequence[Rename]]) -> Iterator[str]:
    in_doubt: set[Step] = set()
    for group in unasked:
        targets = {target for one in group for target in one.targets}
        about = [step for step in withheld if step.target in targets and step not in in_doubt]
        in_doubt.update(about)
        yield "-- Renamed, or another one? If renamed, use this line:"
        yield from (f"-- {one.sql};" for one in group)
        yield "-- If not, these:"
        for step in about:
            yield from commented_out(step)
    others = [step for step in withheld if step not in in_doubt]
    if others:
        yield "-- Not run, as it takes something away or needs what does; --allow-drops writes it to be run:"
    for step in others:
        yield from commented_out(step)


def commented_out(step: Step) -> list[str]:
    """The lines of a step that is not run."""
    lines = re.sub(r"(\r\n?|\n)", r"\n", f"{step.sql};").split("\n")
    lines[-1] += f" -- {step.note}" if step.note else ""
    return [f"-- {line}".rstrip() for line in lines]
