"""A migration file as statements: where each starts, what it is, and whether a transaction can hold it. Pure: no I/O.

Everything is decided by Postgres's own grammar (`parser.py`), never by a pattern over the text.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import re
import unicodedata
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from orchestrator.errors import MigrationError
from orchestrator.migrator.sql import parser
from orchestrator.migrator.sql.blocks import EndsTransactions, ends_transactions
from orchestrator.migrator.sql.dialect import pieces
from orchestrator.migrator.sql.effects import leaves_nothing
from orchestrator.migrator.sql.options import has_option, is_on
from orchestrator.redaction import HIDDEN, MASK, masked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_Read = TypeVar("_Read")
TransactionControl = Literal["begin", "commit", "rollback", "savepoint"]

# To Postgres a comment; to Drizzle the text that it splits a file at, wherever it stands (drizzle-orm, migrator.ts).
BREAKPOINT = b"--> statement-breakpoint"

# Text is parsed in windows of this size or a little more, so that a 50 MB data file never becomes one tree (which takes
# ten times its text). Measured: 32 KiB are parsed at 110 MB/s, 96 KiB and more, which fall out of the cache, at 75.
_WINDOW_BYTES = 32 * 1024
# scan.l, `space`.
_SPACE = b" \t\n\r\f\v"
_WIDTH_LIMIT = 120


class ConcurrentIndex(msgspec.Struct, frozen=True):
    """What a CREATE INDEX, DROP INDEX or REINDEX CONCURRENTLY names, as the catalogue has it; None if not given.

    REINDEX TABLE names a `table`, REINDEX SCHEMA a `schema`, REINDEX DATABASE nothing. `schema` is the one written: for
    create it is the table's, for an index without one the search path decides.
    """

    operation: Literal["create", "drop", "reindex"]
    schema: str | None
    name: str | None
    table: str | None
    if_not_exists: bool = False
    if_exists: bool = False


class Statement(msgspec.Struct, frozen=True, gc=False):
    """One statement of a file. It refers to the file's bytes and holds no copy: a data file has half a million of them.

    `line` and `column` (characters) count from 1 and name its first token; `index` counts from 1 within the file.
    `kind` is the command tag. `transactional` is False for what Postgres refuses inside a transaction block.
    `transaction_control` says what it does to the transaction around it; PREPARE TRANSACTION ends it like a commit.
    `changes_session` is True for what outlives the transaction in the session's settings; into a DO block nobody sees.
    `leaves_nothing` is True for what a roll back undoes to the last (`effects`).
    `is_known` is False for what the grammar here refuses and the server has not judged yet (`dialect`).
    `ends_transactions` says whether a CALL or DO commits or rolls back inside, which the server refuses in a block.
    `parsed` is its tree, where `statements` was asked to keep the trees.
    """

    raw: bytes
    byte_offset: int
    byte_length: int
    index: int
    line: int
    column: int
    kind: str
    transactional: bool
    transaction_control: TransactionControl | None
    changes_session: bool
    concurrent_index: ConcurrentIndex | None
    leaves_nothing: bool
    ends_transactions: EndsTransactions = "no"
    is_known: bool = True
    parsed: parser.Parsed | None = None

    def __repr__(self) -> str:
        return f"<{self.kind}, statement {self.index} at line {self.line}>"

    @property
    def text(self) -> str:
        """The text as it is sent, from the first token, without the final semicolon."""
        return self.raw[self.byte_offset : self.byte_end].decode()

    @property
    def fits_a_transaction(self) -> bool:
        """Whether it can stand between others in a transaction that is not its own."""
        return self.transactional and self.transaction_control in {None, "savepoint"}

    @property
    def byte_end(self) -> int:
        """Where it ends in the file; the semicolon, if there is one, comes after."""
        return self.byte_offset + self.byte_length


class SqlSyntaxError(MigrationError):
    """A migration file is not SQL that can be sent. Facts: path, line, column, near, reason, byte_offset.

    `is_grammar`: it is the grammar here that refuses it, and a server of another release may not.
    """

    def __init__(
        self, raw: bytes, *, path: str, byte_offset: int, reason: str, hint: str = "", is_grammar: bool = False
    ) -> None:
        self.path, self.reason, self.hint, self.is_grammar = path, _bounded(reason), hint, is_grammar
        self.byte_offset = byte_offset
        self.line, self.column = _line_and_column(raw, byte_offset)
        self.near = excerpt(raw, self.line, self.column)
        super().__init__(
            f"{path}:{self.line}:{self.column}: {self.reason}",
            remedy=hint or "Correct the file; nothing has been applied.",
            facts={
                "path": path,
                "line": self.line,
                "column": self.column,
                "near": self.near,
                "reason": self.reason,
                "byte_offset": byte_offset,
            },
        )


def statements(
    raw: bytes,
    *,
    path: str,
    keep_trees: bool = False,
    escapes: bool = False,
    keywords: frozenset[str] | None = None,
) -> tuple[Statement, ...]:
    """The statements of a migration file, in order; comments and empty chunks yield none.

    `escapes`: the session's standard_conforming_strings is off. With `keywords`, those of the server, a chunk that the
    grammar here refuses is no error: its statements are told apart by their tokens, and some may not be `is_known`.

    The file is cut into Drizzle's chunks first, and each chunk must be whole statements. Needs a few MB beside the
    result, for a file of any size with statements of ordinary size; with `keep_trees` ten times the file's size.
    Releases the GIL while it parses.

    Raises:
        SqlSyntaxError: for the first error; also for COPY FROM STDIN, whose data cannot come from a file.
    """
    _check_encoding(raw, path)
    found: list[Statement] = []
    at, line, column = 0, 1, 1
    read = functools.partial(_classify_window, escapes=b"\\'" in raw and _escapes(raw, default=escapes))
    refused = None if keywords is None else functools.partial(_classify_pieces, keywords=keywords)
    for window_offset, classified in _windows(raw, path, read, refused):
        for offset, end, kind, parsed in classified:
            here = window_offset + offset
            # Lines and columns are counted on from the last statement: each byte is looked at once.
            newlines = raw.count(b"\n", at, here)
            if newlines:
                line, column, at = line + newlines, 1, raw.rfind(b"\n", at, here) + 1
            if at < here:
                column += len(raw[at:here].decode())
            at = here
            if kind.copies_from_client:
                raise _copy_error(raw, path, here)
            found.append(
                Statement(
                    raw=raw,
                    byte_offset=here,
                    byte_length=end - offset,
                    index=len(found) + 1,
                    line=line,
                    column=column,
                    kind=kind.words,
                    transactional=kind.transactional,
                    transaction_control=kind.control,
                    changes_session=kind.changes_session,
                    concurrent_index=kind.concurrent_index,
                    leaves_nothing=kind.leaves_nothing,
                    ends_transactions=kind.ends_transactions,
                    is_known=kind.is_known,
                    parsed=parsed if keep_trees else None,
                )
            )
    return tuple(found)


def locate(statement: Statement, position: int | None) -> tuple[int, int]:
    """Line and column in the file of the server's 1-based character `position` in `statement.text`.

    Without a position, those of its first token; a position outside is taken as the nearest one inside.
    """
    if position is None or position <= 1:
        return statement.line, statement.column
    before = statement.text[: position - 1]
    newlines = before.count("\n")
    if not newlines:
        return statement.line, statement.column + len(before)
    return statement.line + newlines, len(before) - before.rfind("\n")


def excerpt(raw: bytes, line: int, column: int) -> str:
    """That line of the file, at most 120 characters of it without secrets, and below it a caret under `column`."""
    start = 0
    for _ in range(line - 1):
        start = raw.find(b"\n", start) + 1
    end = raw.find(b"\n", start)
    end = len(raw) if end < 0 else end
    # What names a secret may stand on a line before it.
    before = raw[max(0, start - _LOOKED_BACK_BYTES) : start].decode(errors="replace")
    text = masked(before + raw[start:end].decode(errors="replace"))[len(before) :].rstrip("\r")
    text = "".join(c if c == "\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    column = min(column, len(text) + 1)
    first = max(0, min(column - 1 - _WIDTH_LIMIT // 2, len(text) - _WIDTH_LIMIT))
    left, right = text[first : column - 1], text[column - 1 : first + _WIDTH_LIMIT]
    if left.endswith(MASK):
        right = right.lstrip(MASK)
    left = _MASKED.sub(HIDDEN, left)
    # Tabs stay tabs, so that the caret stands right at any tab width.
    shown = f"{left}{_MASKED.sub(HIDDEN, right)}"
    return f"{shown}\n{''.join(c if c == chr(9) else ' ' for c in left)}^"


_LOOKED_BACK_BYTES = 2000
_MASKED = re.compile(rf"{MASK}++")


def same_meaning_hash(raw: bytes, *, path: str) -> str:
    """A hash that is equal for two files exactly if they differ in white space and comments alone.

    By tokens, not by libpg_query's fingerprint, to which `DEFAULT 1` and `DEFAULT 2` are the same. A keyword in another
    case counts as a change, and so does anything inside a string or a function's body.

    About 4 MB/s: it is for files that were edited, not for every start.

    Raises:
        SqlSyntaxError: the file ends inside a string or a comment, or is not text.
    """
    _check_encoding(raw, path)
    digest = hashlib.sha256()
    for window_offset, tokens in _windows(raw, path, parser.tokens):
        for start, end in tokens:
            digest.update(raw[window_offset + start : window_offset + end])
            digest.update(b"\0")
    return digest.hexdigest()


# --- Windows ---------------------------------------------------------------------------------------------------------


def _chunks(raw: bytes) -> Iterator[tuple[int, int]]:
    start = 0
    while (end := raw.find(BREAKPOINT, start)) >= 0:
        yield start, end
        start = end + len(BREAKPOINT)
    yield start, len(raw)


def _windows(
    raw: bytes, path: str, read: Callable[[bytes], _Read], refused: Callable[[bytes], _Read] | None = None
) -> Iterator[tuple[int, _Read]]:
    """Cut `raw` into windows of whole statements, each within one chunk, and yield (offset, what `read` makes of it).

    A window ends after a semicolon. If the text up to there is complete, so it is for the file's own parse: a prefix
    that the scanner and the LR parser accept is read the same way whatever follows. If not (the semicolon stands in a
    string or a body, or the text is wrong), the window grows, at last to the end of the chunk, whose error is the
    file's; `refused`, if it is given, reads what has one.
    """
    for chunk_start, chunk_end in _chunks(raw):
        start, size = chunk_start, _WINDOW_BYTES
        while start < chunk_end:
            end = _window_end(raw, start, size, chunk_end)
            window = raw[start:end]
            try:
                result = read(window)
            except parser.GrammarError as error:
                if end < chunk_end:
                    size *= 2
                    continue
                wrong = _syntax_error(raw, path, start, window, error)
                if refused is None or not wrong.is_grammar:
                    raise wrong from None
                try:
                    result = refused(window)
                except parser.GrammarError as unfinished:
                    raise _syntax_error(raw, path, start, window, unfinished) from None
            del window
            yield start, result
            start, size = end, _WINDOW_BYTES


def _window_end(raw: bytes, start: int, size: int, chunk_end: int) -> int:
    if chunk_end - start <= size:
        return chunk_end
    # A semicolon at the end of a line first: inside a string it is rarer.
    if found := re.compile(rb";[\r\n]").search(raw, start + size, min(chunk_end, start + 4 * size)):
        return found.end()
    semicolon = start + size
    while (semicolon := raw.find(b";", semicolon, chunk_end)) >= 0:
        line_start = max(start, raw.rfind(b"\n", start, semicolon) + 1, raw.rfind(b"\r", start, semicolon) + 1)
        # In a line comment the window would end well and the next one begin inside the comment.
        if raw.find(b"--", line_start, semicolon) < 0:
            return semicolon + 1
        semicolon += 1
    return chunk_end


# --- What a statement is ---------------------------------------------------------------------------------------------


class _Kind(msgspec.Struct, frozen=True):
    words: str
    transactional: bool = True
    control: TransactionControl | None = None
    changes_session: bool = False
    concurrent_index: ConcurrentIndex | None = None
    copies_from_client: bool = False
    leaves_nothing: bool = False
    ends_transactions: EndsTransactions = "no"
    is_known: bool = True


_Classified = tuple[int, int, _Kind, "parser.Parsed | None"]

# In what the grammar has accepted, nothing else starts with these six letters, and they start nothing else.
_DATA = {word.encode(): _Kind(word) for word in ("INSERT", "UPDATE", "DELETE")}


def _classify_window(window: bytes, *, escapes: bool) -> list[_Classified]:
    """(offset, end, kind, tree) of each statement of `window`; plain data in what is long has no tree."""
    sets_config = b"set_config" in window.lower()
    found: list[_Classified]
    if escapes or len(window) <= _WINDOW_BYTES:
        parsed = parser.parse(window, escapes=escapes)
        found = [(one.offset, one.end, _classify(one, sets_config=sets_config), one) for one in parsed]
    else:
        # JSON trees would halve the speed: in what is more than a window long, only what is not plain data gets one.
        found = []
        for offset, end in parser.split(window):
            kind, one = None if sets_config else _DATA.get(window[offset : offset + 6].upper()), None
            if kind is None:
                (one,) = parser.parse(window[offset:end])
                kind = _classify(one, sets_config=sets_config)
            found.append((offset, end, kind, one))
    return [(offset, _trimmed(window, end), kind, one) for offset, end, kind, one in found]


def _classify_pieces(window: bytes, *, keywords: frozenset[str]) -> list[_Classified]:
    """The same for a window that the grammar refuses; raises GrammarError where it cannot be cut into statements."""
    sets_config = b"set_config" in window.lower()
    found = []
    for piece in pieces(window, keywords):
        if piece.parsed is None:
            ends: EndsTransactions = "maybe" if piece.words in {"CALL", "DO"} else "no"
            kind = _Kind(piece.words, ends_transactions=ends, is_known=False)
        else:
            kind = _classify(piece.parsed, sets_config=sets_config)
        found.append((piece.offset, piece.end, kind, piece.parsed))
    return found


_SETS_STRINGS = re.compile(
    rb"standard_conforming_strings(?:\s*=|\s+to\b|'\s*,)\s*'?(off|false|no|0|on|true|yes|1)\b", re.IGNORECASE
)


def _escapes(raw: bytes, *, default: bool) -> bool:
    """Whether a backslash escapes in the file's plain strings: it may say so itself, as pg_dump does at the top."""
    said = _SETS_STRINGS.search(raw)
    return said[1].lower() in {b"off", b"false", b"no", b"0"} if said else default


