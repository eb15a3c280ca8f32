"""The advice for a statement that the server refused: from its names, and from the catalogue. Touches the database.

It reads the catalogue alone, through `CatalogNames`. Each advice is whole sentences without the last full stop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.database.quoting import identifier
from orchestrator.migrator.run.brought_by import SETTINGS_SINCE, extension_of
from orchestrator.migrator.run.errors import already_there
from orchestrator.migrator.sql import names
from orchestrator.migrator.sql.names import Ref, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.migrator.folder import Migration
    from orchestrator.migrator.run.catalog_names import CatalogNames
    from orchestrator.migrator.state import Survey

# PostgreSQL manual, appendix A.
_MISSING: dict[str, frozenset[str]] = {
    "3F000": frozenset({"schema"}),
    "42703": frozenset({"column"}),
    "42704": frozenset(
        {"access method", "collation", "constraint", "extension", "operator class", "policy", "role", "setting"}
        | {"trigger", "type", "relation"}
    ),
    "42883": frozenset({"function"}),
    "42P01": frozenset({"relation"}),
}
_EXISTING: dict[str, frozenset[str]] = {
    "42701": frozenset({"column"}),
    "42710": frozenset({"constraint", "extension", "policy", "role", "trigger", "type", "value"}),
    "42723": frozenset({"function"}),
    "42P06": frozenset({"schema"}),
    "42P07": frozenset({"relation"}),
}
# What a file writes where the object may be there.
_GUARDS = {
    "extension": "write CREATE EXTENSION IF NOT EXISTS",
    "role": "roles belong to the whole server, and the migrations of another database may have made it. Make it only"
    " where it is missing: DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles …) …",
    "value": "write ADD VALUE IF NOT EXISTS",
}
TOLD = {*_MISSING, *_EXISTING, "0A000", "22023", "2BP01", "55006", "55P03", "57014", "58P01"}
_SHOWN = 5


class Place(NamedTuple):
    """What failed, as its tree, and where in its text the server points to (bytes), None where it points nowhere."""

    node: str
    fields: dict[str, Any]
    offset: int | None


class Earlier(NamedTuple):
    """What the same transaction had done before: a roll back has undone it, so the catalogue does not know it."""

    made: list[tuple[Ref, str]]  # and where: `line 3`
    dropped: list[tuple[Ref, str]]
    search_path: tuple[list[str], str] | None
    settings: dict[str, str]  # setting → where


class Circumstances(NamedTuple):
    """What else is known of the statement: its file and ledger, its time limit (0 is none), how long it ran."""

    survey: Survey
    migration: Migration
    statement_timeout_ms: int
    elapsed_s: float


class Cause:
    """One error, and the questions that it is told by."""

    def __init__(self, names: CatalogNames, place: Place, earlier: Earlier, at: Circumstances) -> None:
        self._names, self._place, self._earlier, self._at = names, place, earlier, at

    async def told(self, sqlstate: str) -> str | None:
        """The advice; None where there is none to give."""
        told = await self._told(sqlstate)
        return f"{told[0].upper()}{told[1:]}" if told else None

    async def _told(self, sqlstate: str) -> str | None:
        if sqlstate in _MISSING:
            return await self._missing(_MISSING[sqlstate])
        if sqlstate in _EXISTING:
            return await self._existing(_EXISTING[sqlstate])
        if self._place.node == "CreateExtensionStmt" and sqlstate in {"0A000", "22023", "58P01"}:
            return await self._no_extension(self._place.fields["extname"])
        of_state: dict[str, Callable[[], str | None]] = {
            "2BP01": self._dependent,
            "55006": self._in_use,
            "55P03": self._lock_timeout,
            "57014": self._cancelled,
        }
        return of_state[sqlstate]() if sqlstate in of_state else None

    # --- What is not there -------------------------------------------------------------------------------------------

    async def _missing(self, kinds: frozenset[str]) -> str | None:
        needed = {one.key: one for one in self._needed() if one.kind in kinds and not one.is_optional}
        refs = list(needed.values())
        if self._place.offset is not None and (pointed := [r for r in refs if (r.offset or 0) == self._place.offset]):
            refs = pointed
        absent = [one for one in refs if not await self._is_there(one)]
        lacking = [one for one in absent if _of_earlier(one, self._earlier.made) is None]
        if not lacking:
            return self._dropped_before(refs) or await self._no_such_arguments(refs)
        if len({(one.kind, one.name) for one in lacking}) > 1:
            return None  # which of them the server meant, only its words say
        return await self._lacks(lacking[0])

    def _needed(self) -> list[Ref]:
        return names.needed(self._place.node, self._place.fields)

    async def _is_there(self, ref: Ref) -> bool:
        if ref.kind == "column" and self._place.offset is not None and ref.of is None:
            return False  # the server points at it
        return await self._names.has(ref)

    def _dropped_before(self, refs: Sequence[Ref]) -> str | None:
        found = next(((r, place) for r in refs if (place := _of_earlier(r, self._earlier.dropped))), None)
        return f"The file itself drops or renames {_named(found[0])} ({found[1]})" if found else None

    async def _no_such_arguments(self, refs: Sequence[Ref]) -> str | None:
        """42883 of a function whose name is there; 42704 of an index over a type without a default operator class."""
        functions = {one.name: one for one in refs if one.kind == "function"}
        if len(functions) == 1:
            (name,) = functions
            if signatures := await self._names.signatures(functions[name]):
                shown = "; ".join(signatures[:_SHOWN])
                return (
                    f"the function {name} is there, but not for arguments of these types: cast them. There is {shown}"
                )
        node, fields = self._place.node, self._place.fields
        method = fields.get("accessMethod", "btree")
        if node == "IndexStmt" and any(one.kind == "access method" for one in refs):
            return (
                f"A type in the index has no default operator class for {method}: name one behind the column"
                f"{' (gin_trgm_ops for text, of the extension pg_trgm)' if method in {'gin', 'gist'} else ''}"
            )
        return None

    async def _lacks(self, ref: Ref) -> str | None:
        if ref.kind == "setting":
            return await self._unknown_setting(ref)
        if elsewhere := await self._names.elsewhere(ref):
            return self._off_the_path(ref, elsewhere)
        if extension := extension_of(ref.kind, ref.name):
            return await self._brought_by(ref, extension)
        return f"{_named(ref)} does not exist{await self._instead_of(ref)}"

    async def _instead_of(self, ref: Ref) -> str:
        """The rest of a sentence: what does exist."""
        candidates = [*await self._like(ref), *(r.name for r, _ in self._earlier.made if _may_be(ref, r))]
        if near := nearest(ref.name, candidates):
            if near.lower() == ref.name.lower():
                return f", but {identifier(near)} does: write it in double quotes, in the same case"
            return f"; the nearest that does is {near}"
        if ref.kind == "role":
            return " on this server. Roles belong to the whole server: make it (CREATE ROLE) before the start"
        if ref.of is not None and 0 < len(set(candidates)) <= _SHOWN:
            return f"; {ref.of[1]} has {', '.join(dict.fromkeys(candidates))}"
        return ", and nothing of a like name does"

    async def _like(self, ref: Ref) -> list[str]:
        if ref.kind != "column" or (
            ref.of is not None and await self._names.has(Ref("relation", ref.of[1], ref.of[0]))
        ):
            return await self._names.like(ref)
        # In a query: of any of its tables.
        tables = [(one.schema, one.name) for one in self._needed() if one.kind == "relation"]
        return [name for of in tables for name in await self._names.like(ref._replace(of=of))]

    def _off_the_path(self, ref: Ref, elsewhere: Sequence[tuple[str, str | None]]) -> str:
        schema, extension = elsewhere[0]
        path = ", ".join(self._names.path) or "nothing"
        of = f" (of the extension {extension})" if extension else ""
        if ref.schema is not None:
            return f"{_named(ref)} does not exist, but {schema}.{ref.name}{of} does: correct the schema"
        words = (
            f"{_named(ref)}{of} is in the schema {schema}, and the search path holds {path}: write {schema}.{ref.name}"
        )
        if self._earlier.search_path:
            return f"{words}, or correct the file's own search_path ({self._earlier.search_path[1]})"
        return f"{words}, or give the role a path that holds it (ALTER ROLE … SET search_path)"

    async def _brought_by(self, ref: Ref, extension: str) -> str | None:
        installed, is_available = await self._names.extension(extension)
        if installed is not None:
            return (
                f"The extension {extension} {installed} is installed and does not have {_named(ref)}:"
                " update it (ALTER EXTENSION … UPDATE)"
            )
        if not is_available:
            return await self._no_extension(extension, f"{_named(ref)} comes from the extension {extension}. ")
        return (
            f"{_named(ref)} comes from the extension {extension}, which this database does not have: set"
            f" EXTENSIONS={extension}, or write CREATE EXTENSION IF NOT EXISTS {identifier(extension)} before it"
        )

    async def _no_extension(self, extension: str, words: str = "") -> str | None:
        _, is_available = await self._names.extension(extension)
        if is_available:
            return None  # it was refused for another reason
        near = nearest(extension, await self._names.available_extensions())
        meant = f"; the nearest that it has is {near}" if near else ""
        return f"{words}This server has no files of the extension {extension}{meant}: use an image that includes it"

    async def _unknown_setting(self, ref: Ref) -> str:
        version = self._names.major
        since = SETTINGS_SINCE.get(ref.name)
        if since is not None and since > version:
            return (
                f"PostgreSQL knows the setting {ref.name} from version {since} on, and this server is {version}: take"
                " the line out (pg_dump of a newer version writes it), or upgrade the server"
            )
        near = nearest(ref.name, await self._names.like(ref))
        return f"PostgreSQL {version} has no setting {ref.name}{f'; the nearest is {near}' if near else ''}"

    # --- What is there already ---------------------------------------------------------------------------------------

    async def _existing(self, kinds: frozenset[str]) -> str | None:
        refs = [one for one in names.made(self._place.node, self._place.fields) if one.kind in kinds]
        if twice := next(((r, place) for r in refs if (place := _of_earlier(r, self._earlier.made))), None):
            return f"The file makes {_named(twice[0])} twice: it does so first at {twice[1]}"
        there = [one for one in refs if await self._names.has(one)]
        if len({one.key for one in there}) != 1:
            return None
        (ref,) = {one.key: one for one in there}.values()
        if ref.kind in _GUARDS:
            return f"{_named(ref)} is there already: {_GUARDS[ref.kind]}"
        is_now = await self._names.kind_of(ref)
        if is_now and ref.what and is_now != ref.what:
            return f"the name {ref.name} is that of the {is_now} that is there: one of the two needs another name"
        remedy = already_there(self._at.survey.plan, self._at.migration.name)
        return f"{_named(ref)} is there already, and the ledger does not have this file. {remedy}"

    # --- One SQLSTATE, told by the statement -------------------------------------------------------------------------

    def _dependent(self) -> str | None:
        node, fields = self._place.node, self._place.fields
        if node == "DropRoleStmt":
            return (
                "The role still owns objects or has rights, in the databases that the detail names: in each of them"
                " REASSIGN OWNED BY … TO …, then DROP OWNED BY …"
            )
        if node == "GrantStmt":
            return "The rights were passed on to others: REVOKE … CASCADE takes them from those, too"
        if node in {"DropStmt", "AlterTableStmt", "DropOwnedStmt"} and fields.get("behavior") != "DROP_CASCADE":
            return (
                "Other objects depend on it, which the detail names: drop or change them first, or write CASCADE if"
                " they may go with it"
            )
        return None

    def _in_use(self) -> str | None:
        node = self._place.node
        if node in {"DropdbStmt", "AlterDatabaseStmt", "RenameStmt", "CreatedbStmt"}:
            return "Other sessions are connected to that database: end them first"
        if node in {"AlterTableStmt", "IndexStmt", "DropStmt", "TruncateStmt", "ReindexStmt", "ClusterStmt"}:
            return (
                "Rows of the table were changed in the same transaction, and deferred constraints or triggers wait for"
                " its end: put this statement into a migration of its own, or SET CONSTRAINTS ALL IMMEDIATE before it"
            )
        return None

    def _lock_timeout(self) -> str | None:
        place = self._earlier.settings.get("lock_timeout")
        return (
            f"The file's own lock_timeout ({place}) was over: stop what holds the table, or raise it" if place else None
        )

    def _cancelled(self) -> str:
        place, limit_ms = self._earlier.settings.get("statement_timeout"), self._at.statement_timeout_ms
        if place:
            return f"The file's own statement_timeout ({place}) was over: raise it there"
        if limit_ms and self._at.elapsed_s * 1000 >= limit_ms:
            return f"The statement ran into MIGRATION_STATEMENT_TIMEOUT ({limit_ms / 1000:g} s): raise it (0 = none)"
        return "Somebody cancelled the statement (pg_cancel_backend): the server's log may say who"


def _of_earlier(ref: Ref, earlier: Sequence[tuple[Ref, str]]) -> str | None:
    return next((place for one, place in earlier if _may_be(ref, one) and one.name == ref.name), None)


def _may_be(ref: Ref, other: Ref) -> bool:
    """Whether two refs are of one kind and, as far as both say it, of one schema and relation."""
    same_schema = ref.schema is None or other.schema is None or ref.schema == other.schema
    same_of = ref.of is None or other.of is None or ref.of[1] == other.of[1]
    return ref.kind == other.kind and same_schema and same_of


def _named(ref: Ref) -> str:
    name = f"{ref.schema}.{ref.name}" if ref.schema else ref.name
    of = f" of {ref.of[1]}" if ref.of else ""
    return f"the {ref.what or ref.kind} {name}{of}"
