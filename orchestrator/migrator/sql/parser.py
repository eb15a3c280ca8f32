"""Postgres's own parser (libpg_query, as `postgast` ships it): trees, bounds, tokens. Touches one shared library.

The library is loaded by ctypes, without importing `postgast`: its Python layer builds protobuf descriptors for 700 node
types (tens of ms at start), and all that is needed here is JSON, which libpg_query writes itself. ctypes lets go of the
GIL during a call, and libpg_query keeps its state per thread, so parsing may run in any thread.

Nothing that a file says may end the process. libpg_query writes a tree by recursion and never checks the stack: a sum
of 70,000 terms ended the process with a segmentation fault. So a large text is parsed on a stack that is large enough
for any tree that a text of its length can have, and a deep tree is cut off at a depth that no caller looks below,
before it becomes Python objects.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import itertools
import re
import struct
import sys
import threading
from ctypes import POINTER, Structure, c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_Result = TypeVar("_Result")

# The names that postgast/native.py looks for.
_LIBRARY_NAMES = {"darwin": "libpg_query.dylib", "win32": "pg_query.dll"}
# pg_query.proto, enum Token.
_SQL_COMMENT, _C_COMMENT = 275, 276
# pg_query.h, PG_QUERY_DISABLE_STANDARD_CONFORMING_STRINGS.
_BACKSLASH_ESCAPES = 32


class GrammarError(Exception):
    """The text is not SQL. `position` is the server's: a 1-based count of characters, 0 where it has none."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.message = message
        self.position = position

    @property
    def unterminated(self) -> bool:
        """Whether the text ended inside a string, a quoted name or a comment.

        The scanner has no code for it; its messages are constants of the library that we pin, and never localised.
        """
        return self.message.startswith("unterminated ")

    @property
    def at_end(self) -> bool:
        """Whether the text ended where the grammar wanted more."""
        return self.message.endswith("at end of input")


class Parsed(NamedTuple):
    """One statement: where its first token and its end are (bytes), the name of its node, and the node as JSON."""

    offset: int
    end: int
    node: str
    body: msgspec.Raw

    def fields(self) -> dict[str, Any]:
        """The node's fields; those with a zero value are absent, and what is nested too deep is empty."""
        fields: dict[str, Any] = msgspec.json.decode(_shallow(bytes(self.body)))
        return fields


def parse(sql: bytes, *, escapes: bool = False) -> list[Parsed]:
    """The statements of `sql` with their trees; empty ones are left out. About 10 bytes of JSON to a byte of SQL.

    `sql` is UTF-8 without NUL bytes. `escapes`: a backslash escapes in plain strings, as it does where
    standard_conforming_strings is off.

    Raises:
        GrammarError: for the first error in it.
    """
    return _on_a_large_stack(functools.partial(_parse, options=_BACKSLASH_ESCAPES if escapes else 0), sql)


def _parse(sql: bytes, options: int) -> list[Parsed]:
    library = _library()
    result = library.pg_query_parse_opts(sql, options)
    try:
        _raise_error(result.error)
        try:
            tree = _tree_decoder().decode(result.tree)
        except RecursionError:
            tree = _tree_decoder().decode(_shallow(result.tree))
    finally:
        library.pg_query_free_parse_result(result)
    return [
        # A length of 0 says: up to the end.
        Parsed(one.stmt_location, one.stmt_location + one.stmt_len if one.stmt_len else len(sql), node, body)
        for one in tree.stmts
        for node, body in one.stmt.items()
    ]


def split(sql: bytes) -> list[tuple[int, int]]:
    """As `parse`, but only (offset, end) of each statement, in bytes: the same check at two to three times the speed.

    Not libpg_query's split_with_scanner, which cuts the body of a `BEGIN ATOMIC` function at its first semicolon.
    """
    library = _library()
    result = library.pg_query_split_with_parser(sql)
    try:
        _raise_error(result.error)
        # The structs stand apart in memory; reading them by address is three times as fast as by ctypes' attributes.
        addresses = ctypes.cast(result.stmts, POINTER(c_void_p))[: result.n_stmts]
        pairs = [_SPLIT_STATEMENT.unpack(ctypes.string_at(address, _SPLIT_STATEMENT.size)) for address in addresses]
        return [(location, location + length) for location, length in pairs]
    finally:
        library.pg_query_free_split_result(result)


