"""A database's catalogue as plain data: every object that can drift, with the facts that make it what it is.

Reads pg_catalog with Postgres's own pg_get_*def functions and fixed formats. Needs no right but to connect; writes
nothing. What an extension owns is the extension's, and left out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.schema.queries import DEFAULT_PRIVILEGES, FIRST_NORMAL_OID, PRIVILEGES, QUERIES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping


# What belongs to a table and has a qualified name of its own: it may change its owner and stay what it is.
_QUALIFIED_OWNED = frozenset({"sequence", "index"})


class SchemaObject(msgspec.Struct, frozen=True, omit_defaults=True):
    """One object. `name` is quoted and qualified where it stands alone, bare where `table` (its owner) qualifies it.

    `facts` hold what is compared, without what is not set; `details` take apart what a fact says as text. `inherited`
    objects come with a parent table in `parents`. `position` is a column's place, which is no part of what a table is,
    and a table's among tables: the order in which they were made.
    """

    kind: str
    schema: str | None
    name: str
    table: str | None = None
    facts: dict[str, Any] = {}
    inherited: bool = False
    parents: tuple[str, ...] = ()
    position: int = 0
    details: dict[str, Any] = {}

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same object on both sides."""
        return (self.kind, "" if self.kind in _QUALIFIED_OWNED else self.table or "", self.name)

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.kind} {self.name}" + (f" of {self.table}" if self.table else "")


class Schema(msgspec.Struct, frozen=True):
    """All objects of a database. `server_version` is a major version: texts of two are not always the same."""

    objects: tuple[SchemaObject, ...]
    server_version: int = 0

    def limited(self, keep: Callable[[SchemaObject], bool]) -> Schema:
        """Only the objects that `keep` says."""
        return Schema(tuple(one for one in self.objects if keep(one)), self.server_version)


_SESSION = (
    "SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, YMD';"
    " SET LOCAL IntervalStyle = 'postgres'; SET LOCAL extra_float_digits = 3; SET LOCAL quote_all_identifiers = off;"
    " SET LOCAL standard_conforming_strings = on;"
    # Compiling each query would cost more than running it.
    " SET LOCAL bytea_output = 'hex'; SET LOCAL jit = off"
)
_DETAIL = "detail_"
_NOT_FACTS = frozenset({"oid", "subid", "kind", "schema", "name", "owner_table", "inherited", "parents", "position"})


async def read_schema(
    connection: Any, *, path: str = "''", kinds: Collection[str] | None = None, privileges: bool = False
) -> Schema:
    """Every object outside the system's schemas, in one snapshot; with `privileges`, who may do what with each.

    A privilege of an object's owner is written as `owner`, whoever that is. `kinds` are those of `queries.QUERIES` to
    read, all by default. `path` is the search path, as SQL: definitions name what is in it without its schema, and with
    a path, keys are quoted throughout.
    """
    found: list[SchemaObject] = []
    async with connection.transaction(readonly=True, isolation="repeatable_read"):
        await connection.execute(f"SET LOCAL search_path = {path}; {_SESSION}")
        granted = await _privileges(connection) if privileges else {}
        for kind, catalogue, query in QUERIES:
            if kinds is not None and kind not in kinds:
                continue
            # Keys hold names and keywords alone. Elsewhere types would be quoted, too: "text".
            quotes = kind == "key" and kinds is not None
            if quotes:
                await connection.execute("SET LOCAL quote_all_identifiers = on")
            rows = await connection.fetch(query)
            if quotes:
                await connection.execute("SET LOCAL quote_all_identifiers = off")
            found.extend(_object(row, catalogue, granted) for row in rows)
        if privileges:
            found.extend(_object(row, "", {}) for row in await connection.fetch(DEFAULT_PRIVILEGES))
    return Schema(
        tuple(sorted(found, key=lambda one: (one.schema or "", one.table or "", one.kind, one.name))),
        connection.get_server_version().major,
    )


def _object(row: Any, catalogue: str, granted: Mapping[tuple[str, int, int], list[str]]) -> SchemaObject:
    values = dict(row)
    said = {name: value for name, value in values.items() if value is not None and value not in ([], "")}
    facts = {name: value for name, value in said.items() if name not in _NOT_FACTS and not name.startswith(_DETAIL)}
    mine = granted.get((catalogue, values.get("oid") or 0, values.get("subid") or 0))
    if mine:
        facts["privileges"] = mine
    return SchemaObject(
        values["kind"],
        values["schema"],
        values["name"],
        values.get("owner_table"),
        facts,
        bool(values.get("inherited")),
        tuple(values.get("parents") or ()),
        values.get("position") or 0,
        {name.removeprefix(_DETAIL): value for name, value in said.items() if name.startswith(_DETAIL)},
    )


async def _privileges(connection: Any) -> dict[tuple[str, int, int], list[str]]:
    granted: dict[tuple[str, int, int], list[str]] = {}
    for catalogue, letter, oid, subid, owner, acl, source in PRIVILEGES:
        # Built-in objects are of no interest, though the schema public has an oid of theirs; an index has no rights.
        built_in = "" if catalogue == "pg_namespace" else f"WHERE {oid} >= {FIRST_NORMAL_OID}"
        if source == "pg_class x":
            built_in += " AND x.relkind NOT IN ('i', 'I')"
        rows = await connection.fetch(
            f"SELECT {oid} AS oid, {subid}::int AS subid, CASE WHEN e.grantee = {owner} THEN 'owner' WHEN e.grantee = 0"  # noqa: S608
            " THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(e.grantee)) END AS grantee, string_agg(e.privilege_type ||"
            " CASE WHEN e.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END, ', ' ORDER BY e.privilege_type) AS rights"
            f" FROM {source} CROSS JOIN LATERAL aclexplode(coalesce({acl}, acldefault({letter}, {owner}))) e {built_in}"
            " GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
        )
        for row in rows:
            granted.setdefault((catalogue, row["oid"], row["subid"]), []).append(f"{row['grantee']}: {row['rights']}")
    return granted


def by_key(objects: Iterable[SchemaObject]) -> dict[tuple[str, str, str], SchemaObject]:
    """The objects by what makes them the same."""
    return {one.key: one for one in objects}


def name_parts(name: str) -> tuple[str, ...]:
    """The parts of a qualified name as the server writes it, without their quotes."""
    return tuple(
        quoted.replace('""', '"') if quoted else plain
        for quoted, plain in re.findall(r'"((?:[^"]|"")+)"|([^".]+)', name)
    )