def _trimmed(window: bytes, end: int) -> int:
    while window[end - 1] in _SPACE:
        end -= 1
    return end


def _classify(one: parser.Parsed, *, sets_config: bool) -> _Kind:
    """What a statement is; `sets_config` says whether the name stands in the text at all."""
    if one.node in _QUERIES:
        return _Kind(_words(one.node), changes_session=sets_config and _sets_config(one.fields()))
    fields = one.fields()
    classify = _BY_NODE.get(one.node)
    kind = classify(fields) if classify else _Kind(_words(one.node))
    return msgspec.structs.replace(kind, leaves_nothing=True) if leaves_nothing(one.node, fields) else kind


_QUERIES = frozenset({"SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"})

# Command tags that are not the node's name in words (tcop/utility.c, CreateCommandTag).
_WORDS = {
    "AlterDatabaseRefreshCollStmt": "ALTER DATABASE",
    "AlterDatabaseSetStmt": "ALTER DATABASE",
    "AlterEnumStmt": "ALTER TYPE",
    "AlterEventTrigStmt": "ALTER EVENT TRIGGER",
    "AlterExtensionContentsStmt": "ALTER EXTENSION",
    "AlterFdwStmt": "ALTER FOREIGN DATA WRAPPER",
    "AlterForeignServerStmt": "ALTER SERVER",
    "AlterOpFamilyStmt": "ALTER OPERATOR FAMILY",
    "AlterRoleSetStmt": "ALTER ROLE",
    "AlterSeqStmt": "ALTER SEQUENCE",
    "AlterStatsStmt": "ALTER STATISTICS",
    "AlterTSConfigurationStmt": "ALTER TEXT SEARCH CONFIGURATION",
    "AlterTSDictionaryStmt": "ALTER TEXT SEARCH DICTIONARY",
    "AlterTableMoveAllStmt": "ALTER TABLE",
    "AlterTableSpaceOptionsStmt": "ALTER TABLESPACE",
    "CheckPointStmt": "CHECKPOINT",
    "ClosePortalStmt": "CLOSE CURSOR",
    "CompositeTypeStmt": "CREATE TYPE",
    "ConstraintsSetStmt": "SET CONSTRAINTS",
    "CreateAmStmt": "CREATE ACCESS METHOD",
    "CreateEnumStmt": "CREATE TYPE",
    "CreateEventTrigStmt": "CREATE EVENT TRIGGER",
    "CreateFdwStmt": "CREATE FOREIGN DATA WRAPPER",
    "CreateForeignServerStmt": "CREATE SERVER",
    "CreateOpClassStmt": "CREATE OPERATOR CLASS",
    "CreateOpFamilyStmt": "CREATE OPERATOR FAMILY",
    "CreatePLangStmt": "CREATE LANGUAGE",
    "CreateRangeStmt": "CREATE TYPE",
    "CreateRoleStmt": "CREATE ROLE",
    "CreateSeqStmt": "CREATE SEQUENCE",
    "CreateStatsStmt": "CREATE STATISTICS",
    "CreateStmt": "CREATE TABLE",
    "CreateTableSpaceStmt": "CREATE TABLESPACE",
    "CreateTrigStmt": "CREATE TRIGGER",
    "CreatedbStmt": "CREATE DATABASE",
    "DropTableSpaceStmt": "DROP TABLESPACE",
    "DropdbStmt": "DROP DATABASE",
    "LockStmt": "LOCK TABLE",
    "RefreshMatViewStmt": "REFRESH MATERIALIZED VIEW",
    "RuleStmt": "CREATE RULE",
    "SecLabelStmt": "SECURITY LABEL",
    "TruncateStmt": "TRUNCATE TABLE",
    "VariableShowStmt": "SHOW",
    "ViewStmt": "CREATE VIEW",
}

