"""Whether ALTER COLUMN … TYPE rewrites a table, or builds an index on the column again. Pure: no I/O.

The rules are PostgreSQL 18's: ATColumnChangeRequiresRewrite (tablecmds.c), the types' support functions,
and pg_opclass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.analysis import ast

if TYPE_CHECKING:
    from orchestrator.analysis.ast import Tree, Type
    from orchestrator.analysis.catalog import Known

_MICROSECONDS = 6
_INTERVAL_FULL = 0x7FFF

# Types whose values one index can hold (pg_opclass): between any others an index on the column is built again.
_SAME_INDEX = ({"text", "varchar"}, {"cidr", "inet"})


def keeps_index(old: Type, new: Type, definition: Tree) -> bool:
    """Whether an index on the column stays as it is, where the stored values do."""
    names = {old.name.name, new.name.name}
    return "collClause" not in definition and (len(names) == 1 or any(names <= group for group in _SAME_INDEX))


def type_change_rewrites(  # noqa: PLR0911 (a table of cases)
    old: Type | None, new: Type, using: Tree | None, column: str, known: Known
) -> str:
    """Why ALTER COLUMN … TYPE rewrites the table; empty where it does not (ATColumnChangeRequiresRewrite)."""
    if using is not None and not _is_plain_cast(using, column, new):
        return "USING computes each value"
    if old is None:
        return f"the type that {column} has is not known here: it may be rewritten"
    new_fact, old_fact = known.type_fact(new.name), known.type_fact(old.name)
    if new_fact and new_fact.kind == "domain" and new_fact is not old_fact:
        if new_fact.constrained:
            return f"each value is tested against the domain {new_fact.name}"
        new = new_fact.base or new
    if old_fact and old_fact.kind == "domain" and new_fact is not old_fact:
        old = old_fact.base or old
    change = f"{old} → {new}"
    if old.array != new.array:
        return f"{change} converts each value"
    if _same_type(old, new, known):
        return "" if _keeps_length(old, new) else f"{change} tests or cuts each value"
    pair = (old.name.name, new.name.name)
    if pair in known.coercible and not new.array:
        # Into a type with a length there is a second step, which looks at each value.
        return f"{change} tests the length of each value" if new.mods else ""
    if set(pair) == {"timestamp", "timestamptz"} and known.timezone_is_utc and not new.mods:
        return ""
    return f"{change} converts each value"


def _same_type(old: Type, new: Type, known: Known) -> bool:
    if known.type_fact(old.name) is not known.type_fact(new.name):
        return False
    return old.name.name == new.name.name


def _keeps_length(old: Type, new: Type) -> bool:  # noqa: PLR0911 (a table of types)
    """Whether the length of `new` holds every value of `old`, as the types' support functions tell the planner."""
    kind = new.name.name
    if not new.mods or old.mods == new.mods:
        return True
    if new.array:
        return False
    if kind in {"varchar", "varbit"}:
        return bool(old.mods) and new.mods[0] >= old.mods[0]
    if kind == "numeric":
        scale = new.mods[1] if len(new.mods) > 1 else 0
        old_scale = old.mods[1] if len(old.mods) > 1 else 0
        return bool(old.mods) and scale == old_scale and new.mods[0] >= old.mods[0]
    if kind in {"timestamp", "timestamptz", "time", "timetz"}:
        return new.mods[0] >= (old.mods[0] if old.mods else _MICROSECONDS)
    if kind == "interval":
        # (fields, precision), interval_support: no fewer fields, no less precision.
        wide = new.mods[0] in {_INTERVAL_FULL, *old.mods[:1]}
        return wide and (len(new.mods) == 1 or new.mods[1] >= (old.mods[1] if len(old.mods) > 1 else _MICROSECONDS))
    return False


def _is_plain_cast(using: Tree, column: str, new: Type) -> bool:
    """Whether USING is the column itself, or its cast to the new type, as drizzle-kit writes it."""
    kind, fields = ast.only(using)
    if kind == "TypeCast":
        return ast.column_type(fields["typeName"]) == new and _is_plain_cast(fields["arg"], column, new)
    return kind == "ColumnRef" and ast.strings(fields.get("fields"))[-1:] == [column]
