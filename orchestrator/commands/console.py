"""What a person sees in a terminal: progress of long work, and tables. Imports rich, so only a terminal pays for it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from orchestrator.lifecycle import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.lifecycle import Event, Lifecycle


def counted(count: int, thing: str) -> str:
    """A number with its noun: 1 file, 2 files."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


class CurrentStderr:
    """A stream that is always today's `sys.stderr`: rich puts its own there while a progress bar is shown."""

    def write(self, text: str) -> int:
        """Write to `sys.stderr`."""
        return sys.stderr.write(text)

    def flush(self) -> None:
        """Flush `sys.stderr`."""
        sys.stderr.flush()

    def isatty(self) -> bool:
        """Whether the real stderr is a terminal."""
        return bool(sys.__stderr__ and sys.__stderr__.isatty())

    def fileno(self) -> int:
        """The real stderr's descriptor."""
        return sys.__stderr__.fileno() if sys.__stderr__ else 2


def show_progress(life: Lifecycle) -> Callable[[], None]:
    """Show a bar while migrations run; returns what ends it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    progress: Progress | None = None
    task: Any = None

    def end() -> None:
        nonlocal progress
        if progress is not None:
            progress.stop()
            progress = None

    def on_event(event: Event) -> None:
        nonlocal progress, task
        state = life.migrations
        if event.name in {"migration.started", "migration.watched"} and progress is None:
            progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=Console(file=sys.__stderr__),
                transient=True,
            )
            progress.start()
            task = progress.add_task("migrations", total=state.total, completed=state.applied)
        if progress is not None and task is not None:
            if event.name.startswith("migration."):
                progress.update(task, description=_running(life) or "migrations", completed=state.applied)
            elif event.name == "phase.entered" and event.phase is not Phase.MIGRATING:
                end()
        if event.name in {"migrations.completed", "service.failed"}:
            end()

    stop_listening = life.listen(on_event)

    def stop() -> None:
        stop_listening()
        end()

    return stop


def _running(life: Lifecycle) -> str:
    """The migration that runs, and of a statement that takes long what is known of it."""
    from rich.markup import escape

    state, activity = life.migrations, life.migrations.activity
    if state.current is None or activity is None:
        return escape(state.current or "")
    parts = [state.current]
    if state.statement:
        parts.append(f"statement {state.statement} of {state.statements}")
    parts.append(f"{activity.statement_kind} {activity.elapsed_s:.0f} s")
    if activity.percent is not None:
        parts.append(f"{activity.stage or ''} {activity.percent:.0f} %".strip())
    elif activity.stage is not None:
        parts.append(activity.stage)
    if activity.blockers:
        first = activity.blockers[0]
        parts.append(f"waits for pid {first['pid']} {first.get('application_name') or ''} ({first.get('state')})")
    elif activity.wait_event is not None:
        parts.append(f"waits: {activity.wait_event}")
    return escape(" · ".join(parts))


def size_words(size: int) -> str:
    """A size for people: `3.4 MB`."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1024:  # noqa: PLR2004
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TB"


def print_status(status: dict[str, Any]) -> None:
    """Print what `gather_status` found, as tables, to stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    server = status["server"]
    role = "standby" if server["standby"] else "primary"
    console.print(
        f"[bold]{server['address']}[/]  PostgreSQL {server['server_version']} ({role}),"
        f" {size_words(server['size_bytes'])}"
    )
    if status.get("running"):
        _print_running(console, status["running"])
    for source in status["sources"]:
        _print_source(console, source)
    if status["extensions"]:
        table = Table(title="Extensions", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for column in ("extension", "installed", "available", ""):
            table.add_column(column)
        for e in status["extensions"]:
            note = f"[red]missing:[/] {e['sql']}" if e["wanted"] and e["sql"] else ""
            table.add_row(e["name"], e["installed_version"] or "-", e["available_version"] or "-", note)
        console.print(table)
    table = Table(title="Tables", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("table")
    table.add_column("rows (estimate)", justify="right")
    table.add_column("size", justify="right")
    for t in status["tables"]:
        rows = "-" if t["estimated_rows"] is None else f"{t['estimated_rows']:,}"
        table.add_row(f"{t['schema']}.{t['name']}", rows, size_words(t["size_bytes"]))
    console.print(table if status["tables"] else "No tables yet.")


def _print_running(console: Any, running: dict[str, Any]) -> None:
    from rich.markup import escape

    told = [f"pid {running['pid']}, {running['application_name']!r}", f"for {running['session_age_s']} s"]
    if running["percent"] is not None:
        told.append(f"{running['stage'] or ''} {running['percent']:.0f} %".strip())
    if running["wait_event"]:
        told.append(f"waits: {running['wait_event']}")
    told += [f"blocked by pid {one['pid']} ({one.get('state')})" for one in running["blockers"]]
    console.print(f"[yellow]A migration runs now[/]: {escape(', '.join(told))}")
    if running["query"]:
        console.print(f"  {escape(running['query'])}")


_SHOWN_APPLIED = 10


def _print_source(console: Any, source: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    applied, pending = source["applied"], source["pending"]
    console.print(
        f"\n[bold]Migrations of the {source['source']}[/]: {source['folder']} (drizzle {source['generation']}),"
        f" ledger {source['ledger']}{'' if source['ledger_exists'] else ' (not made yet)'}"
    )
    colour = "green" if not pending else "yellow"
    console.print(f"  [{colour}]{len(applied)} applied, {len(pending)} pending[/], {counted(source['total'], 'file')}")
    table = Table(box=None, padding=(0, 2, 0, 2), show_header=True)
    for column in ("state", "migration", "dated (UTC)", "took"):
        table.add_column(column)
    if len(applied) > _SHOWN_APPLIED:
        table.add_row("…", f"{len(applied) - _SHOWN_APPLIED} earlier ones (all of them: --json)", "", "")
    for row in applied[-_SHOWN_APPLIED:]:
        took = "" if row["duration_s"] is None else f"{row['duration_s']:.3f} s"
        name = row["name"] or f"row {row['id']}, hash {row['hash'][:12]}…"
        table.add_row("[green]applied[/]", escape(name), (row["dated"] or "").replace("+00:00", ""), took)
    for row in pending:
        table.add_row("[yellow]pending[/]", escape(row["name"]), (row["dated"] or "").replace("+00:00", ""), "")
    if applied or pending:
        console.print(table)
    print_findings(console, source)


def print_findings(console: Any, source: dict[str, Any]) -> None:
    """Print where the history of one source is not straight, and the files that no run will use."""
    from rich.markup import escape

    for finding in source["findings"]:
        kind = str(finding["kind"]).replace("_", " ")
        mark = "[red]refused[/]" if finding["refused"] else "[yellow]warning[/]"
        console.print(f"  {mark} {kind}: {escape(finding['name'])}: {escape(finding['decision'])}")
        console.print(f"          → {escape(finding['remedy'])}")
        if finding.get("diff"):
            console.print(finding["diff"], markup=False, highlight=False)
    if source["unlisted"]:
        console.print(f"  [yellow]warning[/] not named by the journal: {escape(', '.join(source['unlisted']))}")


def print_settings(rows: Sequence[tuple[str, str, str]], suspects: Sequence[tuple[str, str]]) -> None:
    """Print `Settings.describe()` as a table to stdout."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("variable", "value", "from"):
        table.add_column(column, overflow="fold")
    for name, value, source in rows:
        table.add_row(name, escape(value), escape(source))
    console = Console()
    console.print(table)
    for found, meant in suspects:
        console.print(f"[yellow]{found} is set and means nothing here: did you mean {meant}?[/]")
