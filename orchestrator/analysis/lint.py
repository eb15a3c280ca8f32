"""`lint`: a folder's files, each statement against the rules, and the comments that allow.

Touches the file system, and in `lint_with_ledger` the database; it only reads.

A file is another release: what earlier files made is in use. The files before are read for what they made, so that a
type is known without a database. With `pending`, the whole pending set is one release on top of the live catalogue.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.analysis import ast
from orchestrator.analysis.catalog import Known
from orchestrator.analysis.follow import follow
from orchestrator.analysis.impact import impact_of
from orchestrator.analysis.lint_rules import RULES, Hit, Level, Statements, check, check_held
from orchestrator.analysis.locks import Holding
from orchestrator.analysis.names_there import NamesThere
from orchestrator.analysis.outside_database import Scope, acts
from orchestrator.analysis.pending import pending_file
from orchestrator.analysis.plan import known_for
from orchestrator.analysis.sql_file import SqlFile, read_sql
from orchestrator.analysis.would_fail import WouldFail
from orchestrator.migrator.folder import as_node_reads, scan_folder
from orchestrator.migrator.resolve import Kind
from orchestrator.migrator.run.errors import already_there
from orchestrator.migrator.sql import parser
from orchestrator.migrator.sql.statements import SqlSyntaxError, Statement
from orchestrator.migrator.state import readable_surveys

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from orchestrator.analysis.ast import Name
    from orchestrator.migrator.folder import Migration
    from orchestrator.migrator.sources import Source

# A file's token by token look for long names is not for data files.
_TOKENS_LIMIT_BYTES = 1 << 20
_NAME_LIMIT_BYTES = 63
# dbmate; goose and sql-migrate; node-pg-migrate and the like.
_DOWN = re.compile(
    rb"--+\s*(?:migrate:down|\+(?:goose|migrate)\s+down|down(?:\s+migration)?(?:\s*+:)?\s*+-*+$)", re.IGNORECASE
)
# What a comment says, not SQL.
_ALLOW = re.compile(r"lint:\s*allow\b[ \t]*([\w-]*)[ \t,:]*(.*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One thing that will hurt: where, why, and what to write instead. `allowed` is the reason of the comment."""

    rule: str
    level: Level
    file: str
    line: int
    column: int
    why: str
    instead: str
    statement: str = ""
    migration: str = ""
    allowed: str | None = None


@dataclass(frozen=True, slots=True)
class LintFile:
    """A migration file, in the order of its folder."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class LintFolder:
    """A folder as far as it can be read, and what is wrong with it as a folder."""

    path: Path
    files: tuple[LintFile, ...] = ()
    problems: tuple[LintFinding, ...] = ()


@dataclass(slots=True)
class LintReport:
    """What was looked at and found, in order of file and line."""

    files: list[str] = field(default_factory=list)
    findings: list[LintFinding] = field(default_factory=list)
    allowed: list[LintFinding] = field(default_factory=list)

    @property
    def fails(self) -> bool:
        """Whether there is an error or a warning."""
        return any(f.level is not Level.NOTE for f in self.findings)


def finding(
    rule: str, file: Path | str, why: str, *, line: int = 1, column: int = 1, level: Level | None = None
) -> LintFinding:
    """A finding of a rule, with the rule's own level and advice."""
    return LintFinding(rule, level or RULES[rule].level, str(file), line, column, why, RULES[rule].instead)


# --- The folder ------------------------------------------------------------------------------------------------------


# What the reader of a run finds wrong, as a rule.
_RULE_OF = {"missing": "missing-file", "backwards": "when-backwards"}


def read_lint_folder(path: Path) -> LintFolder:
    """What can be read of a folder of either generation; whatever is wrong is a finding, not an error.

    Raises:
        FolderError: it is not there, or cannot be read.
    """
    folder, found = scan_folder(path)
    journal = path.absolute() / "meta" / "_journal.json"
    is_v0 = folder.generation == "v0"
    lines = journal.read_bytes() if is_v0 and found else b""
    problems = []
    for one in found:
        line = _line_of(lines, one.name) if is_v0 and one.name else 1
        made = finding(_RULE_OF.get(one.kind, "broken-folder"), one.file, one.text, line=line)
        # A date is about one file, in which a comment may allow it.
        problems.append(replace(made, migration=one.name) if one.kind == "backwards" else made)
    beside = "the journal does not name it" if is_v0 else "it lies beside the folders"
    problems += [
        finding("unlisted-file", folder.path / name, f"{beside}: no run will use it") for name in folder.unlisted
    ]
    files = tuple(LintFile(migration.name, Path(migration.path)) for migration in folder.migrations)
    return LintFolder(path, files, tuple(problems))