# Object types whose words are not their name (parsenodes.h, ObjectType).
_OBJECT_WORDS = {
    "OBJECT_ATTRIBUTE": "TYPE",
    "OBJECT_COLUMN": "TABLE",
    "OBJECT_DOMCONSTRAINT": "DOMAIN",
    "OBJECT_FDW": "FOREIGN DATA WRAPPER",
    "OBJECT_FOREIGN_SERVER": "SERVER",
    "OBJECT_LARGEOBJECT": "LARGE OBJECT",
    "OBJECT_MATVIEW": "MATERIALIZED VIEW",
    "OBJECT_OPCLASS": "OPERATOR CLASS",
    "OBJECT_OPFAMILY": "OPERATOR FAMILY",
    "OBJECT_STATISTIC_EXT": "STATISTICS",
    "OBJECT_TABCONSTRAINT": "TABLE",
    "OBJECT_TSCONFIGURATION": "TEXT SEARCH CONFIGURATION",
    "OBJECT_TSDICTIONARY": "TEXT SEARCH DICTIONARY",
    "OBJECT_TSPARSER": "TEXT SEARCH PARSER",
    "OBJECT_TSTEMPLATE": "TEXT SEARCH TEMPLATE",
}


def _words(node: str) -> str:
    return _WORDS.get(node) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", node.removesuffix("Stmt")).upper()


