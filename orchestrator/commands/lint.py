"""`lint`: what will hurt, before it does."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.commands.console import say
from orchestrator.commands.runner import failed_early, load, print_json, run, with_folder, with_json

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from orchestrator.analysis.lint import LintFinding, LintFolder, LintReport
    from orchestrator.lifecycle import Lifecycle
    from orchestrator.settings import Settings

_GITHUB = {"error": "error", "warning": "warning", "note": "notice"}
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def lint(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lint`."""
    with_folder(parser)
    with_json(parser)
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files or folders of migrations to check (offline)")
    parser.add_argument("--all", action="store_true", help="every file, not only the pending ones")
    parser.add_argument("--offline", action="store_true", help="do not use the database, even if one is configured")
    parser.add_argument("--github", action="store_true", help="annotations for GitHub Actions: ::warning file=…")
    parser.add_argument("--notes", action="store_true", help="show notes, too, which do not affect the exit code")
    parser.set_defaults(run=_lint, database_if_named=True)


def _lint(options: argparse.Namespace) -> int:
    """Exit 0 when clean or with notes alone, 1 with a warning or an error, 78 where there is nothing to look at."""
    from orchestrator.errors import OrchestratorError

    if options.paths or options.offline:
        options.embedded = True  # the database's variables stay unread
        options.database_if_named = False
    try:
        settings = load(options)
        folders = _folders(options, settings)
    except OrchestratorError as error:
        return failed_early(error)
    if settings.database is None or _is_broken(folders[0][0]):
        reports = [(_without_a_database(folder, only), _scope(folder, only)) for folder, only in folders]
        return _tell(options, reports)
    ask = partial(_with_ledger, folder=folders[0][0], every=options.all)
    return run(options, ask, lambda found: _tell(options, [found]), default_level="warning")


async def _with_ledger(
    settings: Settings, life: Lifecycle, *, folder: LintFolder, every: bool
) -> tuple[LintReport, str]:
    """What is found with the database at hand, and in words what was looked at."""
    import asyncio

    from orchestrator.analysis.lint import lint_with_ledger
    from orchestrator.commands.reading import reading
    from orchestrator.embedded.choice import given
    from orchestrator.migrator.sources import read_sources

    sources = await asyncio.to_thread(read_sources, settings)
    async with reading(settings, life, given(settings.migration_database), "lint") as connection:
        return await lint_with_ledger(connection, sources[-1], folder, every=every, extensions=settings.extensions)


def _is_broken(folder: LintFolder) -> bool:
    """Whether no run could read it, so that the ledger has nothing to be held against."""
    return any(problem.rule in {"missing-file", "broken-folder"} for problem in folder.problems)


def _folders(options: argparse.Namespace, settings: Settings) -> list[tuple[LintFolder, list[Path] | None]]:
    """The folders to read, and the files in them to report on (None: all)."""
    from orchestrator.analysis.lint import LintFile, LintFolder, read_lint_folder
    from orchestrator.errors import ConfigurationError, Problem

    if not options.paths:
        if settings.migrations_dir is None:
            problem = "is not set, and no PATH is given"
            raise ConfigurationError([Problem("MIGRATIONS_DIR", problem, "a folder of migrations", "./drizzle")])
        return [(read_lint_folder(settings.migrations_dir), None)]
    found: list[tuple[LintFolder, list[Path] | None]] = []
    files: dict[Path, list[Path]] = {}
    for text in options.paths:
        path = Path(text)
        if path.is_dir():
            found.append((read_lint_folder(path), None))
        elif path.is_file():
            parent = path.parent.parent if path.name == "migration.sql" else path.parent
            files.setdefault(parent, []).append(path)
        else:
            raise ConfigurationError(
                [Problem(str(path), "is neither a file nor a folder", "one that is there", "drizzle/0001_x.sql")]
            )
    for parent, paths in files.items():
        folder = read_lint_folder(parent)
        listed = {file.path.resolve() for file in folder.files}
        loose = tuple(LintFile(p.stem, p) for p in paths if p.resolve() not in listed)
        has_journal = bool(folder.files)
        problems = folder.problems if has_journal else ()
        found.append((LintFolder(parent, (*folder.files, *loose), problems), paths))
    return found