def _line_of(text: bytes, tag: str) -> int:
    at = text.find(b'"' + tag.encode() + b'"')
    return text.count(b"\n", 0, max(at, 0)) + 1


# --- The walk --------------------------------------------------------------------------------------------------------


def lint(
    folder: LintFolder,
    *,
    only: Iterable[Path] | None = None,
    pending: Mapping[str, SqlFile | SqlSyntaxError] | None = None,
    known: Known | None = None,
    there: NamesThere | None = None,
    done: Mapping[str, int] | None = None,
) -> LintReport:
    """Hold a folder's files against the rules.

    Args:
        folder: the files, in order.
        only: the files to report on; those before them are read for what they made. None: all of them.
        pending: the pending files by their names, as they were read: they alone are looked at, as one release, on top
            of `known`.
        known: what is there before the first file that is read.
        there: the names that are there before it.
        done: how many statements of a file an interrupted run has done, by the file's name.
    """
    report = LintReport()
    walk = _Walk(known or Known(), there or NamesThere(), Scope())
    wanted = None if only is None else {path.resolve() for path in only}
    of_file: dict[str, list[LintFinding]] = {}
    for problem in folder.problems:
        if problem.migration:
            of_file.setdefault(problem.migration, []).append(problem)
        elif wanted is None or Path(problem.file).resolve() in wanted:
            report.findings.append(problem)
    for file in folder.files:
        if pending is not None and file.name not in pending:
            continue
        is_wanted = wanted is None or file.path.resolve() in wanted
        path = str(file.path)
        read = read_sql(as_node_reads(file.path.read_bytes()), path) if pending is None else pending[file.name]
        skip = (done or {}).get(file.name, 0)
        _text(path, read, walk, report if is_wanted else None, of_file.get(file.name, ()), skip=skip)
        if pending is None:
            walk.known.settle()
    report.findings.sort(key=lambda f: (f.file, f.line, f.column))
    return report


@dataclass(frozen=True, slots=True)
class _Walk:
    """What is known at the file that is looked at, from those before it."""

    known: Known
    there: NamesThere
    scope: Scope


def _text(
    path: str,
    read: SqlFile | SqlSyntaxError,
    walk: _Walk,
    report: LintReport | None,
    of_folder: Sequence[LintFinding] = (),
    *,
    skip: int = 0,
) -> None:
    """One file; `of_folder` is what the journal's entry of it breaks, which any allow in the file can speak of."""
    if report is not None:
        report.files.append(path)
    if isinstance(read, SqlSyntaxError):
        walk.there.lose_track()
        if report is not None:
            report.findings.append(finding("syntax", path, read.reason, line=read.line, column=read.column))
            report.findings += of_folder
        return
    found: list[tuple[LintFinding, Statement | None]] = [(one, None) for one in of_folder]
    for statement, hit in _hits(read, walk, skip):
        if report is not None:
            found.append((_placed(path, statement, hit), statement))
    if report is None:
        return
    found += [(one, None) for one in _down_sections(path, read)]
    if len(read.raw) <= _TOKENS_LIMIT_BYTES:
        found += [(one, None) for one in _long_names(path, read.raw)]
    _allow(path, read, found, report)


