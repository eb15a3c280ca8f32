"""Statements that act outside the database they run in: on roles, other databases, the server, files. Pure: no I/O.

One truth for two users: `lint` flags such statements, and a replay leaves them out (`replay_edits`). A statement counts
for what it does when it runs: a function or a view that would act is only noted, and counts where it is called.

What cannot be seen here: an EXECUTE of a text that is not written in the file, a function of another language, and a
function that is in the database and not in the folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from orchestrator.analysis import ast
from orchestrator.analysis.do_blocks import Part, block_parts
from orchestrator.migrator.sql import parser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from orchestrator.analysis.ast import Tree

Kind = Literal["role", "database", "tablespace", "setting", "file", "program", "replication", "connection", "server"]


class Act(NamedTuple):
    """One thing that reaches outside: what, in words that hold no secret, and whether leaving it out makes sense.

    `roles` are the roles that it makes, renames or drops; `tablespaces` the tablespaces that it makes.
    """

    kind: Kind
    what: str
    can_be_left_out: bool = True
    roles: tuple[str, ...] = ()
    tablespaces: tuple[str, ...] = ()


@dataclass(slots=True)
class Scope:
    """What the files so far made that acts outside when it is used: functions, triggers, foreign tables by name."""

    functions: dict[str, list[Act]] = field(default_factory=dict)
    own_functions: set[str] = field(default_factory=set)
    foreign_tables: set[str] = field(default_factory=set)
    triggers: dict[str, list[Act]] = field(default_factory=dict)

    def names(self) -> set[str]:
        """The names whose use has to be looked at."""
        return {*self.functions, *self.foreign_tables, *self.triggers}

    def learn(self, node: str, fields: Tree) -> None:
        """Remember what a statement makes; call it after the statement was judged."""
        if node == "CreateFunctionStmt":
            name = ast.strings(fields["funcname"])[-1]
            found = [act for _, acts in _body_acts(fields, self) for act in acts]
            self.own_functions.add(name)
            self.functions.pop(name, None)
            if found:
                self.functions[name] = found
        elif node == "CreateForeignTableStmt":
            self.foreign_tables.add(fields["base"]["relation"]["relname"])
        elif node == "CreateTrigStmt" and (found := self.functions.get(ast.strings(fields["funcname"])[-1], [])):
            self.triggers[fields["relation"]["relname"]] = found


# --- What a statement does -------------------------------------------------------------------------------------------


def acts(node: str, fields: Tree, scope: Scope) -> list[Act]:
    """What a statement does outside its database; of a DO block all that its statements do."""
    if node == "DoStmt":
        return [act for _, found in _body_acts(fields, scope) for act in found]
    if of_node := _BY_NODE.get(node):
        return [act for act in (of_node(fields),) if act is not None]
    if node in _RUN_THEIR_CALLS:
        return list(_query_acts(node, fields, scope))
    return []


def block_acts(fields: Tree, scope: Scope) -> list[tuple[Part, list[Act]]]:
    """The parts of a DO block that act outside, in order, each with what it does."""
    return [(part, found) for part, found in _body_acts(fields, scope) if found]


def _body_acts(fields: Tree, scope: Scope) -> Iterator[tuple[Part, list[Act]]]:
    for part in block_parts(fields):
        if part.kind == "dynamic":
            yield part, _executed(part.text, scope)
        else:
            text = f"SELECT {part.text}" if part.kind == "expression" else part.text
            yield part, _text_acts(text, scope)


def _text_acts(text: str, scope: Scope) -> list[Act]:
    try:
        parsed = parser.parse(text.encode())
    except parser.GrammarError:
        return []
    return [act for one in parsed for act in acts(one.node, one.fields(), scope)]


def _named(
    kind: Kind, words: str, name: object = "", *, roles: tuple[str, ...] = (), tablespaces: tuple[str, ...] = ()
) -> Act:
    return Act(kind, f"{words} {name}".strip(), roles=roles, tablespaces=tablespaces)


def _role_name(role: Tree | None) -> str:
    role = (role or {}).get("RoleSpec", role or {})
    return str(role.get("rolename") or role.get("roletype", "").removeprefix("ROLESPEC_"))


def _create_role(fields: Tree) -> Act:
    return _named("role", "CREATE ROLE", fields["role"], roles=(fields["role"],))


def _drop_role(fields: Tree) -> Act:
    names = tuple(_role_name(role) for role in fields.get("roles", ()))
    return _named("role", "DROP ROLE", ", ".join(names), roles=names)


def _alter_role(fields: Tree) -> Act:
    return _named("role", "ALTER ROLE", _role_name(fields.get("role")) or "ALL")


def _grant_role(fields: Tree) -> Act:
    roles = ", ".join(one["AccessPriv"].get("priv_name", "") for one in fields.get("granted_roles", ()))
    return _named("role", "GRANT ROLE" if fields.get("is_grant") else "REVOKE ROLE", roles)


_SHARED_OBJECTS: dict[str, tuple[Kind, str]] = {
    "OBJECT_DATABASE": ("database", "DATABASE"),
    "OBJECT_PARAMETER_ACL": ("setting", "PARAMETER"),
    "OBJECT_ROLE": ("role", "ROLE"),
    "OBJECT_SUBSCRIPTION": ("replication", "SUBSCRIPTION"),
    "OBJECT_TABLESPACE": ("tablespace", "TABLESPACE"),
}


def _on_shared(verb: str, kind_field: str) -> Callable[[Tree], Act | None]:
    def act(fields: Tree) -> Act | None:
        if (shared := _SHARED_OBJECTS.get(fields.get(kind_field, ""))) is None:
            return None
        kind, words = shared
        names = [str(one.get("String", {}).get("sval", "")) for one in fields.get("objects", ())]
        name = fields.get("subname") or fields.get("object", {}).get("String", {}).get("sval", "") or ", ".join(names)
        is_rename = kind == "role" and "newname" in fields
        said = verb or ("GRANT ON" if fields.get("is_grant") else "REVOKE ON")
        return _named(kind, f"{said} {words}", name, roles=(name, fields["newname"]) if is_rename else ())

    return act


def _copy(fields: Tree) -> Act | None:
    if "filename" not in fields:
        return None
    table = fields.get("relation", {}).get("relname", "a query")
    way = "FROM" if fields.get("is_from") else "TO"
    if fields.get("is_program"):
        return Act("program", f"COPY {table} {way} PROGRAM")
    return Act("file", f"COPY {table} {way} a file of the server")


def _reindex(fields: Tree) -> Act | None:
    # It names a database, which has to be the one that it runs in; SYSTEM also builds the shared catalogues.
    kind = fields["kind"].removeprefix("REINDEX_OBJECT_")
    return Act("database", f"REINDEX {kind}") if kind in {"DATABASE", "SYSTEM"} else None


def _alter_system(fields: Tree) -> Act:
    return _named("setting", "ALTER SYSTEM SET", fields.get("setstmt", {}).get("name", "ALL"))


def _of_field(kind: Kind, words: str, name_field: str) -> Callable[[Tree], Act]:
    return lambda fields: _named(kind, words, fields.get(name_field, ""))


def _create_tablespace(fields: Tree) -> Act:
    name = fields.get("tablespacename", "")
    return _named("tablespace", "CREATE TABLESPACE", name, tablespaces=(name,))


_BY_NODE: dict[str, Callable[[Tree], Act | None]] = {
    "AlterDatabaseRefreshCollStmt": _of_field("database", "ALTER DATABASE", "dbname"),
    "AlterDatabaseSetStmt": _of_field("database", "ALTER DATABASE", "dbname"),
    "AlterDatabaseStmt": _of_field("database", "ALTER DATABASE", "dbname"),
    "AlterOwnerStmt": _on_shared("ALTER", "objectType"),
    "AlterRoleSetStmt": _alter_role,
    "AlterRoleStmt": _alter_role,
    "AlterSubscriptionStmt": _of_field("replication", "ALTER SUBSCRIPTION", "subname"),
    "AlterSystemStmt": _alter_system,
    "AlterTableSpaceOptionsStmt": _of_field("tablespace", "ALTER TABLESPACE", "tablespacename"),
    "CheckPointStmt": lambda _: Act("server", "CHECKPOINT"),
    "CommentStmt": _on_shared("COMMENT ON", "objtype"),
    "CreateRoleStmt": _create_role,
    "CreateSubscriptionStmt": _of_field("replication", "CREATE SUBSCRIPTION", "subname"),
    "CreateTableSpaceStmt": _create_tablespace,
    "CreatedbStmt": _of_field("database", "CREATE DATABASE", "dbname"),
    # Of what these two touch, databases, tablespaces and privileges on them are shared.
    "DropOwnedStmt": lambda f: _named("role", "DROP OWNED BY", ", ".join(map(_role_name, f.get("roles", ())))),
    "DropRoleStmt": _drop_role,
    "DropSubscriptionStmt": _of_field("replication", "DROP SUBSCRIPTION", "subname"),
    "DropTableSpaceStmt": _of_field("tablespace", "DROP TABLESPACE", "tablespacename"),
    "DropdbStmt": _of_field("database", "DROP DATABASE", "dbname"),
    "GrantRoleStmt": _grant_role,
    "GrantStmt": _on_shared("", "objtype"),
    "ReassignOwnedStmt": lambda f: _named("role", "REASSIGN OWNED BY", ", ".join(map(_role_name, f.get("roles", ())))),
    "ReindexStmt": _reindex,
    "RenameStmt": _on_shared("ALTER", "renameType"),
    "SecLabelStmt": _on_shared("SECURITY LABEL ON", "objtype"),
}

# --- Queries ---------------------------------------------------------------------------------------------------------

# Nodes whose expressions run when the statement does; a view, a function, a policy only keep theirs.
_RUN_THEIR_CALLS = frozenset(
    {"SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt", "CallStmt", "CopyStmt", "ExplainStmt"}
    | {"CreateTableAsStmt", "DeclareCursorStmt", "TruncateStmt"}
)
_WRITES = frozenset({"InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt", "TruncateStmt"})

# System functions (PostgreSQL manual, 9.28, and the modules named) that act on the server or beyond.
_SERVER_CALLS = """
pg_cancel_backend pg_terminate_backend pg_reload_conf pg_rotate_logfile pg_logfile_rotate pg_promote pg_switch_wal
pg_switch_xlog pg_create_restore_point pg_start_backup pg_stop_backup pg_backup_start pg_backup_stop pg_wal_replay_pause
pg_wal_replay_resume pg_stat_reset_shared pg_stat_reset_slru pg_stat_statements_reset
"""
_REPLICATION_CALLS = """
pg_create_physical_replication_slot pg_create_logical_replication_slot pg_drop_replication_slot
pg_copy_physical_replication_slot pg_copy_logical_replication_slot pg_replication_slot_advance
pg_logical_slot_get_changes pg_logical_slot_get_binary_changes pg_sync_replication_slots pg_replication_origin_create
pg_replication_origin_drop pg_replication_origin_advance pg_stat_reset_replication_slot pg_stat_reset_subscription_stats
"""
_FILE_CALLS = """
lo_import lo_export pg_read_file pg_read_binary_file pg_file_write pg_file_rename pg_file_unlink pg_file_sync
"""
_HTTP_CALLS = "http http_get http_post http_put http_patch http_delete http_head"
_CALLS: dict[str, Kind] = {
    **dict.fromkeys(_SERVER_CALLS.split(), "server"),
    **dict.fromkeys(_REPLICATION_CALLS.split(), "replication"),
    **dict.fromkeys(_FILE_CALLS.split(), "file"),
    **dict.fromkeys(_HTTP_CALLS.split(), "connection"),
}
# dblink's functions, and whole schemas that extensions call out of (pg_net, aws_s3, aws_lambda).
_CALL_PREFIX, _CALL_SCHEMAS = "dblink", frozenset({"net", "aws_s3", "aws_lambda"})
# The catalogues that all databases share (pg_class.relisshared).
_SHARED = """
pg_auth_members pg_authid pg_database pg_db_role_setting pg_parameter_acl pg_replication_origin pg_shdepend
pg_shdescription pg_shseclabel pg_subscription pg_tablespace
"""
_SHARED_CATALOGUES = frozenset(_SHARED.split())
# What a query must hold somewhere to be worth a tree; data files have half a million of them.
QUERY_WORDS = re.compile(
    "|".join(sorted([*_CALLS, _CALL_PREFIX, *_SHARED_CATALOGUES, *(rf"\b{s}\b" for s in _CALL_SCHEMAS)])).encode(),
    re.IGNORECASE,
)


def _query_acts(node: str, fields: Tree, scope: Scope) -> Iterator[Act]:
    if node == "CopyStmt" and (copied := _copy(fields)):
        yield copied
    # What makes a table of the rows cannot be left out: what follows may use the table.
    is_data = node != "CreateTableAsStmt" and "intoClause" not in fields
    for call in ast.called(fields):
        if call.name in scope.functions:
            inner = scope.functions[call.name]
            yield Act(inner[0].kind, f"{call.name}(), which does: {inner[0].what}", is_data and _is_all(inner))
        elif call.name not in scope.own_functions and (kind := _call_kind(call)):
            yield Act(kind, f"{call.name}()", is_data)
    for table in _written_tables(fields):
        if table.name in scope.triggers:
            inner = scope.triggers[table.name]
            yield Act(inner[0].kind, f"a trigger of {table.name}, which does: {inner[0].what}")
        elif table.name in _SHARED_CATALOGUES and table.schema in {None, "pg_catalog"}:
            yield Act("server", f"a write to pg_catalog.{table.name}")
        elif table.name in scope.foreign_tables:
            yield Act("connection", f"a write to the foreign table {table.name}")


def _is_all(inner: Sequence[Act]) -> bool:
    return all(act.can_be_left_out for act in inner)


def _call_kind(call: ast.Name) -> Kind | None:
    if call.name.startswith(_CALL_PREFIX) or call.schema in _CALL_SCHEMAS:
        return "connection"
    return _CALLS.get(call.name)


def _written_tables(fields: Tree) -> Iterator[ast.Name]:
    """The tables that a statement, or a part of its WITH, writes to."""
    if "relname" in fields.get("relation", {}) and "is_from" not in fields:
        yield ast.relation(fields["relation"])
    if fields.get("is_from") and "relation" in fields:
        yield ast.relation(fields["relation"])
    for one in fields.get("relations", ()):
        if "RangeVar" in one:
            yield ast.relation(one["RangeVar"])
    for _, inner in ast.nodes(fields, *_WRITES):
        if "relation" in inner:
            yield ast.relation(inner["relation"])


# --- EXECUTE ---------------------------------------------------------------------------------------------------------

_HOLES = re.compile(r"%(?:\d+\$)?-?\d*([ILs%])")
_LEADING = re.compile(
    r"\s*(CREATE|ALTER|DROP)\s+(ROLE|USER|GROUP|DATABASE|TABLESPACE|SYSTEM|SUBSCRIPTION)\b", re.IGNORECASE
)
_LEADING_KINDS: dict[str, Kind] = {
    "DATABASE": "database",
    "SUBSCRIPTION": "replication",
    "SYSTEM": "setting",
    "TABLESPACE": "tablespace",
}
_UNKNOWN = "\0"  # in place of what only the running block knows


def _executed(expression: str, scope: Scope) -> list[Act]:
    """What EXECUTE of an expression does, as far as the text is written there: constants, `||` and format()."""
    try:
        (parsed,) = parser.parse(f"SELECT {expression}".encode())
        written = _written(parsed.fields()["targetList"][0]["ResTarget"]["val"])
    except (parser.GrammarError, KeyError, ValueError):
        return []
    for value in ("x", "'x'", "1"):
        try:
            statements = parser.parse(written.replace(_UNKNOWN, value).encode())
        except parser.GrammarError:
            continue
        found = [act for one in statements for act in acts(one.node, one.fields(), scope)]
        return [act._replace(what=f"EXECUTE of {_without_names(act, written)}") for act in found]
    if (match := _LEADING.match(written)) and not written[match.end() :].lstrip().upper().startswith("MAPPING"):
        kind = _LEADING_KINDS.get(match[2].upper(), "role")
        return [Act(kind, f"EXECUTE of {match[1].upper()} {match[2].upper()}")]
    return []


def _without_names(act: Act, written: str) -> str:
    """Where a part of the text is not known, the name may be ours."""
    return act.what if _UNKNOWN not in written else act.what.removesuffix(" x")


def _written(expression: Tree) -> str:
    kind, fields = ast.only(expression)
    text = _UNKNOWN
    if kind == "A_Const":
        text = str(fields.get("sval", {}).get("sval", _UNKNOWN))
    elif kind == "TypeCast":
        text = _written(fields["arg"])
    elif kind == "A_Expr" and ast.strings(fields.get("name")) == ["||"]:
        text = _written(fields["lexpr"]) + _written(fields["rexpr"])
    elif kind == "FuncCall":
        name, arguments = ast.strings(fields["funcname"])[-1], fields.get("args", ())
        if name == "format" and arguments:
            text = _HOLES.sub(_hole, _written(arguments[0]))
        elif name == "concat":
            text = "".join(map(_written, arguments))
        else:
            text = {"quote_literal": "'x'", "quote_nullable": "'x'", "quote_ident": "x"}.get(name, _UNKNOWN)
    return text


def _hole(match: re.Match[str]) -> str:
    return {"I": "x", "L": "'x'", "s": _UNKNOWN, "%": "%"}[match[1]]