def _without_a_database(folder: LintFolder, only: list[Path] | None) -> LintReport:
    from orchestrator.analysis.lint import lint as lint_folder

    return lint_folder(folder, only=only)


def _scope(folder: LintFolder, only: list[Path] | None) -> str:
    return f"all files of {folder.path}, without a database" if only is None else "the files named"


def _shown(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def _tell(options: argparse.Namespace, reports: list[tuple[LintReport, str]]) -> int:
    findings = [f for report, _ in reports for f in report.findings]
    allowed = [f for report, _ in reports for f in report.allowed]
    looked_at = [file for report, _ in reports for file in report.files]
    fails = any(report.fails for report, _ in reports)
    if options.json:
        counts = {level: sum(f.level == level for f in findings) for level in _GITHUB}
        print_json(
            {
                "scope": "; ".join(words for _, words in reports),
                "files": [_shown(file) for file in looked_at],
                "findings": [_described(f) for f in findings],
                "allowed": [_described(f) for f in allowed],
                "counts": counts,
                "fails": fails,
            }
        )
    elif options.github:
        for one in findings:
            say(github_line(one))
    else:
        _print(findings, allowed, looked_at, "; ".join(words for _, words in reports), notes=options.notes)
    return int(fails)


def _described(one: LintFinding) -> dict[str, Any]:
    return {
        "rule": one.rule,
        "level": one.level,
        "file": _shown(one.file),
        "line": one.line,
        "column": one.column,
        "statement": one.statement or None,
        "why": one.why,
        "instead": one.instead,
        "allowed": one.allowed,
    }


def github_line(one: LintFinding) -> str:
    """A workflow command (actions/toolkit, command.ts: `escapeData` and `escapeProperty`)."""
    properties = {
        "file": _shown(one.file),
        "line": str(one.line),
        "col": str(one.column),
        "title": f"lint: {one.rule}",
    }
    packed = ",".join(f"{name}={_escaped(value, in_property=True)}" for name, value in properties.items())
    return f"::{_GITHUB[one.level]} {packed}::{_escaped(f'{one.why}. {one.instead}')}"


def _escaped(text: str, *, in_property: bool = False) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if in_property else text


def _print(
    findings: list[LintFinding], allowed: list[LintFinding], looked_at: list[str], scope: str, *, notes: bool
) -> None:
    """Findings by file; what to write instead stands once for each rule, at the end."""
    from rich.markup import escape

    from orchestrator.commands.console import counted, results

    console = results()
    shown = [f for f in findings if notes or f.level != "note"]
    last = ""
    for one in shown:
        if one.file != last:
            console.print(f"\n[bold]{escape(_shown(one.file))}[/]")
            last = one.file
        style = _STYLES[one.level]
        console.print(f"  {one.line}:{one.column}  [{style}]{one.level} {one.rule}[/]  {escape(one.why)}")
    rules = {one.rule: one for one in shown}
    if rules:
        console.print("\n[bold]Write instead[/]")
        for rule, one in sorted(rules.items()):
            console.print(f"  [{_STYLES[one.level]}]{rule}[/]  {escape(one.instead)}")
        console.print("  If it is intended, put a comment above the statement: [bold]-- lint: allow RULE because …[/]")
    counts = {level: sum(f.level == level for f in findings) for level in _GITHUB}
    hidden = "" if notes or not counts["note"] else " (--notes shows them)"
    told = ", ".join(counted(counts[level], level) for level in ("error", "warning", "note")) + hidden
    kept = f", {len(allowed)} allowed" if allowed else ""
    others = len({f.file for f in findings} - set(looked_at))
    beyond = f", and {counted(others, 'other')} by the journal or the ledger alone" if others else ""
    console.print(f"\n{counted(len(looked_at), 'file')} looked at ({escape(scope)}){beyond}: {told}{kept}.")