def _hits(file: SqlFile, walk: _Walk, skip: int) -> Iterator[tuple[Statement, Hit]]:
    known, scope = walk.known, walk.scope
    at, holding = Statements(known, makes_types=_types_made(file)), Holding()
    would_fail = WouldFail(known, walk.there)
    mixed_told, parsed = False, file.statements
    ends_itself = any(s.transaction_control in {"commit", "rollback"} for s in parsed)
    inside = sum(s.transactional and s.transaction_control is None for s in parsed)
    for statement, node, fields in file.trees():
        control = statement.transaction_control
        impact = impact_of(node, fields, known, outside=not statement.transactional)
        for act in acts(node, fields, scope) if node != "DropdbStmt" else ():  # that one is an error of its own
            yield statement, Hit("outside-database", act.what)
        scope.learn(node, fields)
        if statement.index > skip:
            for failure in would_fail.check(node, fields):
                yield statement, Hit(*failure)
        for hit in check(at, node, fields, impact):
            # That rule says the same of the same lock, and better.
            at.told_of_lock = at.told_of_lock or hit.rule == "validate-in-same-transaction"
            yield statement, hit
        if not statement.transactional and inside and not ends_itself and not mixed_told:
            mixed_told = True
            why = (
                f"{statement.kind} runs outside a transaction, so the file is none: if it fails, what came before stays"
            )
            yield statement, Hit("concurrently-mixed", why)
        if not statement.transactional or control in {"commit", "rollback"}:
            holding = Holding()
            at.end()
        for hit in check_held(at, holding.add(statement.index, node, impact)):
            yield statement, hit
        at.begun = control == "begin" or (at.begun and control not in {"commit", "rollback"})
        at.ended = at.ended or control in {"commit", "rollback"}
        if at.ended and not at.begun:
            # After the file's own COMMIT each statement is a transaction.
            holding = Holding()
            at.end()
        follow(known, node, fields)
    known.end_transaction()


def _types_made(file: SqlFile) -> frozenset[Name]:
    """The enums that a file makes, even such as have the name of one that it renames first."""
    made = (one.parsed.fields() for one in file.statements if one.parsed and one.parsed.node == "CreateEnumStmt")
    return frozenset(ast.qualified(ast.strings(fields["typeName"])) for fields in made)


def _placed(path: str, statement: Statement, hit: Hit) -> LintFinding:
    line, column = statement.line, statement.column
    # A tree that was kept counts from where its part of the file begins.
    offset = hit.offset - (statement.parsed.offset if statement.parsed else 0)
    if offset > 0:
        before = statement.text.encode()[:offset].decode(errors="replace")
        newlines = before.count("\n")
        line += newlines
        column = len(before) - before.rfind("\n") if newlines else column + len(before)
    made = finding(hit.rule, path, hit.why, line=line, column=column, level=hit.level)
    return replace(made, statement=statement.kind)


def _down_sections(path: str, file: SqlFile) -> Iterator[LintFinding]:
    """Comments by which another tool divides a file into what does and what undoes, with statements below them."""
    if b"down" not in file.raw.lower():
        return
    last = max((statement.byte_offset for statement in file.statements), default=0)
    for start, end in parser.comments(file.raw):
        if start < last and _DOWN.match(file.raw[start:end]):
            line, column = file.raw.count(b"\n", 0, start) + 1, start - file.raw.rfind(b"\n", 0, start)
            why = "below here stands what undoes the migration, and a run executes it, too: it drops what it made"
            yield finding("down-section", path, why, line=line, column=column)


def _long_names(path: str, raw: bytes) -> Iterator[LintFinding]:
    """Names longer than Postgres keeps: by tokens, since the parser has cut them already."""
    try:
        tokens = list(parser.tokens(raw))
    except parser.GrammarError:
        return
    seen: set[bytes] = set()
    for start, end in tokens:
        if end - start <= _NAME_LIMIT_BYTES or raw[start : start + 1] in {b"'", b"$"} or b"'" in raw[start : start + 3]:
            continue
        name = raw[start + 1 : end - 1].replace(b'""', b'"') if raw[start : start + 1] == b'"' else raw[start:end]
        if len(name) > _NAME_LIMIT_BYTES and name not in seen:
            seen.add(name)
            line = raw.count(b"\n", 0, start) + 1
            column = start - raw.rfind(b"\n", 0, start)
            why = f"{name.decode(errors='replace')} is cut to {_NAME_LIMIT_BYTES} bytes by Postgres"
            yield finding("long-name", path, why, line=line, column=column)


# --- Allowing --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Allow:
    """A comment `-- lint: allow RULE reason`, and the bytes of the file that it speaks for."""

    rule: str
    reason: str
    line: int
    column: int
    first_line: int
    last_line: int
    used: bool = False


