"""Reading Postgres's parse trees: names, types, options, what an expression calls. Pure: no I/O.

A tree is libpg_query's JSON (`parser.Parsed.fields`): a node is `{"NodeName": {…}}`, fields with a zero value are
absent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Tree = dict[str, Any]


class Name(NamedTuple):
    """A relation, type or function as it is written: `schema` None where the search path decides."""

    schema: str | None
    name: str

    def __str__(self) -> str:
        return self.name if self.schema in {None, "public"} else f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Type:
    """A column's type: `mods` are what stands in its brackets, `array` says that it is one (of any dimension)."""

    name: Name
    mods: tuple[int, ...] = ()
    array: bool = False

    def __str__(self) -> str:
        mods = f"({','.join(map(str, self.mods))})" if self.mods else ""
        return f"{self.name.name}{mods}{'[]' if self.array else ''}"


def only(node: Tree) -> tuple[str, Tree]:
    """Name and fields of a wrapped node."""
    ((name, fields),) = node.items()
    return name, fields


def strings(parts: Sequence[Tree] | None) -> list[str]:
    """The words of a list of String nodes; other nodes (`*`) are left out."""
    return [str(part["String"].get("sval", "")) for part in parts or () if "String" in part]


def qualified(words: Sequence[str]) -> Name:
    """The last two words of a dotted name."""
    return Name(words[-2] if len(words) > 1 else None, words[-1])


def relation(fields: Tree) -> Name:
    """The name in a RangeVar's fields."""
    return Name(fields.get("schemaname"), fields["relname"])


def column_type(type_name: Tree) -> Type:
    """The type in a TypeName's fields."""
    mods = tuple(
        int(mod["A_Const"]["ival"].get("ival", 0))
        for mod in type_name.get("typmods", ())
        if "ival" in mod.get("A_Const", {})
    )
    return Type(qualified(strings(type_name["names"]) or ["?"]), mods, bool(type_name.get("arrayBounds")))


def commands(fields: Tree) -> list[Tree]:
    """The subcommands of an ALTER TABLE."""
    return [command["AlterTableCmd"] for command in fields.get("cmds", ())]


def actions(fields: Tree) -> list[str]:
    """The subcommands of an ALTER TABLE in words: `ADD COLUMN`, `ALTER COLUMN TYPE`."""
    return [
        re.sub(r"(?<=[a-z])(?=[A-Z])", " ", command["subtype"].removeprefix("AT_")).upper()
        for command in commands(fields)
    ]


def constraints(definition: Tree) -> list[Tree]:
    """The constraints that stand with a column's definition."""
    return [one["Constraint"] for one in definition.get("constraints", ()) if "Constraint" in one]


def table_constraints(fields: Tree) -> list[Tree]:
    """The constraints of a CREATE TABLE that stand beside its columns."""
    elements = [*fields.get("tableElts", ()), *fields.get("constraints", ())]
    return [element["Constraint"] for element in elements if "Constraint" in element]


def offset(node: Tree) -> int:
    """Where the node stands, in bytes from the beginning of the text that was parsed; 0 where it does not say."""
    return max(0, int(node.get("location", 0)))


def is_unvalidated(constraint: Tree) -> bool:
    """Whether it is NOT VALID or NOT ENFORCED: no row is tested."""
    return bool(constraint.get("skip_validation")) or not constraint.get("is_enforced", True)


def columns(fields: Tree) -> list[Tree]:
    """The column definitions of a CREATE TABLE."""
    return [element["ColumnDef"] for element in fields.get("tableElts", ()) if "ColumnDef" in element]


def option(options: Sequence[Tree] | None, name: str) -> Tree | None:
    """The DefElem of that name."""
    return next((o["DefElem"] for o in options or () if o.get("DefElem", {}).get("defname") == name), None)


def nodes(tree: Any, *names: str) -> Iterator[tuple[str, Tree]]:
    """Every node of these names anywhere inside, in no promised order."""
    pending = [tree]
    while pending:
        at = pending.pop()
        if isinstance(at, list):
            pending += at
        elif isinstance(at, dict):
            for key, value in at.items():
                if key in names and isinstance(value, dict):
                    yield key, value
                if isinstance(value, dict | list):
                    pending.append(value)


def called(expression: Any) -> list[Name]:
    """The functions that an expression calls by name."""
    return [qualified(strings(call["funcname"])) for _, call in nodes(expression, "FuncCall")]


def read_tables(tree: Any) -> set[Name]:
    """The relations that a query names, without those of its own WITH."""
    own = {cte["ctename"] for _, cte in nodes(tree, "CommonTableExpr")}
    found = {relation(fields) for _, fields in nodes(tree, "RangeVar")}
    return {name for name in found if name.schema is not None or name.name not in own}


def column_names(expression: Any) -> set[str]:
    """The columns that an expression refers to, by their last word."""
    found = set()
    for _, fields in nodes(expression, "ColumnRef"):
        words = strings(fields.get("fields"))
        if words:
            found.add(words[-1])
    return found


def proves_not_null(expression: Tree) -> frozenset[str]:
    """The columns that a CHECK shows to be not null: `a IS NOT NULL`, alone or joined by AND."""
    kind, fields = only(expression)
    if kind == "NullTest" and fields["nulltesttype"] == "IS_NOT_NULL" and "ColumnRef" in fields.get("arg", {}):
        words = strings(fields["arg"]["ColumnRef"].get("fields"))
        return frozenset(words[-1:])
    if kind == "BoolExpr" and fields.get("boolop") == "AND_EXPR":
        return frozenset().union(*(proves_not_null(arg) for arg in fields.get("args", ())))
    return frozenset()


def dropped_name(kind: str, item: Tree) -> list[str]:
    """The words that name what a DROP or a COMMENT is about."""
    del kind
    name, fields = only(item)
    if name == "List":
        return strings(fields.get("items"))
    if name == "TypeName":
        return strings(fields.get("names"))
    if name == "ObjectWithArgs":
        return strings(fields.get("objname"))
    return [str(fields.get("sval", ""))]


def mentioned(node: str, fields: Tree) -> set[Name]:
    """Every relation that a statement names, whatever it does with it."""
    found = {
        relation(one) for _, one in nodes(fields, "RangeVar", "relation", "view", "table", "rel") if "relname" in one
    }
    found |= {relation(one) for _, one in nodes(fields, "pktable", "sequence", "name", "constrrel") if "relname" in one}
    kind = fields.get("removeType") or fields.get("objtype") or ""
    items = fields.get("objects", ()) if node == "DropStmt" else [fields["object"]] if node == "CommentStmt" else ()
    for item in items:
        words = dropped_name(str(kind), item)
        # `t.trigger`, `schema.t.column`, `schema.t`: any of them may be the relation.
        found |= {Name(None, word) for word in words}
    return found