def _object_words(object_type: str) -> str:
    return _OBJECT_WORDS.get(object_type) or object_type.removeprefix("OBJECT_").replace("_", " ")


def _last_names(parts: list[dict[str, Any]]) -> tuple[str | None, str]:
    names = [str(part["String"].get("sval", "")) for part in parts]
    return (names[-2] if len(names) > 1 else None), names[-1]


# What cannot run in a transaction block: the callers of PreventInTransactionBlock in Postgres 18.


def _create_index(fields: dict[str, Any]) -> _Kind:
    if not fields.get("concurrent"):
        return _Kind("CREATE INDEX")
    relation = fields["relation"]
    index = ConcurrentIndex(
        operation="create",
        schema=relation.get("schemaname"),
        name=fields.get("idxname"),
        table=relation["relname"],
        if_not_exists=fields.get("if_not_exists", False),
    )
    return _Kind("CREATE INDEX CONCURRENTLY", transactional=False, concurrent_index=index)


def _drop(fields: dict[str, Any]) -> _Kind:
    words = f"DROP {_object_words(fields['removeType'])}"
    if not fields.get("concurrent"):
        return _Kind(words)
    # One at a time: Postgres refuses several with CONCURRENTLY (0A000), so the first stands for them.
    schema, name = _last_names(fields["objects"][0]["List"]["items"])
    index = ConcurrentIndex("drop", schema, name, table=None, if_exists=fields.get("missing_ok", False))
    return _Kind(f"{words} CONCURRENTLY", transactional=False, concurrent_index=index)