def _allow(
    path: str,
    file: SqlFile,
    found: list[tuple[LintFinding, Statement | None]],
    report: LintReport,
) -> None:
    allows = _allows(file.raw, file.statements) if b"lint:" in file.raw else []
    for one, statement in found:
        line = statement.line if statement else one.line
        of_journal = one.file != path
        here = (a for a in allows if a.rule == one.rule and (of_journal or a.first_line <= line <= a.last_line))
        match = next((a for a in here if a.reason), None)
        if match is None:
            report.findings.append(one)
        else:
            match.used = True
            report.allowed.append(replace(one, allowed=match.reason))
    for allow in allows:
        line, column = allow.line, allow.column
        if allow.rule not in RULES:
            why = f"there is no rule {allow.rule!r}: it allows nothing" if allow.rule else "it names no rule"
            report.findings.append(finding("unused-allow", path, why, line=line, column=column))
        elif not allow.reason:
            why = f"the allow of {allow.rule} gives no reason, so it allows nothing"
            report.findings.append(finding("allow-without-reason", path, why, line=line, column=column))
        elif not allow.used:
            why = f"nothing here breaks {allow.rule}: it allows nothing"
            report.findings.append(finding("unused-allow", path, why, line=line, column=column))


def _allows(raw: bytes, parsed: Sequence[Statement]) -> list[_Allow]:
    """Each allow, and the lines of the statement that it stands in, behind, or above."""
    ends = [raw.count(b"\n", 0, statement.byte_end) + 1 for statement in parsed]
    found = []
    for start, end in parser.comments(raw):
        text = raw[start:end].decode(errors="replace").strip("-*/ \t\r\n")
        match = _ALLOW.match(text)
        if match is None:
            continue
        line = raw.count(b"\n", 0, start) + 1
        spans = [(s.line, e) for s, e in zip(parsed, ends, strict=True)]
        span = next(
            (span for span in reversed(spans) if span[0] <= line <= span[1]),
            next((span for span in spans if span[0] > line), (line, line)),
        )
        column = start - raw.rfind(b"\n", 0, start)
        reason = " ".join(match[2].split())
        found.append(_Allow(match[1].lower(), reason, line, column, *span))
    return found


# --- With a database at hand ------------------------------------------------------------------------------------------


async def lint_with_ledger(
    connection: Any, source: Source, folder: LintFolder, *, every: bool, extensions: Sequence[str] = ()
) -> tuple[LintReport, str]:
    """What is found in the pending files (or in all), and in words what was looked at.

    With `every` the files are read from the first on, as without a database; the ledger then adds which file was
    changed after it was applied. Raises as `preview`, and not for a file that is not SQL: that is a finding.
    """
    (one,) = await readable_surveys(connection, [source])
    if every:
        report = await asyncio.to_thread(lint, folder)
        scope = f"all files of {folder.path}"
    else:
        pending = {migration.name: await _pending(connection, migration) for migration in one.plan.pending}
        files = [file for file in pending.values() if isinstance(file, SqlFile)]
        known, there = await known_for(connection, files, [one])
        there.install(extensions)
        done = {name: unfinished.done for name, unfinished in one.unfinished.items()}
        report = await asyncio.to_thread(lint, folder, pending=pending, known=known, there=there, done=done)
        names = {str(file.path): file.name for file in folder.files}
        report.findings = [
            replace(found, instead=f"{already_there(one.plan, names[found.file])}.")
            if found.rule == "already-there"
            else found
            for found in report.findings
        ]
        words = "file" if len(pending) == 1 else "files"
        scope = f"the {len(pending)} pending {words} of {folder.path}; --all looks at every one"
    paths = {file.name: str(file.path) for file in folder.files}
    for found in one.plan.findings:
        path = paths.get(found.name)
        if path is not None and found.kind is Kind.EDITED and not found.cosmetic:
            report.findings.append(finding("changed-after-apply", path, "it was changed after it was applied"))
        elif path is not None and found.kind is Kind.OUT_OF_ORDER and source.folder.generation == "v0":
            why = "it is older than the newest applied migration, so drizzle and a run skip it"
            report.findings.append(finding("never-runs", path, why))
    report.findings.sort(key=lambda f: (f.file, f.line, f.column))
    return report, scope


async def _pending(connection: Any, migration: Migration) -> SqlFile | SqlSyntaxError:
    try:
        return await pending_file(connection, migration)
    except SqlSyntaxError as error:
        return error
