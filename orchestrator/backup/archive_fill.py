"""Fill a new database from pg_dump's archive, as a role without rights where there is one; then name the owners.

Touches child processes and the new database. What only a superuser may make is made by our own session, and none of it
runs code that the archive brings: extensions before (their scripts are the server's), owners, rights, publications and
event triggers after.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import asyncpg

from orchestrator.backup import pgtools
from orchestrator.backup.manifest import BackupError
from orchestrator.backup.psql_fill import fill_by_script
from orchestrator.database.connect import close, connect_once
from orchestrator.database.quoting import identifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from orchestrator.backup.pgtools import Emit, Tool
    from orchestrator.backup.restricted_role import Place
    from orchestrator.dsn import Dsn

_JOBS_MAX = 4
# From this major on pg_restore sends a setting that older servers refuse: SET transaction_timeout.
_FIRST_WITH_TRANSACTION_TIMEOUT = 17
# Before this major everybody may create in `public`.
_FIRST_WITH_CLOSED_PUBLIC = 15
# Entries that a role without rights cannot make, or that act on other servers: `pg_restore --list` begins so, after the
# three numbers.
_SUPERUSERS = ("EVENT TRIGGER -", "PUBLICATION", "SUBSCRIPTION", "USER MAPPING -")
_ROWS = ("TABLE DATA", "SEQUENCE SET", "BLOBS", "BLOB DATA", "MATERIALIZED VIEW DATA", "STATISTICS DATA")
NO_OWNERS = ("--no-owner", "--no-privileges", "--no-security-labels")
_COMMENTED = ("EVENT TRIGGER", "PUBLICATION", "SUBSCRIPTION", "EXTENSION", "SCHEMA")
_QUOTED = re.compile(r'^"((?:[^"]|"")*)"')
_ENTRY = re.compile(r"^\d+; \d+ \d+ (.*)$")


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive that is open for reading, so that nobody can put another file in its place."""

    fd: int
    name: str
    pg_dump_major: int

    @property
    def path(self) -> str:
        """Its path for a program that is handed `fd`."""
        return f"/proc/self/fd/{self.fd}"


@dataclass(frozen=True, slots=True)
class Filled:
    """What was restored: the archive's entries, and which of them were left out (their types and names)."""

    entries: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    made_before: tuple[str, ...] = ()
    isolated: bool = False

    def compares(self, title: str) -> bool:
        """Whether the entry of a script of pg_dump, as `TYPE schema.name`, is in the new database as it was."""
        return not self.leaves_out(title.replace(" -.", " - ", 1))

    def leaves_out(self, what: str) -> bool:
        """Whether the entry is not restored: it is there already, or a role without rights cannot make it."""
        return _is_left_out(what, (*self.made_before, *((*_SUPERUSERS, "SCHEMA - public") if self.isolated else ())))


async def fill(
    archive: Archive,
    place: Place,
    emit: Emit,
    *,
    application_name: str,
    options: Sequence[str] = (),
) -> Filled:
    """Restore `archive` into the empty database of `place`; the first error ends it.

    Raises:
        PgToolMissingError: no pg_restore fits the server and the archive.
        PgToolError: pg_restore failed.
    """
    own = await connect_once(place.own, application_name=application_name)
    try:
        major = own.get_server_version().major
        tool = await pgtools.find("pg_restore", at_least=max(major, archive.pg_dump_major), purpose=archive.name)
        environment = pgtools.environment(place.dsn, application_name=application_name)
        reader = _Reader(tool, archive, environment, place.dsn, emit)
        entries = await reader.entries()
        made = await _make_extensions(own, reader, entries, place) if place.isolated else ()
        filled = Filled(entries, made_before=(*made, *await _others_extensions(own)), isolated=place.isolated)
        if place.isolated:
            told = [what for entry in entries if (what := _what(entry)).startswith(_SUPERUSERS)]
            filled = replace(filled, left_out=tuple(what.rpartition(" ")[0] for what in told))
            options = (*options, *NO_OWNERS)
        entries = tuple(entry for entry in entries if not filled.leaves_out(_what(entry)))
    finally:
        await close(own)
    with _list_file(entries) as listed:
        chosen = [*options, f"--use-list={listed.name}"]
        if tool.major >= _FIRST_WITH_TRANSACTION_TIMEOUT > major:
            await fill_by_script(tool, archive.path, (archive.fd,), chosen, place.dsn, environment, emit)
            return filled
        jobs = max(1, min(_JOBS_MAX, os.cpu_count() or 1))
        await reader.run([*chosen, "--exit-on-error", "--no-password", "--verbose", f"--jobs={jobs}", "--dbname="])
    return filled