def _reindex(fields: dict[str, Any]) -> _Kind:
    what = fields["kind"].removeprefix("REINDEX_OBJECT_")
    if not is_on(fields.get("params"), "concurrently"):
        # These three commit after each table; of a partitioned table or index only the catalogue knows.
        return _Kind("REINDEX", transactional=what not in {"SCHEMA", "DATABASE", "SYSTEM"})
    relation = fields.get("relation", {})
    index = ConcurrentIndex(
        operation="reindex",
        schema=fields.get("name") if what == "SCHEMA" else relation.get("schemaname"),
        name=relation.get("relname") if what == "INDEX" else None,
        table=relation.get("relname") if what == "TABLE" else None,
    )
    return _Kind("REINDEX CONCURRENTLY", transactional=False, concurrent_index=index)


def _alter_table(fields: dict[str, Any]) -> _Kind:
    detaches = any(
        command["AlterTableCmd"].get("def", {}).get("PartitionCmd", {}).get("concurrent")
        for command in fields.get("cmds", ())
    )
    return _Kind(f"ALTER {_object_words(fields['objtype'])}", transactional=not detaches)


def _create_subscription(fields: dict[str, Any]) -> _Kind:
    options = fields.get("options")
    connects = is_on(options, "connect", default=True)
    return _Kind("CREATE SUBSCRIPTION", transactional=not is_on(options, "create_slot", default=connects))


def _alter_subscription(fields: dict[str, Any]) -> _Kind:
    options, kind = fields.get("options"), fields["kind"].removeprefix("ALTER_SUBSCRIPTION_")
    if kind in {"SET_PUBLICATION", "ADD_PUBLICATION", "DROP_PUBLICATION"}:
        outside = is_on(options, "refresh", default=True)
    else:
        outside = kind.startswith("REFRESH") or has_option(options, "failover", "two_phase")
    return _Kind("ALTER SUBSCRIPTION", transactional=not outside)


