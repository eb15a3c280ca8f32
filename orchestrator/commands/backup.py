"""`backup`: a copy of the whole database, proven."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.commands.console import say
from orchestrator.commands.runner import failed_early, load, prepared, print_json, run, with_folder, with_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from typing import Any

    from orchestrator.backup.manifest import Backup
    from orchestrator.dsn import Dsn
    from orchestrator.lifecycle import Lifecycle
    from orchestrator.migrator.sources import Source
    from orchestrator.settings import Settings


def backup(parser: argparse.ArgumentParser) -> None:
    """Add the options of `backup`."""
    with_folder(parser)
    with_json(parser)
    parser.add_argument("--to", metavar="DIR", help="where to write (BACKUP_DIR); nothing old is removed there")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--test",
        metavar="FILE",
        nargs="?",
        const="",
        help="restore into a scratch database and compare: FILE, or the backup that is made now; exit 1 if they differ",
    )
    with_trust(parser)
    what.add_argument("--list", action="store_true", help="list the existing backups, and make none")
    parser.set_defaults(run=_backup)


def with_trust(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how far a backup is trusted."""
    parser.add_argument(
        "--unverified", action="store_true", help="accept a backup that neither its signature nor the database confirms"
    )
    with_own_rights(parser)


def with_own_rights(parser: argparse.ArgumentParser) -> None:
    """Add the option that lets the code in a copied database run with this user's rights."""
    parser.add_argument(
        "--with-own-rights",
        action="store_true",
        help="run the code in the copied database (constraints, triggers) with this user's rights, not as a role that"
        " has none",
    )


def _backup(options: argparse.Namespace) -> int:
    if options.list:
        return _list(options)

    async def work(settings: Settings, life: Lifecycle) -> dict[str, Any]:
        from orchestrator.backup.vouching import read_records, vouched_for
        from orchestrator.migrator.safety_backup import back_up

        result: dict[str, Any] = {}
        existing = None if not options.test else await read_file(resolved(options.test, settings))
        directory = None if existing else _directory(options, settings)
        async with _session(settings, life) as (connection, dsn, sources):
            if directory is not None:
                existing, removed = await back_up(
                    dsn,
                    settings,
                    sources,
                    life.emit,
                    directory=directory,
                    reason="command",
                    connection=connection,
                )
                result["removed"] = [one.described() for one in removed]
            assert existing is not None  # noqa: S101  # it was read or made
            if directory is None:
                vouched_for(
                    existing, await read_records(connection), settings.backup_key, unverified=options.unverified
                )
            result["backup"] = existing.described()
            if options.test is not None:
                result["test"] = await _test(existing, dsn, options, life)
        return result

    def show(result: dict[str, Any]) -> int:
        if options.json:
            print_json(result)
        else:
            _print_backup(result)
        return int(bool(result.get("test", {}).get("differences")))

    return run(options, work, show)


async def _test(backup_: Backup, dsn: Dsn, options: argparse.Namespace, life: Lifecycle) -> dict[str, Any]:
    from dataclasses import asdict

    from orchestrator.backup.restore import test_backup
    from orchestrator.migrator.safety_backup import manifest_reader

    tested = await test_backup(
        backup_,
        dsn,
        read_ledgers=manifest_reader(backup_.manifest),
        emit=life.emit,
        with_own_rights=options.with_own_rights,
    )
    return asdict(tested)


def _session(settings: Settings, life: Lifecycle) -> AbstractAsyncContextManager[tuple[Any, Dsn, list[Source]]]:
    """A session on the database, its DSN, and the sources whose ledgers are read."""
    from contextlib import asynccontextmanager

    from orchestrator.database.connect import connected

    @asynccontextmanager
    async def session() -> AsyncIterator[tuple[Any, Dsn, list[Source]]]:
        sources, dsn = await prepared(settings, life)
        async with connected(
            dsn,
            life,
            wait_timeout_s=settings.db_wait_timeout_s,
            application_name="orchestrator backup",
        ) as connection:
            yield connection, dsn, sources

    return session()


def _directory(options: argparse.Namespace, settings: Settings) -> Path:
    from pathlib import Path

    if options.to:
        return Path(options.to).absolute()
    if settings.backup_dir is None:
        raise _no_directory()
    return settings.backup_dir


def _no_directory() -> Exception:
    from orchestrator.errors import ConfigurationError, Problem

    return ConfigurationError(
        [Problem("BACKUP_DIR", "is not set, and --to DIR was not given", "a directory for backups", "/backups")]
    )


def resolved(given: str, settings: Settings) -> Path:
    """The path as given; a bare name that is not here is looked for in BACKUP_DIR."""
    from pathlib import Path

    path = Path(given)
    if settings.backup_dir is not None and path.name == given and not path.exists():
        return settings.backup_dir / given
    return path.absolute()


async def read_file(path: Path) -> Backup:
    """The backup and what its manifest says of it; errors as in `read_backup`."""
    import asyncio

    from orchestrator.backup.manifest import read_backup

    return await asyncio.to_thread(read_backup, path)


def _list(options: argparse.Namespace) -> int:
    from orchestrator.backup.manifest import read_backups
    from orchestrator.errors import OrchestratorError

    try:
        settings = load(options, needs_database=False)
        backups = read_backups(_directory(options, settings))
    except OrchestratorError as error:
        return failed_early(error)
    if options.json:
        print_json({"backups": [one.described() for one in backups]})
        return 0
    from rich.markup import escape

    from orchestrator.commands.console import results, size_words, table

    shown = table("taken (UTC)", "database", "size", "rows", "why", "newest migration", "file", right=("size", "rows"))
    for one in backups:
        manifest = one.manifest
        newest = next((s.newest_name or f"row {s.newest_id}" for s in manifest.ledgers[::-1] if s.rows), "-")
        shown.add_row(
            f"{manifest.taken_at:%Y-%m-%d %H:%M:%S}",
            escape(manifest.database),
            size_words(manifest.size_bytes),
            f"{sum(manifest.tables.values()):,}",
            manifest.reason.replace("_", " "),
            escape(newest),
            escape(one.path.name),
        )
    results().print(shown if backups else "No backups yet.")
    return 0


def _print_backup(result: dict[str, Any]) -> None:
    from orchestrator.commands.console import size_words

    made, test = result["backup"], result.get("test")
    rows = sum(made["tables"].values())
    say(made["path"])
    say(
        f"  {size_words(made['size_bytes'])}, {len(made['tables'])} tables, {rows:,} rows, PostgreSQL"
        f" {made['server_version'].split()[0]}, taken {made['taken_at']} in {made['duration_s']:.1f} s"
    )
    for one in result.get("removed", ()):
        say(f"  removed {one['path']}, taken {one['taken_at']}")
    if test is not None and test["differences"]:
        say("  restored into a scratch database, and it is not the same:")
        for line in test["differences"]:
            say(f"    {line}")
    elif test is not None:
        say(f"  restored into a scratch database and compared in {test['duration_s']:.1f} s: the same")
    for one in test["left_out"] if test is not None else ():
        say(f"  not tested, since only a superuser can make it: {one}")
