"""A bar on the terminal while migrations run. Imports rich, so only a terminal pays for it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from orchestrator.lifecycle import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.lifecycle import Event, Lifecycle


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
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from orchestrator.commands.console import terminal

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
                console=terminal(file=sys.__stderr__),
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
