"""Names of the catalogue, by kind, as somebody who looks for one asks for them. Touches the database: reads alone.

For the words of an error: each kind is read when it is asked for, and bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.migrator.records import SERVICE_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.migrator.sql.names import Ref

_LIMIT = 20_000
_RELATION_KINDS = {
    "r": "table", "p": "table", "v": "view", "m": "materialized view", "S": "sequence", "f": "foreign table",
    "i": "index", "I": "index", "c": "type",
}  # fmt: skip
# Each gives schema and name; of what belongs to a relation, the relation is what is asked for.
_IN_SCHEMAS = {
    "collation": ("pg_collation", "collname", "collnamespace"),
    "function": ("pg_proc", "proname", "pronamespace"),
    "operator class": ("pg_opclass", "opcname", "opcnamespace"),
    "relation": ("pg_class", "relname", "relnamespace"),
    "type": ("pg_type", "typname", "typnamespace"),
}
_SERVER_WIDE = {
    "access method": "SELECT amname::text FROM pg_catalog.pg_am",
    "extension": "SELECT extname::text FROM pg_catalog.pg_extension",
    "role": "SELECT rolname::text FROM pg_catalog.pg_roles",
    "schema": "SELECT nspname::text FROM pg_catalog.pg_namespace",
    "setting": "SELECT name FROM pg_catalog.pg_settings",
}
_OF_RELATION = {
    "column": "SELECT attname::text FROM pg_catalog.pg_attribute"
    " WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped",
    "constraint": "SELECT conname::text FROM pg_catalog.pg_constraint WHERE conrelid = $1",
    "policy": "SELECT polname::text FROM pg_catalog.pg_policy WHERE polrelid = $1",
    "trigger": "SELECT tgname::text FROM pg_catalog.pg_trigger WHERE tgrelid = $1 AND NOT tgisinternal",
}
_VALUES = "SELECT enumlabel::text FROM pg_catalog.pg_enum WHERE enumtypid = $1"


class CatalogNames:
    """The catalogue, as seen with a search path; use it inside a transaction of a session with our own path."""

    def __init__(self, connection: Any, path: Sequence[str]) -> None:
        self._connection, self.path = connection, list(path)
        self.major: int = connection.get_server_version().major
        self._read: dict[str, list[tuple[str, str]]] = {}

    async def has(self, ref: Ref) -> bool:
        """Whether the name is there, for who uses the search path."""
        if ref.kind in _IN_SCHEMAS:
            schemas = [ref.schema] if ref.schema else ["pg_catalog", *self.path]
            return any(name == ref.name and schema in schemas for schema, name in await self._in_schemas(ref.kind))
        return ref.name in await self.like(ref)

    async def like(self, ref: Ref) -> list[str]:
        """The names of its kind that it could have been: in the schema that it names, or on the path."""
        if ref.kind in _IN_SCHEMAS:
            schemas = {ref.schema} if ref.schema else {"pg_catalog", *self.path}
            found = await self._in_schemas(ref.kind)
            return [n for s, n in found if s in schemas and not (s == "pg_catalog" and n.startswith(("pg_", "_")))]
        if ref.kind in _SERVER_WIDE:
            return [row[0] for row in await self._connection.fetch(_SERVER_WIDE[ref.kind])]
        oid = await self._oid(ref)
        query = _VALUES if ref.kind == "value" else _OF_RELATION.get(ref.kind)
        return [row[0] for row in await self._connection.fetch(query, oid)] if query and oid else []

    async def elsewhere(self, ref: Ref) -> list[tuple[str, str | None]]:
        """The schemas off the path that hold the name, each with the extension that brought it there."""
        if ref.kind not in _IN_SCHEMAS:
            return []
        own = {"pg_catalog", "information_schema", SERVICE_SCHEMA, *([ref.schema] if ref.schema else self.path)}
        schemas = [s for s, n in await self._in_schemas(ref.kind) if n == ref.name and s not in own]
        return [(schema, await self._extension_of(ref, schema)) for schema in dict.fromkeys(schemas)]

    async def kind_of(self, ref: Ref) -> str | None:
        """What a relation of that name is."""
        if ref.kind != "relation" or (oid := await self._relation(ref.schema, ref.name)) is None:
            return None
        kind = await self._connection.fetchval("SELECT relkind::text FROM pg_catalog.pg_class WHERE oid = $1", oid)
        return _RELATION_KINDS.get(kind)

    async def signatures(self, ref: Ref) -> list[str]:
        """The functions of that name with their arguments' types."""
        rows = await self._connection.fetch(
            "SELECT n.nspname::text, p.proname || '(' || pg_catalog.pg_get_function_identity_arguments(p.oid) || ')'"
            " FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE p.proname = $1",
            ref.name,
        )
        schemas = [ref.schema] if ref.schema else ["pg_catalog", *self.path]
        return [row[1] for row in rows if row[0] in schemas]

    async def extension(self, name: str) -> tuple[str | None, bool]:
        """The version of an extension that is installed, and whether the server has its files."""
        row = await self._connection.fetchrow(
            "SELECT installed_version FROM pg_catalog.pg_available_extensions WHERE name = $1", name
        )
        return (row[0], True) if row else (None, False)

    async def available_extensions(self) -> list[str]:
        """The extensions whose files the server has."""
        rows = await self._connection.fetch("SELECT name::text FROM pg_catalog.pg_available_extensions")
        return [row[0] for row in rows]

    async def _in_schemas(self, kind: str) -> list[tuple[str, str]]:
        if kind not in self._read:
            table, name, namespace = _IN_SCHEMAS[kind]
            self._read[kind] = [
                (row[0], row[1])
                for row in await self._connection.fetch(
                    f"SELECT n.nspname::text, o.{name}::text FROM pg_catalog.{table} o"  # noqa: S608 (constants)
                    f" JOIN pg_catalog.pg_namespace n ON n.oid = o.{namespace}"
                    f" WHERE n.nspname !~ '^pg_(toast|temp)' LIMIT {_LIMIT}"
                )
            ]
        return self._read[kind]

    async def _oid(self, ref: Ref) -> int | None:
        """The relation that the name is of; for a value, the type."""
        if ref.of is None:
            return None
        if ref.kind != "value":
            return await self._relation(*ref.of)
        return await self._first("SELECT oid FROM pg_catalog.pg_type WHERE typname = $1 AND typnamespace = $2", *ref.of)

    async def _relation(self, schema: str | None, name: str) -> int | None:
        query = "SELECT oid FROM pg_catalog.pg_class WHERE relname = $1 AND relnamespace = $2"
        return await self._first(query, schema, name)

    async def _first(self, query: str, schema: str | None, name: str) -> int | None:
        for one in [schema] if schema else ["pg_catalog", *self.path]:
            namespace = await self._connection.fetchval(
                "SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = $1", one
            )
            if namespace and (oid := await self._connection.fetchval(query, name, namespace)):
                found: int = oid
                return found
        return None

    async def _extension_of(self, ref: Ref, schema: str) -> str | None:
        table, name, namespace = _IN_SCHEMAS[ref.kind]
        found: str | None = await self._connection.fetchval(
            "SELECT e.extname::text FROM pg_catalog.pg_depend d"  # noqa: S608 (constants)
            " JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid AND d.deptype = 'e'"
            f" JOIN pg_catalog.{table} o ON o.oid = d.objid AND d.classid = 'pg_catalog.{table}'::pg_catalog.regclass"
            f" JOIN pg_catalog.pg_namespace n ON n.oid = o.{namespace}"
            f" WHERE o.{name} = $1 AND n.nspname = $2",
            ref.name,
            schema,
        )
        return found
