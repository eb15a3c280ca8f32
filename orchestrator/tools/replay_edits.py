"""What a replay leaves out of a folder's files: statements that act outside the scratch database. Pure: no I/O.

A replay runs files again that ran before, on a database that is thrown away. Roles, other databases, settings of the
server and its files are not thrown away with it: a statement that acts on them is blanked out, and named. What it would
have made is taken as there, as roles are; a grant to a role that does not exist is left out with it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.analysis.outside_database import QUERY_WORDS, Scope, acts, block_acts
from orchestrator.analysis.sql_file import SqlFile
from orchestrator.errors import MigrationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from orchestrator.analysis.outside_database import Act
    from orchestrator.migrator.folder import Migration
    from orchestrator.migrator.sources import Source
    from orchestrator.migrator.sql.statements import Statement

# What gives a role something, and nothing else: left out where the role is not there.
_GIVES_TO_ROLES = frozenset({"GrantStmt", "AlterDefaultPrivilegesStmt", "AlterOwnerStmt", "GrantRoleStmt"})
# Data statements are read whole only where one of these words is in them; a data file has half a million of them.
_QUERIES = frozenset({"INSERT", "UPDATE", "DELETE", "SELECT", "MERGE"})
_NOT_NEWLINE = re.compile(rb"[^\n]")


class OutsideDatabaseError(MigrationError):
    """A statement acts outside the scratch database, and cannot be left out with sense. Nothing was run."""


class LeftOut(msgspec.Struct, frozen=True):
    """A statement that a replay did not run: where it stands, and what it does, in words that hold no secret."""

    source: str
    migration: str
    line: int
    what: str

    @property
    def text(self) -> str:
        """For a person."""
        return (
            f"left out of the replay: {self.what} ({self.migration}, line {self.line}), because it acts outside the"
            " database"
        )


def edited(
    sources: Sequence[Source],
    names: Collection[tuple[str, str]],
    roles: Collection[str],
    keywords: frozenset[str],
) -> tuple[list[Source], list[LeftOut]]:
    """The sources with what acts outside the database blanked out of the files in `names` (label, migration).

    `roles` and `keywords` are those of the server. A file keeps its hash: the ledger is told of what is in the folder.

    Raises:
        OutsideDatabaseError: such a statement cannot be left out: something else of it is needed.
        SqlSyntaxError: a file is not SQL.
    """
    scope, missing, left_out = Scope(), set[str](), list[LeftOut]()
    made = []
    for source in sources:
        migrations = []
        for migration in source.folder.migrations:
            one = migration
            if (source.label, migration.name) in names:
                one = _edited(source.label, migration, scope, missing, frozenset(roles), left_out, keywords)
            migrations.append(one)
        folder = msgspec.structs.replace(source.folder, migrations=tuple(migrations))
        made.append(type(source)(source.label, folder, source.table))
    return made, left_out


def _edited(
    label: str,
    migration: Migration,
    scope: Scope,
    missing: set[str],
    roles: frozenset[str],
    left_out: list[LeftOut],
    keywords: frozenset[str],
) -> Migration:
    raw = migration.read()
    file = SqlFile(raw, path=migration.path, keywords=keywords)
    text = bytearray(raw)
    for statement, node, fields in _trees(file, scope):
        found = acts(node, fields, scope)
        scope.learn(node, fields)
        if node == "DoStmt" and found:
            _edit_block(statement, fields, scope, text, migration)
        elif found:
            _refuse_where_needed(found, statement, migration)
            _blank(text, statement)
        elif node in _GIVES_TO_ROLES and (lacking := missing.intersection(_roles_of(fields))):
            what = f"{statement.kind} to {', '.join(sorted(lacking))}, which this server does not have"
            left_out.append(LeftOut(label, migration.name, statement.line, what))
            _blank(text, statement)
        elif lacking := missing.intersection(_roles_of(fields)):
            raise _cannot_be_left_out(migration, statement, f"needs the role {min(lacking)}, which is not made here")
        for act in found:
            missing |= {role for role in act.roles if role not in roles}
            left_out.append(LeftOut(label, migration.name, statement.line, act.what))
    return migration if text == raw else msgspec.structs.replace(migration, text=bytes(text))


def _trees(file: SqlFile, scope: Scope) -> Iterator[tuple[Statement, str, Any]]:
    """Each statement that may act outside, with its tree; of data statements those that hold a telling word."""
    words = re.compile("|".join(map(re.escape, scope.names())).encode() or rb"(?!)", re.IGNORECASE)
    whole = file.trees()
    for statement, node, fields in whole:
        if statement.kind in _QUERIES and "relation" in fields and len(fields) == 1:
            from orchestrator.migrator.sql import parser

            text = statement.text.encode()
            if QUERY_WORDS.search(text) or words.search(text):
                (one,) = parser.parse(text)
                yield statement, one.node, one.fields()
            continue
        yield statement, node, fields


def _refuse_where_needed(found: Sequence[Act], statement: Statement, migration: Migration) -> None:
    for act in found:
        if not act.can_be_left_out:
            raise _cannot_be_left_out(migration, statement, f"does {act.what}, and what it makes of it is needed")


def _cannot_be_left_out(migration: Migration, statement: Statement, why: str) -> OutsideDatabaseError:
    return OutsideDatabaseError(
        f"{migration.path}:{statement.line}: {statement.kind} cannot be replayed on a scratch database: it {why}",
        remedy="Nothing was run. Use a server of its own for this (`--on URL`, where the command has it) on which the"
        " roles exist, or give what acts outside the database a migration of its own.",
        facts={"file": migration.path, "line": statement.line, "statement_kind": statement.kind},
    )


def _blank(text: bytearray, statement: Statement) -> None:
    """Spaces instead of the statement; lines keep their numbers."""
    start, end = statement.byte_offset, statement.byte_end
    text[start:end] = _NOT_NEWLINE.sub(b" ", bytes(text[start:end]))


def _edit_block(statement: Statement, fields: Any, scope: Scope, text: bytearray, migration: Migration) -> None:
    """NULL instead of those statements of a DO block that act outside.

    Raises:
        OutsideDatabaseError: one of them gives a value that the rest of the block needs.
    """
    body = statement.text
    for part, found in block_acts(fields, scope):
        if not part.stands_alone or not all(act.can_be_left_out for act in found):
            raise _cannot_be_left_out(migration, statement, f"does {found[0].what} in a place that the rest needs")
        written = re.escape(part.text.strip())
        pattern = {
            "dynamic": rf"EXECUTE\s+{written}[^;]*",
            "perform": rf"PERFORM\s+{re.escape(part.text.strip().removeprefix('SELECT').strip())}",
        }.get(part.kind, written)
        body, count = re.subn(pattern, _null, body, flags=re.IGNORECASE)
        if not count:
            raise _cannot_be_left_out(migration, statement, f"does {found[0].what} in a way that cannot be cut out")
    if len(body.encode()) > statement.byte_length:
        raise _cannot_be_left_out(migration, statement, "is too short to be changed in its place")
    padded = body.encode() + b" " * (statement.byte_length - len(body.encode()))
    text[statement.byte_offset : statement.byte_end] = padded


def _null(match: re.Match[str]) -> str:
    return "NULL" + "\n" * match[0].count("\n")


def _roles_of(fields: Any) -> set[str]:
    """The roles that a statement names."""
    return {spec["rolename"] for spec in _role_specs(fields)}


def _role_specs(tree: Any) -> Iterator[Any]:
    """Every RoleSpec: inside a node of its name, or as a field of its own (`newowner`, `role`)."""
    if isinstance(tree, dict):
        if "roletype" in tree and "rolename" in tree:
            yield tree
        for value in tree.values():
            yield from _role_specs(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _role_specs(value)