async def hand_over(archive: Archive, filled: Filled, place: Place, emit: Emit) -> None:
    """Give what a role without rights has restored to the owners that the archive names, with their rights.

    Ours is a superuser's session. Of the archive's script it runs the statements that change owners and rights, and
    those that were left out, known by the grammar; none of them runs the archive's code. Event triggers come last.

    Raises:
        asyncpg.PostgresError: a statement failed, e.g. since a role is missing (42704).
    """
    name = identifier(str(place.dsn.user))
    own = await connect_once(place.own, application_name="orchestrator restore")
    try:
        major = own.get_server_version().major
        tool = await pgtools.find("pg_restore", at_least=max(major, archive.pg_dump_major), purpose=archive.name)
        environment = pgtools.environment(place.own, application_name="orchestrator restore")
        wanted = [entry for entry in filled.entries if not _what(entry).startswith(_ROWS)]
        script = await _Reader(tool, archive, environment, place.own, emit).script(wanted)
        owners, rights, last = await asyncio.to_thread(_handing_over, script)
        public = "GRANT CREATE ON SCHEMA public TO PUBLIC" if major < _FIRST_WITH_CLOSED_PUBLIC else "SELECT 1"
        async with own.transaction():
            await _give_to_owners(own, owners)
            await own.execute(f"REASSIGN OWNED BY {name} TO CURRENT_USER; DROP OWNED BY {name}; {public}")
            for statement in (*rights, *last):
                await own.execute(statement)
    finally:
        await close(own)


async def _give_to_owners(own: Any, statements: Sequence[str]) -> None:
    """Run them; a sequence that belongs to a column follows its table, and before that cannot be changed (0A000)."""
    after = []
    for statement in statements:
        try:
            async with own.transaction():
                await own.execute(statement)
        except asyncpg.FeatureNotSupportedError:
            after.append(statement)
    for statement in after:
        await own.execute(statement)


def _handing_over(script: str) -> tuple[list[str], list[str], list[str]]:
    """Of a script of pg_restore the statements about owners, about rights, and about event triggers, in this order.

    The scanner cuts the body of a BEGIN ATOMIC function at its semicolons; what is in such a body begins with none of
    the words that are looked for. In return it reads scripts that a newer server wrote.
    """
    import postgast

    found: dict[str, list[str]] = {"owner": [], "rights": [], "last": []}
    for statement in postgast.split(script, method="scanner"):
        kind = _kind(statement)
        if kind:
            found[kind].append(statement)
    return found["owner"], found["rights"], found["last"]


_FIRST_WORDS = re.compile(
    r"(?:\s|--[^\n]*\n)*(?:ALTER|GRANT|REVOKE|CREATE\s+(?:EVENT|PUBLICATION|SUBSCRIPTION|USER)|COMMENT|SECURITY|SET|RESET)\b"
)
_KINDS = {
    "grant_stmt": "rights",
    "alter_default_privileges_stmt": "rights",
    "create_publication_stmt": "rights",
    "alter_publication_stmt": "rights",
    "create_subscription_stmt": "rights",
    "create_user_mapping_stmt": "rights",
    "sec_label_stmt": "rights",
    "create_event_trig_stmt": "last",
    "alter_event_trig_stmt": "last",
}


def _kind(statement: str) -> str:
    """What to do with a statement: owner, rights, last, or "" for one that is no business of a superuser."""
    import postgast

    if not _FIRST_WORDS.match(statement):
        return ""
    try:
        (parsed,) = postgast.parse(statement).stmts
    except postgast.PgQueryError as error:
        raise BackupError(
            f"a statement of the archive that may name an owner cannot be read: {error}",
            remedy="--with-own-rights leaves all of it to pg_restore. The database is as it was.",
        ) from error
    which = parsed.stmt.WhichOneof("node")
    node = getattr(parsed.stmt, which)
    kinds = postgast.pg_query_pb2.ObjectType
    after = {
        kinds.OBJECT_EVENT_TRIGGER: "last",
        kinds.OBJECT_PUBLICATION: "rights",
        kinds.OBJECT_SUBSCRIPTION: "rights",
    }
    if which == "alter_table_stmt":
        owner = postgast.pg_query_pb2.AlterTableType.AT_ChangeOwner
        return "owner" if all(command.alter_table_cmd.subtype == owner for command in node.cmds) else ""
    if which == "alter_owner_stmt":
        return after.get(node.object_type, "owner")
    if which == "variable_set_stmt":  # grants that somebody other than the owner made
        return "rights" if node.name == "session_authorization" else ""
    if which == "comment_stmt":
        return {**after, kinds.OBJECT_EXTENSION: "rights", kinds.OBJECT_SCHEMA: "rights"}.get(node.objtype, "")
    return _KINDS.get(which, "")


# ------------------------------------------------------------------------------------------------------- the contents


def _what(entry: str) -> str:
    """An entry without its three numbers."""
    found = _ENTRY.match(entry)
    return found[1] if found else ""


