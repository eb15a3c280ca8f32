"""The code's idea of the database: SQLAlchemy's MetaData, made real, compared and written by alembic.

Imports SQLAlchemy and alembic, which are in the extra `dev`; nothing that serves loads this file.
"""

from __future__ import annotations

import warnings
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy
from alembic.autogenerate import produce_migrations
from alembic.ddl.postgresql import PostgresqlImpl
from alembic.migration import MigrationContext
from alembic.operations import Operations, ops
from sqlalchemy import CheckConstraint, MetaData
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.dialects.postgresql.base import PGIdentifierPreparer
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import AddConstraint, CreateColumn, CreateTable

from orchestrator.database.connect import close, connect_once
from orchestrator.database.quoting import identifier
from orchestrator.errors import EXIT_CONFIG, OrchestratorError
from orchestrator.schema.loading import PUBLIC
from orchestrator.schema.table_sql import Written

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator

    from sqlalchemy import Column, Connection, Index, Table

    from orchestrator.dsn import Dsn
    from orchestrator.schema.tables import ObjectName


class MetadataError(OrchestratorError):
    """The MetaData cannot be made real on a server."""

    exit_code: ClassVar[int] = EXIT_CONFIG


def schemas_of(metadata: MetaData) -> frozenset[str]:
    """The schemas that the metadata names; a table without one is in public."""
    return frozenset(table.schema or PUBLIC for table in metadata.tables.values()) or frozenset({PUBLIC})


def _schemas_of_types(metadata: MetaData) -> set[str]:
    """The schemas that columns' types are in: enums and domains may be where no table is."""
    found = set()
    for table in metadata.tables.values():
        for column in table.columns:
            inner = getattr(column.type, "item_type", column.type)
            if schema := getattr(inner, "schema", None):
                found.add(schema)
    return found


def tables_of(metadata: MetaData) -> frozenset[ObjectName]:
    """Schema and name of every table."""
    return frozenset((table.schema or PUBLIC, table.name) for table in metadata.tables.values())


# ---------------------------------------------------------------------------------------------------- on a real server


@asynccontextmanager
async def _engine(dsn: Dsn, path: str) -> AsyncIterator[AsyncEngine]:
    async def connect() -> Any:
        connection = await connect_once(dsn, timeout_s=5, application_name="orchestrator generate", kind="migration")
        await connection.execute("SELECT pg_catalog.set_config('search_path', $1, false)", path)
        return connection

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",  # CREATE INDEX CONCURRENTLY may be among it
    )
    try:
        yield engine
    finally:
        await engine.dispose()


async def create_all(dsn: Dsn, metadata: MetaData, *, path: str) -> None:
    """Make everything that the metadata says, in an empty database, the way SQLAlchemy does it.

    Raises:
        MetadataError: SQLAlchemy cannot write it, or the server refuses it: an extension that is missing, a name that
            is taken.
    """
    connection = await connect_once(dsn, timeout_s=5, application_name="orchestrator generate")
    try:
        for schema in sorted(schemas_of(metadata) | _schemas_of_types(metadata)):
            await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {identifier(schema)}")
    finally:
        await close(connection)
    with _refusals_explained(metadata):
        async with _engine(dsn, path) as engine, engine.connect() as session:
            with _quiet():
                await session.run_sync(lambda sync: metadata.create_all(sync, checkfirst=False))


@contextmanager
def _refusals_explained(metadata: MetaData) -> Iterator[None]:
    try:
        yield
    except sqlalchemy.exc.DBAPIError as error:
        raise _refused_by_server(error) from error
    except (OrchestratorError, OSError):
        raise
    except Exception as error:  # of SQLAlchemy, or of a type or a listener of the user's
        raise _not_written(error, metadata) from error


def _not_written(error: Exception, metadata: MetaData) -> MetadataError:
    """SQLAlchemy cannot write the DDL of what the code describes: no server was asked."""
    place = next(_unwritable(metadata), "")
    kind = "" if isinstance(error, sqlalchemy.exc.SQLAlchemyError) else f"{type(error).__name__}: "
    return MetadataError(
        f"SQLAlchemy cannot write what the code describes{f' ({place})' if place else ''}: {kind}{error}",
        remedy="Correct it in the code, or leave the table out: --exclude TABLE.",
        facts={"place": place},
    )


def _unwritable(metadata: MetaData) -> Iterator[str]:
    """The tables and columns of which SQLAlchemy writes no DDL."""
    for table in metadata.tables.values():
        for column in table.columns:
            if not _is_written(CreateColumn(column)):
                yield f"table {table.fullname}, column {column.name}"
        if not _is_written(CreateTable(table)):
            yield f"table {table.fullname}"


def _is_written(construct: Any) -> bool:
    try:
        construct.compile(dialect=_dialect())
    except Exception:  # noqa: BLE001 the user's code; what it raises was told already
        return False
    return True


def _refused_by_server(error: sqlalchemy.exc.DBAPIError) -> MetadataError:
    origin = error.orig
    statement = " ".join((error.statement or "").split())
    reason = str(origin.__cause__ or origin) if origin is not None else str(error)
    missing_type = getattr(origin, "sqlstate", None) == "42704"
    hint = " A type of an extension? CREATE EXTENSION in a migration, or name it in EXTENSIONS." if missing_type else ""
    return MetadataError(
        f"the server refuses what the code describes: {reason}" + (f" (in: {statement[:200]})" if statement else ""),
        remedy=f"Correct the table in the code, or leave it out: --exclude TABLE.{hint}",
        facts={"sqlstate": getattr(origin, "sqlstate", None)},
    )


def _quiet() -> warnings.catch_warnings[None]:
    """Without what SQLAlchemy warns of while it reflects (types and options it does not know): we compare those."""
    return warnings.catch_warnings(action="ignore", category=sqlalchemy.exc.SAWarning)