_TRANSACTION: dict[str, _Kind] = {
    "BEGIN": _Kind("BEGIN", control="begin"),
    "START": _Kind("START TRANSACTION", control="begin"),
    "COMMIT": _Kind("COMMIT", control="commit"),
    "ROLLBACK": _Kind("ROLLBACK", control="rollback"),
    "SAVEPOINT": _Kind("SAVEPOINT", control="savepoint"),
    "RELEASE": _Kind("RELEASE", control="savepoint"),
    "ROLLBACK_TO": _Kind("ROLLBACK TO", control="savepoint"),
    "PREPARE": _Kind("PREPARE TRANSACTION", control="commit"),
    "COMMIT_PREPARED": _Kind("COMMIT PREPARED", transactional=False),
    "ROLLBACK_PREPARED": _Kind("ROLLBACK PREPARED", transactional=False),
}


def _transaction(fields: dict[str, Any]) -> _Kind:
    kind = _TRANSACTION[fields["kind"].removeprefix("TRANS_STMT_")]
    return _Kind(f"{kind.words} AND CHAIN", control=kind.control) if fields.get("chain") else kind


def _set(fields: dict[str, Any]) -> _Kind:
    # SET TRANSACTION … is for the present transaction, though it is not written LOCAL.
    lasts = not fields.get("is_local") and fields.get("name") not in {"TRANSACTION", "TRANSACTION SNAPSHOT"}
    return _Kind("RESET" if fields["kind"].startswith("VAR_RESET") else "SET", changes_session=lasts)