def _is_left_out(what: str, left_out: Sequence[str]) -> bool:
    """Whether the entry is one of these, or a comment on one."""
    if what.startswith("COMMENT - "):
        what = what.removeprefix("COMMENT - ")
        kind = next((kind for kind in _COMMENTED if what.startswith(f"{kind} ")), None)
        if kind is None:
            return False
        named = what.removeprefix(f"{kind} ")
        quoted = _QUOTED.match(named)  # in a comment's title, where SQL would want quotes
        what = f"{kind} - " + (quoted[1].replace('""', '"') if quoted else named)
    return f"{what} ".startswith(tuple(f"{one} " for one in left_out))


def _list_file(entries: Iterable[str]) -> Any:
    file = tempfile.NamedTemporaryFile(prefix="orchestrator-restore-", suffix=".list")  # noqa: SIM115 handed on
    file.write("".join(f"{entry}\n" for entry in entries).encode())
    file.flush()
    return file


@dataclass(frozen=True, slots=True)
class _Reader:
    """pg_restore on one archive."""

    tool: Tool
    archive: Archive
    environment: dict[str, str]
    dsn: Dsn
    emit: Emit

    def _run(self, arguments: Sequence[str]) -> pgtools.Run:
        return pgtools.Run(
            self.tool,
            [*arguments, self.archive.path],
            self.environment,
            self.dsn.secrets,
            self.emit,
            fds=(self.archive.fd,),
        )

    async def run(self, arguments: Sequence[str]) -> None:
        await pgtools.run(self._run(arguments))

    async def entries(self) -> tuple[str, ...]:
        """The lines of the list of contents."""
        listing = await pgtools.output(self._run(["--list"]))
        return tuple(line for line in listing.decode(errors="surrogateescape").splitlines() if _ENTRY.match(line))

    async def script(self, entries: Iterable[str]) -> str:
        """Those entries as SQL, without lines that are commands of psql."""
        with _list_file(entries) as listed:
            text = await pgtools.output(self._run([f"--use-list={listed.name}", "--file=-"]))
        return re.sub(r"(?m)^\\(?:un)?restrict .*$", "", text.decode(errors="replace"))


async def _make_extensions(own: Any, reader: _Reader, entries: Sequence[str], place: Place) -> tuple[str, ...]:
    """Make the extensions of the archive with a superuser's rights, where we have them; returns what is there then.

    The database is new, and nobody else has been in it: their scripts find nothing that others put there.
    """
    if not await own.fetchval("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user"):
        return ()
    import postgast

    wanted = [entry for entry in entries if _what(entry).startswith("EXTENSION - ")]
    if not wanted:
        return ()
    role = identifier(str(place.dsn.user))
    made = []
    for parsed in postgast.parse(await reader.script(wanted)).stmts:
        if parsed.stmt.WhichOneof("node") != "create_extension_stmt":
            continue
        node = parsed.stmt.create_extension_stmt
        schema = next((o.def_elem.arg.string.sval for o in node.options if o.def_elem.defname == "schema"), None)
        where = ""
        if schema is not None:
            where = f" WITH SCHEMA {identifier(schema)}"
            if not schema.startswith("pg_") and schema != "public":
                quoted = identifier(schema)
                await own.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted}; GRANT ALL ON SCHEMA {quoted} TO {role}")
                made.append(f"SCHEMA - {schema}")
        await own.execute(f"CREATE EXTENSION IF NOT EXISTS {identifier(node.extname)}{where}")
        made.append(f"EXTENSION - {node.extname}")
    await own.execute("\n".join([row[0] for row in await own.fetch(_MEMBERS, str(place.dsn.user))]) or "SELECT 1")
    return tuple(dict.fromkeys(made))


async def _others_extensions(own: Any) -> tuple[str, ...]:
    """The extensions that are in the new database already and belong to somebody else, as entries."""
    rows = await own.fetch(
        "SELECT extname::text FROM pg_catalog.pg_extension"
        " WHERE NOT pg_catalog.pg_has_role(extowner, 'USAGE') AND extname <> 'plpgsql'"
    )
    return tuple(f"EXTENSION - {row[0]}" for row in rows)


# What a dump has of extensions besides their names: the rows of their configuration tables, and servers of their
# wrappers (PostgreSQL manual, 36.17.3).
_MEMBERS = """
SELECT pg_catalog.format('GRANT ALL ON %s TO %I;', c.oid::pg_catalog.regclass, $1::text) FROM pg_catalog.pg_extension e
CROSS JOIN LATERAL pg_catalog.unnest(e.extconfig) AS config(oid) JOIN pg_catalog.pg_class c ON c.oid = config.oid
UNION ALL SELECT pg_catalog.format('GRANT USAGE ON FOREIGN DATA WRAPPER %I TO %I;', fdwname, $1::text)
FROM pg_catalog.pg_foreign_data_wrapper
"""