def tokens(sql: bytes) -> Iterator[tuple[int, int]]:
    """(offset, end) in bytes of each token of `sql` that is not a comment.

    Raises:
        GrammarError: the text ends inside a string or a comment.
    """
    return _tokens(sql, lambda token, _: token not in {_SQL_COMMENT, _C_COMMENT})


def keywords(sql: bytes) -> Iterator[tuple[int, int]]:
    """(offset, end) in bytes of each keyword of `sql`, reserved or not; raises as `tokens`."""
    return _tokens(sql, lambda _, keyword_kind: keyword_kind != 0)


def plpgsql(function: bytes) -> Any:
    """The PL/pgSQL tree of a CREATE FUNCTION or DO statement, as libpg_query writes it.

    Raises:
        GrammarError: it is no PL/pgSQL that can be read without a catalogue.
    """
    return _on_a_large_stack(_plpgsql, function)


def _plpgsql(function: bytes) -> Any:
    library = _library()
    result = library.pg_query_parse_plpgsql(function)
    try:
        _raise_error(result.error)
        return msgspec.json.decode(_shallow(result.functions))
    finally:
        library.pg_query_free_plpgsql_parse_result(result)


def comments(sql: bytes) -> list[tuple[int, int]]:
    """(offset, end) in bytes of each comment of `sql`; raises as `tokens`."""
    return list(_tokens(sql, lambda token, _: token in {_SQL_COMMENT, _C_COMMENT}))