def _sets_config(tree: Any) -> bool:
    """Whether `set_config(name, value, is_local)` is called with anything but a literal true as its third argument."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending += node
        elif isinstance(node, dict):
            pending += node.values()
            call = node.get("FuncCall")
            if call and call["funcname"][-1]["String"].get("sval") == "set_config" and not _is_local(call):
                return True
    return False


def _is_local(call: dict[str, Any]) -> bool:
    local: dict[str, Any] = {}
    for index, argument in enumerate(call.get("args", ())):
        named = argument.get("NamedArgExpr")
        if named and named["name"] == "is_local":
            local = named["arg"]
        elif index == 2 and not named:  # noqa: PLR2004 (the third argument)
            local = argument
    return bool(local.get("A_Const", {}).get("boolval", {}).get("boolval", False))


def _copy(fields: dict[str, Any]) -> _Kind:
    client = fields.get("is_from", False) and not fields.get("is_program") and "filename" not in fields
    return _Kind("COPY", copies_from_client=client)


_BY_NODE: dict[str, Callable[[dict[str, Any]], _Kind]] = {
    "AlterDatabaseStmt": lambda f: _Kind("ALTER DATABASE", not has_option(f.get("options"), "tablespace")),
    "AlterDomainStmt": lambda _: _Kind("ALTER DOMAIN"),
    "AlterFunctionStmt": lambda f: _Kind(f"ALTER {_object_words(f['objtype'])}"),
    "AlterObjectDependsStmt": lambda f: _Kind(f"ALTER {_object_words(f['objectType'])}"),
    "AlterObjectSchemaStmt": lambda f: _Kind(f"ALTER {_object_words(f['objectType'])}"),
    "AlterOwnerStmt": lambda f: _Kind(f"ALTER {_object_words(f['objectType'])}"),
    "AlterSubscriptionStmt": _alter_subscription,
    "AlterSystemStmt": lambda _: _Kind("ALTER SYSTEM", transactional=False),
    "AlterTableStmt": _alter_table,
    "CallStmt": lambda _: _Kind("CALL", ends_transactions="maybe"),
    # Without a table it commits after each one; of a partitioned table only the catalogue knows.
    "ClusterStmt": lambda f: _Kind("CLUSTER", transactional="relation" in f),
    "CopyStmt": _copy,
    "CreateFunctionStmt": lambda f: _Kind("CREATE PROCEDURE" if f.get("is_procedure") else "CREATE FUNCTION"),
    "CreateSubscriptionStmt": _create_subscription,
    "CreateTableAsStmt": lambda f: _Kind(
        "CREATE MATERIALIZED VIEW" if f.get("objtype") == "OBJECT_MATVIEW" else "CREATE TABLE AS"
    ),
    "CreateTableSpaceStmt": lambda _: _Kind("CREATE TABLESPACE", transactional=False),
    "CreatedbStmt": lambda _: _Kind("CREATE DATABASE", transactional=False),
    "DefineStmt": lambda f: _Kind(f"CREATE {_object_words(f['kind'])}"),
    # DISCARD ALL also lets go of every advisory lock, the migrator's own too.
    "DiscardStmt": lambda f: _Kind(
        f["target"].replace("_", " "), transactional=f["target"] != "DISCARD_ALL", changes_session=True
    ),
    "DoStmt": lambda f: _Kind("DO", ends_transactions=ends_transactions(f)),
    "DropStmt": _drop,
    # With a slot, which only the catalogue knows, it cannot; outside a transaction it always can.
    "DropSubscriptionStmt": lambda _: _Kind("DROP SUBSCRIPTION", transactional=False),
    "DropTableSpaceStmt": lambda _: _Kind("DROP TABLESPACE", transactional=False),
    "DropdbStmt": lambda _: _Kind("DROP DATABASE", transactional=False),
    "FetchStmt": lambda f: _Kind("MOVE" if f.get("ismove") else "FETCH"),
    "GrantRoleStmt": lambda f: _Kind("GRANT ROLE" if f.get("is_grant") else "REVOKE ROLE"),
    "GrantStmt": lambda f: _Kind("GRANT" if f.get("is_grant") else "REVOKE"),
    "IndexStmt": _create_index,
    "ListenStmt": lambda _: _Kind("LISTEN", changes_session=True),
    "ReindexStmt": _reindex,
    "RenameStmt": lambda f: _Kind(
        f"ALTER {_object_words(f['relationType'] if f['renameType'] == 'OBJECT_COLUMN' else f['renameType'])}"
    ),
    "TransactionStmt": _transaction,
    "UnlistenStmt": lambda _: _Kind("UNLISTEN", changes_session=True),
    "VacuumStmt": lambda f: _Kind("VACUUM", transactional=False) if f.get("is_vacuumcmd") else _Kind("ANALYZE"),
    "VariableSetStmt": _set,
}


# --- Errors ----------------------------------------------------------------------------------------------------------

_COPY_HINT = (
    "Data for COPY … FROM STDIN cannot stand in a migration: write INSERT statements "
    "(pg_dump --inserts), or COPY from a file that the server can read."
)
_BREAKPOINT_HINT = (
    "Drizzle splits a file at `--> statement-breakpoint` wherever it stands, and here it stands inside a statement: "
    "take it out, or put it after the end of the statement."
)
# Keywords that begin a statement and nothing else that usually begins a line.
_STATEMENT_STARTS = frozenset(
    "ALTER ANALYZE BEGIN CALL COMMENT COMMIT COPY CREATE DELETE DO DROP GRANT INSERT LOCK MERGE REFRESH "  # noqa: SIM905 (readable)
    "REINDEX REVOKE ROLLBACK SELECT SET TRUNCATE UPDATE VACUUM WITH".split()
)


def _bounded(text: str) -> str:
    """The parser quotes what it did not understand, up to the whole rest of a file; this is one line of it."""
    first, *rest = text.splitlines() or [""]
    return first if len(first) <= _WIDTH_LIMIT and not rest else f"{first[: _WIDTH_LIMIT - 1]}…"


def _line_and_column(raw: bytes, byte_offset: int) -> tuple[int, int]:
    line_start = raw.rfind(b"\n", 0, byte_offset) + 1
    return raw.count(b"\n", 0, byte_offset) + 1, len(raw[line_start:byte_offset].decode(errors="replace")) + 1


def _check_encoding(raw: bytes, path: str) -> None:
    def refuse(byte_offset: int, reason: str, hint: str) -> SqlSyntaxError:
        return SqlSyntaxError(raw, path=path, byte_offset=byte_offset, reason=reason, hint=hint)

    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise refuse(0, "the file is UTF-16", "Save the file as UTF-8 without a byte order mark.")
    if raw.startswith(codecs.BOM_UTF8):
        raise refuse(
            0,
            "the file begins with a UTF-8 byte order mark, which is a syntax error to Postgres",
            "Save the file as UTF-8 without a byte order mark.",
        )
    if (nul := raw.find(b"\0")) >= 0:
        raise refuse(nul, f"NUL byte at byte offset {nul}", "Postgres has no NUL in text; is this file SQL in UTF-8?")
    if raw.isascii():
        return
    # Piece by piece: as one str the file would need up to four times its size.
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(raw), 1 << 20):
        kept = len(decoder.getstate()[0])
        try:
            decoder.decode(raw[start : start + (1 << 20)], final=start + (1 << 20) >= len(raw))
        except UnicodeDecodeError as error:
            at = start - kept + error.start
            raise refuse(at, f"not UTF-8 at byte offset {at}", "Save the file as UTF-8.") from None


def _copy_error(raw: bytes, path: str, byte_offset: int) -> SqlSyntaxError:
    reason = "COPY … FROM STDIN in a migration"
    return SqlSyntaxError(raw, path=path, byte_offset=byte_offset, reason=reason, hint=_COPY_HINT)


def _syntax_error(raw: bytes, path: str, start: int, window: bytes, error: parser.GrammarError) -> SqlSyntaxError:
    """The error of `window`, which stands at `start` and ends where its chunk does."""
    # The parser counts characters, from 1; all else here is bytes.
    before = len(window.decode()[: error.position - 1].encode()) if error.position else len(window)
    if (copy := _copy_before(window, before)) is not None:
        return _copy_error(raw, path, start + copy)
    cut_off = error.unterminated or error.at_end
    if cut_off and raw.startswith(BREAKPOINT, start + len(window)):
        hint = _BREAKPOINT_HINT
    else:
        hint = _hint(window, before, error)
    if error.at_end:
        before = len(window[:before].rstrip())
    return SqlSyntaxError(raw, path=path, byte_offset=start + before, reason=error.message, hint=hint, is_grammar=True)


def refused_by_server(
    raw: bytes, statement: Statement, path: str, message: str, position: int | None
) -> SqlSyntaxError:
    """The error of a statement that the server's own parser refuses, at its character `position`."""
    window = raw[: statement.byte_end]
    before = len(window[: statement.byte_offset].decode())
    error = parser.GrammarError(message, before + position if position else 0)
    return _syntax_error(raw, path, 0, window, error)


