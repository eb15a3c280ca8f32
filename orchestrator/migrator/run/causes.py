"""What the server's refusal of a statement comes of, told by the statement and the catalogue. Touches the database.

One SQLSTATE has many causes: 42704 is a type, a role, an operator class, a constraint or a setting that is missing. The
message would tell, but it is localised; so the names in the statement are looked up. Where that does not lead to one
cause, no advice is given: a wrong one costs more than none.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from orchestrator.database.connect_errors import CONNECTION_ERRORS
from orchestrator.database.sessions import role_schemas
from orchestrator.migrator.run.advice import TOLD, Cause, Circumstances, Earlier, Place
from orchestrator.migrator.run.catalog_names import CatalogNames
from orchestrator.migrator.run.errors import with_advice

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from orchestrator.errors import MigrationError
    from orchestrator.migrator.folder import Migration
    from orchestrator.migrator.run.options import Options
    from orchestrator.migrator.run.session import Session
    from orchestrator.migrator.sql.statements import Statement
    from orchestrator.migrator.state import Survey

_TIMEOUT_S = 5.0


async def explain(
    error: MigrationError, session: Session, options: Options, surveys: Sequence[Survey], *, elapsed_s: float
) -> None:
    """Give the error the advice that fits its cause, where that can be told. Call it when the transaction is over.

    `elapsed_s` is how long the statement had run. Bounded to seconds; where the session is gone, or the catalogue
    cannot be read, the error stays as it is.
    """
    sqlstate, connection = error.facts.get("sqlstate"), session.connection
    number, file = error.facts.get("statement"), error.facts.get("file")
    if sqlstate not in TOLD or not isinstance(number, int) or connection.is_closed():
        return
    of = next(((s, m) for s in surveys for m in s.source.folder.migrations if str(m.path) == file), None)
    if of is None:
        return
    survey, migration = of
    before = _before(survey, migration) if options.transaction == "all" else []
    read = await asyncio.to_thread(_read, migration, number, error, before)
    if read is None:
        return
    place, earlier = read
    facts = Circumstances(survey, migration, options.statement_timeout_ms, elapsed_s)
    with contextlib.suppress(*CONNECTION_ERRORS, TimeoutError):
        async with asyncio.timeout(_TIMEOUT_S):
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK")
            await session.ours()
            async with connection.transaction(readonly=True):
                path = earlier.search_path[0] if earlier.search_path else await role_schemas(connection)
                told = await Cause(CatalogNames(connection, path), place, earlier, facts).told(str(sqlstate))
            if told:
                with_advice(error, told)


def _before(survey: Survey, migration: Migration) -> list[Migration]:
    pending = list(survey.plan.pending)
    return pending[: pending.index(migration)] if migration in pending else []


def _read(
    migration: Migration, number: int, error: MigrationError, before: Sequence[Migration]
) -> tuple[Place, Earlier] | None:
    from orchestrator.migrator.sql import parser
    from orchestrator.migrator.sql.statements import statements

    earlier = Earlier([], [], None, {})
    for file in before:
        earlier = _with(earlier, statements(file.read(), path=str(file.path)), f"{file.name}, line")
    parsed = statements(migration.read(), path=str(migration.path))
    statement = parsed[number - 1]
    earlier = _with(earlier, parsed[: number - 1], "line")
    cause: Any = error.__cause__
    text, offset = statement.text, _offset(statement, error)
    if query := getattr(cause, "internal_query", None):  # in a function or a DO block, what failed there
        text, position = str(query), int(getattr(cause, "internal_position", None) or 0)
        offset = len(text[: position - 1].encode()) if position else None
    try:
        (one,) = parser.parse(text.encode())
        return Place(one.node, one.fields(), offset), earlier
    except (parser.GrammarError, ValueError):
        return None  # only the server can read it


def _offset(statement: Statement, error: MigrationError) -> int | None:
    """Where in the statement's text the server points to; None where it points nowhere."""
    if not getattr(error.__cause__, "position", None):
        return None
    line, column = int(str(error.facts["line"])), int(str(error.facts["column"]))
    lines = statement.text.split("\n")
    down = min(line - statement.line, len(lines) - 1)
    ahead = lines[down][: column - 1] if down else lines[0][: column - statement.column]
    return len("\n".join([*lines[:down], ahead]).encode())


# Data statements make and drop no names.
_NAMELESS = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE"})


def _with(earlier: Earlier, parsed: Sequence[Statement], where: str) -> Earlier:
    from orchestrator.migrator.sql import names, parser

    for statement in parsed:
        if statement.kind in _NAMELESS or (statement.kind == "SELECT" and "set_config" not in statement.text):
            continue
        try:
            (one,) = parser.parse(statement.text.encode())
        except (parser.GrammarError, ValueError):
            continue
        fields, place = one.fields(), f"{where} {statement.line}"
        earlier.made.extend((ref, place) for ref in names.made(one.node, fields))
        earlier.dropped.extend((ref, place) for ref in names.dropped(one.node, fields))
        for name, values in _set(one.node, fields):
            earlier.settings[name] = place
            if name == "search_path":
                earlier = earlier._replace(search_path=(values, place))
    return earlier


def _set(node: str, fields: dict[str, Any]) -> Iterable[tuple[str, list[str]]]:
    """What a statement sets, by SET or by set_config."""
    if node == "VariableSetStmt" and fields.get("kind") == "VAR_SET_VALUE":
        yield fields["name"], [_constant(one) for one in fields.get("args", ())]
    elif node == "SelectStmt":
        for target in fields.get("targetList", ()):
            call = target.get("ResTarget", {}).get("val", {}).get("FuncCall", {})
            if call.get("funcname", [{}])[-1].get("String", {}).get("sval") == "set_config":
                name, value = (_constant(one) for one in call["args"][:2])
                yield name, [word.strip(' "') for word in value.split(",") if word.strip(' "')]


def _constant(node: dict[str, Any]) -> str:
    constant = node.get("A_Const", {})
    return str(constant.get("sval", {}).get("sval", constant.get("ival", {}).get("ival", "")))