async def write_missing(dsn: Dsn, metadata: MetaData, *, path: str, without: Collection[ObjectName] = ()) -> Written:
    """Let alembic compare the metadata with `dsn` and write what the database lacks: tables, columns, indexes.

    What both have is compared by the server's own definitions instead: alembic sees no CHECK, no enum value, no
    predicate of an index, and its comparison of defaults asks questions that some types have no operator for.
    """
    with _refusals_explained(metadata):
        async with _engine(dsn, path) as engine, engine.connect() as session:
            return await session.run_sync(lambda sync: _write_missing(sync, metadata, without))


def _write_missing(connection: Connection, metadata: MetaData, without: Collection[ObjectName]) -> Written:
    schemas = schemas_of(metadata)

    def is_compared(name: str | None, kind: str, parents: Any) -> bool:
        if kind == "schema":
            return (name or PUBLIC) in schemas
        if kind == "table":
            return ((parents.get("schema_name") or PUBLIC), name) not in without
        return True

    context = MigrationContext.configure(
        connection,
        opts={
            "include_schemas": True,
            "include_name": is_compared,
            "compare_type": False,
            "compare_server_default": False,
            "target_metadata": metadata,
            # Alembic passes over its own table, which the code may well have.
            "version_table": "orchestrator_has_no_such_table",
        },
    )
    context.impl = _Reader(
        context.dialect, connection, as_sql=False, transactional_ddl=None, output_buffer=None, context_opts={}
    )
    with _quiet():
        found = produce_migrations(context, metadata).upgrade_ops
    tables: dict[ObjectName, str] = {}
    # A column that is computed, or was, may be made anew.
    columns = {
        ((table.schema or PUBLIC, table.name), column.name): _write(
            ops.AddColumnOp.from_column_and_tablename(table.schema, table.name, column)
        )
        for table in metadata.tables.values()
        for column in table.columns
    }
    # An index that is there and differs is written from the code, too: as it is declared, it reads best.
    indexes = {
        ((table.schema or PUBLIC, table.name), name): index
        for table in metadata.tables.values()
        for index in table.indexes
        if (name := _rendered_name(index))
    }
    for op in _flat(found.ops if found is not None else ()):
        if isinstance(op, ops.CreateTableOp):
            tables[op.schema or PUBLIC, op.table_name] = _write(op)
        elif isinstance(op, ops.AddColumnOp):
            columns[(op.schema or PUBLIC, op.table_name), op.column.name] = _write(op)
    return Written(
        tables,
        columns,
        {key: _write(ops.CreateIndexOp.from_index(index)) for key, index in indexes.items()},
        {key: _write_check(check) for key, check in _named_checks(metadata).items()},
    )


def _named_checks(metadata: MetaData) -> dict[tuple[ObjectName, str], CheckConstraint]:
    preparer = _dialect().identifier_preparer
    return {
        ((table.schema or PUBLIC, table.name), _unquoted(quoted)): constraint
        for table in metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint) and constraint.name is not None
        if (quoted := preparer.format_constraint(constraint))
    }


def _write_check(check: CheckConstraint) -> str:
    return str(AddConstraint(check, isolate_from_table=False).compile(dialect=_dialect())).strip()


def _flat(found: Any) -> list[Any]:
    return [inner for op in found for inner in (_flat(op.ops) if isinstance(op, ops.OpContainer) else [op])]


class _QuotingPreparer(PGIdentifierPreparer):
    """Quotes every name, as drizzle-kit does: no keyword of a later Postgres can break an old file."""

    def _requires_quotes(self, value: str) -> bool:
        del value
        return True


def _dialect() -> PGDialect_asyncpg:
    dialect: PGDialect_asyncpg = PGDialect_asyncpg()  # type: ignore[no-untyped-call]
    dialect.identifier_preparer = dialect.preparer = _QuotingPreparer(dialect)  # type: ignore[assignment]
    return dialect


class _Reader(PostgresqlImpl):
    """Alembic's own, but for a look at each serial's sequence, which fails where that is in another schema."""

    def autogen_column_reflect(self, inspector: Any, table: Any, column_info: Any) -> None:
        """Take nothing out of the default: we do not compare it here."""


class _Writer(PostgresqlImpl):
    """Alembic's offline mode, but for what it would lose: tabs in literals; types and foreign keys come apart."""

    def __init__(self, dialect: PGDialect_asyncpg) -> None:
        super().__init__(dialect, None, True, True, None, {})  # noqa: FBT003 alembic's signature
        self.written: list[str] = []

    def _exec(self, construct: Any, *_: Any, **__: Any) -> None:
        text = str(construct.compile(dialect=self.dialect)).strip()
        self.written.append(text.replace(", \n\t", ",\n\t"))

    def create_table(self, table: Table, **_: Any) -> None:
        # The type's own events would make enums here, once for each table.
        self._exec(CreateTable(table, include_foreign_key_constraints=[]))

    def add_column(self, table_name: str, column: Column[Any], **options: Any) -> None:
        column.constraints.clear()  # a column's checks are added by name
        super().add_column(table_name, column, **options)


def _write(op: Any) -> str:
    dialect = _dialect()
    context = MigrationContext.configure(dialect=dialect, opts={"as_sql": True})
    writer = _Writer(dialect)
    context.impl = writer
    Operations(context).invoke(op)
    return writer.written[0]


def _rendered_name(index: Index) -> str | None:
    """The index's name as the server has it: SQLAlchemy cuts long ones and adds a hash."""
    preparer = _dialect().identifier_preparer
    if index.name is None:
        return None
    quoted = preparer.format_index(index)
    return _unquoted(quoted)


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"')