def _tokens(sql: bytes, is_wanted: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
    library = _library()
    result = library.pg_query_scan(sql)
    try:
        _raise_error(result.error)
        packed = ctypes.string_at(result.tokens.data, result.tokens.length)
    finally:
        library.pg_query_free_scan_result(result)
    return _unpack_tokens(packed, is_wanted)


def _unpack_tokens(packed: bytes, is_wanted: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
    """Read pg_query.proto's ScanResult: version = 1, tokens = 2, each {start 1, end 2, token 4, keyword_kind 5}."""
    position, size = 0, len(packed)
    while position < size:
        tag, position = _varint(packed, position)
        value, position = _varint(packed, position)
        if tag != 0x12:  # noqa: PLR2004 (field 2, length-delimited: a token; the version is the only other field)
            continue
        end = position + value
        fields: dict[int, int] = {}
        while position < end:
            tag, position = _varint(packed, position)
            fields[tag >> 3], position = _varint(packed, position)
        if is_wanted(fields.get(4, 0), fields.get(5, 0)):
            yield fields.get(1, 0), fields.get(2, 0)


def _varint(packed: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = packed[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 (the top bit says that more follow)
            return value, position
        shift += 7


# Measured: a term of a sum takes 120 bytes of stack and two bytes of text, and no other tree takes more.
_STACK_BYTES_A_BYTE = 256
_STACK_BYTES = 16 << 20
# The stack of any thread holds the tree of such a text: the smallest stacks (musl, some limits) are 1 MiB.
_PLAIN_BYTES = 8 * 1024
_stack_size = threading.Lock()


def _on_a_large_stack(work: Callable[[bytes], _Result], sql: bytes) -> _Result:
    """Return `work(sql)`; a large text is worked on in a thread whose stack no tree of it can overflow.

    Raises what `work` raises, and GrammarError where the system grants no such stack.
    """
    if len(sql) <= _PLAIN_BYTES:
        return work(sql)
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work(sql))
        except BaseException as error:  # noqa: BLE001 it is raised where it is waited for
            errors.append(error)

    thread = threading.Thread(target=run, name="parser", daemon=True)
    with _stack_size:  # one setting for the process
        before = threading.stack_size(_STACK_BYTES + _STACK_BYTES_A_BYTE * len(sql))
        try:
            thread.start()
        except RuntimeError as error:
            raise GrammarError("the statement is too large to be parsed here", 0) from error
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


_DEPTH_LIMIT = 120
_SMALL_TREE_BYTES = 4096  # decoder and walkers can follow any tree of this size to its end
_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]')
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
# The nodes that can stand in one another without end, in a place where any other node can stand as well.
_NESTING = re.compile(
    rb'\{"(?:A_ArrayExpr|A_Expr|A_Indirection|BoolExpr|BooleanTest|CaseExpr|CoalesceExpr|CollateClause|FuncCall'
    rb"|GroupingFunc|JoinExpr|Json\w+|MinMaxExpr|NamedArgExpr|NullTest|PLpgSQL_stmt_\w+|RangeSubselect|RowExpr|SelectStmt"
    rb'|SubLink|TypeCast|XmlExpr|XmlSerialize)":'
)
_ARM = re.compile(rb'"[lr]arg":\{"[a-z]')
_UNKNOWN_NODE = b'{"Unknown":{}'


def _shallow(tree: bytes) -> bytes:
    """The JSON with a node `Unknown` in the place of each expression that is nested deeper than the limit."""
    if len(tree) < _SMALL_TREE_BYTES:
        return tree
    # Brackets in strings are counted as well; at worst, a tree that is not deep takes the slower way.
    brackets = tree.translate(None, _NOT_BRACKETS)
    if max(itertools.accumulate(map(_STEP.__getitem__, brackets)), default=0) <= _DEPTH_LIMIT:
        return tree
    kept: list[bytes] = []
    depth = start = cut_at = 0
    for found in _BRACKET.finditer(tree):
        what, position = found[0], found.start()
        if what in (b"{", b"["):
            depth += 1
            if cut_at or depth <= _DEPTH_LIMIT:
                continue
            if _NESTING.match(tree, position):
                kept += [tree[start:position], _UNKNOWN_NODE]
            # The arms of a UNION are bare; whatever else is nested so deep has no name here.
            elif _ARM.match(tree, position - 7) or depth > 2 * _DEPTH_LIMIT:
                kept.append(tree[start : position + 1])
            else:
                continue
            cut_at = depth
        elif what in (b"}", b"]"):
            if depth == cut_at:
                start, cut_at = position, 0
            depth -= 1
    kept.append(tree[start:])
    return b"".join(kept)


def _raise_error(error: Any) -> None:
    if error:
        contents = error.contents
        raise GrammarError(contents.message.decode(errors="replace"), contents.cursor_position)


# What pg_query.h declares; the struct layouts are those of libpg_query 17 and 18.
class _Error(Structure):
    _fields_ = (
        ("message", c_char_p),
        ("function", c_char_p),
        ("file", c_char_p),
        ("line", c_int),
        ("cursor_position", c_int),
        ("context", c_char_p),
    )


class _ParseResult(Structure):
    _fields_ = (("tree", c_char_p), ("stderr", c_char_p), ("error", POINTER(_Error)))


# PgQuerySplitStmt: location and length.
_SPLIT_STATEMENT = struct.Struct("ii")


class _SplitResult(Structure):
    _fields_ = (
        ("stmts", c_void_p),
        ("n_stmts", c_int),
        ("stderr", c_char_p),
        ("error", POINTER(_Error)),
    )


class _Packed(Structure):
    _fields_ = (("length", c_size_t), ("data", c_void_p))


class _ScanResult(Structure):
    _fields_ = (("tokens", _Packed), ("stderr", c_char_p), ("error", POINTER(_Error)))


class _PlpgsqlResult(Structure):
    _fields_ = (("functions", c_char_p), ("error", POINTER(_Error)))


class _TreeStatement(msgspec.Struct):
    stmt: dict[str, msgspec.Raw]
    stmt_location: int = 0
    stmt_len: int = 0


class _Tree(msgspec.Struct):
    stmts: list[_TreeStatement]


@functools.cache
def _tree_decoder() -> msgspec.json.Decoder[_Tree]:
    return msgspec.json.Decoder(_Tree)


@functools.cache
def _library() -> ctypes.CDLL:
    """Load the library once for the process: it is a constant, and 14 MB to map."""
    name = _LIBRARY_NAMES.get(sys.platform, "libpg_query.so")
    # find_spec looks for the package and does not run it.
    spec = importlib.util.find_spec("postgast")
    places = [Path(place) / name for place in (spec.submodule_search_locations or [])] if spec else []
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise OrchestratorError(
            f"Postgres's parser ({name} of the Python package postgast) is not installed",
            remedy="Install postgast from its wheel: pip install --only-binary postgast 'postgast>=0.2,<0.3'.",
        )
    library = ctypes.CDLL(str(found))
    for function, free, result in (
        ("pg_query_parse_opts", "pg_query_free_parse_result", _ParseResult),
        ("pg_query_split_with_parser", "pg_query_free_split_result", _SplitResult),
        ("pg_query_scan", "pg_query_free_scan_result", _ScanResult),
        ("pg_query_parse_plpgsql", "pg_query_free_plpgsql_parse_result", _PlpgsqlResult),
    ):
        getattr(library, function).argtypes = [c_char_p]
        getattr(library, function).restype = result
        getattr(library, free).argtypes = [result]
        getattr(library, free).restype = None
    library.pg_query_parse_opts.argtypes = [c_char_p, c_int]
    return library