def _copy_before(window: bytes, error_offset: int) -> int | None:
    """Where the last statement before the error starts, if it is a COPY FROM STDIN: then the error is in its data."""
    semicolon = error_offset
    for _ in range(8):
        semicolon = window.rfind(b";", 0, semicolon)
        if semicolon < 0:
            return None
        try:
            parsed = parser.parse(window[: semicolon + 1])
        except parser.GrammarError:
            continue
        if parsed and parsed[-1].node == "CopyStmt" and _copy(parsed[-1].fields()).copies_from_client:
            return parsed[-1].offset
        return None
    return None


_FOREIGN_CHARACTERS = {
    b"\\": "A backslash command is for psql alone: take it out (pg_dump writes some: \\connect, \\restrict).",
    b"`": "Backticks are MySQL's: Postgres quotes names with \".",
}
_CONFLICT_MARKS = frozenset({"<<<<<<<", "|||||||", "=======", ">>>>>>>"})
# No-break spaces, soft hyphen, zero-width characters, directional marks, a byte order mark inside: to the scanner they
# are letters.
_INVISIBLE = re.compile("[\u00a0\u00ad\u2007\u200b-\u200f\u202a-\u202f\u2060-\u2064\ufeff]")
_PSQL_VARIABLE = re.compile(rb":(?:\w+|'\w+'|\"\w+\")")


def _hint(window: bytes, before: int, error: parser.GrammarError) -> str:
    """What the person should do, where the text at the error tells."""
    line_start = window.rfind(b"\n", 0, before) + 1
    line = window[line_start : before + _WIDTH_LIMIT].decode(errors="replace").split("\n", 1)[0].strip()
    words = line.replace("(", " ").split()
    first = words[0].upper() if words else ""
    at = window[before : before + 1]
    if error.unterminated:
        return "The string, quoted name or comment that begins here is never closed."
    if strange := _strange(line, window, before):
        return strange
    if at in _FOREIGN_CHARACTERS:
        return _FOREIGN_CHARACTERS[at]
    if first == "DELIMITER":
        return "DELIMITER is for MySQL's client: take it out; Postgres quotes bodies with $$."
    # The wrong token is the first of its line, or follows it: a keyword can still be read as an alias.
    if first in _STATEMENT_STARTS and len(window[line_start:before].split()) <= 1 and window[:line_start].strip():
        return "Is a semicolon missing before this line?"
    return ""


def _strange(line: str, window: bytes, before: int) -> str:
    """What the text holds that is no SQL of anybody's."""
    if (line.split() or [""])[0] in _CONFLICT_MARKS:
        return "A merge conflict is left in the file: keep one of its two sides, and take the marks out."
    if hidden := _INVISIBLE.search(line):
        return (
            f"The line holds an invisible character, U+{ord(hidden[0]):04X} ({unicodedata.name(hidden[0]).lower()}),"
            " which often comes with text that is copied from a web page: type the line anew."
        )
    if _PSQL_VARIABLE.match(window, before):
        return "A variable (:name) is replaced by psql alone: write the value itself."
    return ""
