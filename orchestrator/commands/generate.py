"""`generate`: write the migration that is between the code's tables and the folder."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.commands.console import say
from orchestrator.commands.new import facts_of, folder_of, with_new_file
from orchestrator.commands.runner import print_json, run, with_embedded, with_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path
    from typing import Any

    from orchestrator.dsn import Dsn
    from orchestrator.lifecycle import Lifecycle
    from orchestrator.migrator.folder import Generation
    from orchestrator.migrator.sources import Source
    from orchestrator.schema.renames import Rename
    from orchestrator.settings import Settings
    from orchestrator.tools.generate import Generated


def generate(parser: argparse.ArgumentParser) -> None:
    """Add the options of `generate`."""
    with_new_file(parser, optional=True)
    parser.add_argument(
        "--schema", metavar="MODULE:NAME", help="the MetaData, declarative Base or registry to compare with (SCHEMA)"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when code and migrations differ")
    parser.add_argument(
        "--allow-drops", action="store_true", help="write drops as statements that run, not as comments"
    )
    parser.add_argument(
        "--online", action="store_true", help="change tables that are in use without making their users wait"
    )
    parser.add_argument(
        "--remake-views", action="store_true", help="drop the views in the way of a change, and make them again"
    )
    parser.add_argument(
        "--rename",
        metavar="OLD=NEW",
        action="append",
        default=[],
        help="a table (users=people) or column (users.name=full_name) that was renamed; may be repeated",
    )
    parser.add_argument(
        "--exclude",
        metavar="TABLE",
        action="append",
        default=[],
        help="leave a table of the code out (users, app.users, geo_*); may be given again",
    )
    parser.add_argument(
        "--no-renames", action="store_true", help="ask about no (further) renames: everything else is new"
    )
    with_embedded(parser)
    with_json(parser)
    parser.set_defaults(run=_generate, database_if_named=True, folder_may_be_missing=True)


def _generate(options: argparse.Namespace) -> int:
    if options.name is None and not options.check:
        say("orchestrator generate: NAME or --check is required", file=sys.stderr)
        return 2

    def show(outcome: dict[str, Any]) -> int:
        if options.json:
            print_json(outcome["facts"])
        else:
            _print(options, outcome)
        found: Generated = outcome["found"]
        return 1 if (options.check and found.differs) or (found.unwritten and not found.files) else 0

    return run(options, partial(_work, options), show, default_level="warning")


async def _work(options: argparse.Namespace, settings: Settings, life: Lifecycle) -> dict[str, Any]:
    import asyncio
    import time

    from orchestrator.commands.console import can_ask
    from orchestrator.errors import ConfigurationError, Problem
    from orchestrator.tools.new_file import check_name, plan_migration, write_migrations

    folder = folder_of(settings)
    if not settings.schema:
        raise ConfigurationError([Problem("SCHEMA", "is not set", "module:name, or --schema", "my_app.models:Base")])
    generation: Generation | None = "v1" if options.v1 else None
    now_ms = time.time_ns() // 1_000_000
    if options.name is not None:
        check_name(options.name)
        plan_migration(folder, options.name, now_ms=now_ms, generation=generation, prefix=options.prefix)
    from orchestrator.schema.loading import load_metadata, without_tables
    from orchestrator.schema.models import schemas_of

    metadata = load_metadata(settings.schema)
    excluded = without_tables(metadata, options.exclude)
    sources = await asyncio.to_thread(_sources, settings, folder, schemas_of(metadata))
    from orchestrator.tools.generate import generate as compare

    answers = [*options.rename, *(["*"] if options.no_renames else [])]
    asks = can_ask() and not options.check and not options.json
    async with _server(settings, life, embedded=options.embedded) as server:
        found = await compare(
            server,
            sources,
            metadata,
            ask=_ask if asks else None,
            renames=answers,
            excluded=excluded,
            allow_drops=options.allow_drops,
            remake_views=options.remake_views,
            online=options.online,
            extensions=settings.extensions,
        )
    made = []
    if not options.check and found.files:
        texts = [(options.name + suffix, text) for suffix, text in found.files]
        made = await asyncio.to_thread(
            write_migrations, folder, texts, now_ms=now_ms, generation=generation, prefix=options.prefix
        )
    facts = {
        "differs": found.differs,
        "written": [facts_of(one) for one in made],
        "statements": [step.sql for step in found.active],
        "commented_out": [step.sql for step in found.withheld],
        "commented_out_before": [step.sql for step in found.said],
        "perhaps_renamed": [one.spelled for group in found.unasked for one in group],
        "by_hand": found.unwritten,
        "left_out": found.left_out,
    }
    return {"found": found, "made": made, "facts": facts}


def _sources(settings: Settings, folder: Path, schemas: frozenset[str]) -> list[Source]:
    """What to replay: the service's own folder and the user's, or, where the tables are the service's own, that one."""
    from orchestrator.migrator.records import SERVICE_SCHEMA
    from orchestrator.migrator.sources import read_sources, service_source
    from orchestrator.tools.new_file import is_begun

    if SERVICE_SCHEMA in schemas:
        return [service_source(folder)] if is_begun(folder) else []
    return read_sources(settings) if is_begun(folder) else [service_source()]


@asynccontextmanager
async def _server(settings: Settings, life: Lifecycle, *, embedded: bool) -> AsyncIterator[Dsn]:
    """A server on which scratch databases can be made: the configured one, the private one, or one for this run."""
    if settings.migration_database is not None and not embedded:
        from orchestrator.commands.reading import reached

        await reached(settings.migration_database, settings, life, "generate")
        yield settings.migration_database
        return
    import tempfile
    from contextlib import ExitStack
    from pathlib import Path

    from orchestrator import dsn
    from orchestrator.embedded.server import embedded_postgres

    with ExitStack() as stack:
        if embedded:
            place = settings.data_dir
        else:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orchestrator-generate-")))
        async with embedded_postgres(place, life.emit, durable=embedded) as server:
            yield dsn.parse(server.dsn)


async def _ask(candidates: Sequence[Rename]) -> Rename | None:
    """Ask on the terminal which one it was; an empty answer is: it is new."""
    from orchestrator.commands.console import ask

    first = candidates[0]
    what, where = {
        "table": ("Table", ""),
        "schema": (f"Table {first.name[1]} in the schema", ""),
        "column": ("Column", f" of the table {first.name[1]}"),
        "value": ("Value", f" of the enum {first.name[1]}"),
    }[first.kind]
    say(f"{what} {first.new}{where} is in the code, and not in the migrations.", file=sys.stderr)
    say("  0  it is new", file=sys.stderr)
    for number, one in enumerate(candidates, 1):
        was = ".".join(one.name) if one.kind == "schema" else one.old or one.name[1]
        say(f"  {number}  it was {was}, {'moved' if one.kind == 'schema' else 'renamed'}", file=sys.stderr)
    while True:
        answer = await ask(f"0 to {len(candidates)} [0]: ")
        if not answer:
            return None
        if answer.isdigit() and int(answer) <= len(candidates):
            return candidates[int(answer) - 1] if int(answer) else None


def _print(options: argparse.Namespace, outcome: dict[str, Any]) -> None:
    found: Generated = outcome["found"]
    if not found.differs:
        say("Code and migrations agree: nothing to write.")
        return
    if options.check:
        say("Code and migrations differ:")
        for step in (*found.active, *found.withheld, *found.said):
            say(f"  {'(drop) ' if step.drops else ''}{' '.join(step.sql.split())};")
    for made in outcome["made"]:
        say(made.path)
    for line in _remarks(found, written=bool(outcome["made"])):
        say(line, file=sys.stderr)


def _remarks(found: Generated, *, written: bool) -> list[str]:
    from orchestrator.commands.console import counted

    lines = []
    if written:
        amount = counted(len(found.active), "statement")
        lines.append(f"{amount} to be run: read the file, then `orchestrator migrate` applies it.")
    drops = sum(1 for step in found.withheld if step.drops)
    if drops and written:
        lines.append(f"{counted(drops, 'drop')} commented out; --allow-drops writes them to be run.")
    for group in found.unasked:
        options = ", ".join(f"--rename {one.spelled}" for one in group)
        lines.append(f"{group[0].new} may be a rename, and is commented out: {options}; or --no-renames.")
    if found.said and not found.files:
        lines.append("Nothing new to write: what is left are drops that an earlier file holds commented out:")
        lines += [f"  {step.sql};" for step in found.said]
    lines += [f"{note[0].upper()}{note[1:]}." for note in found.left_out]
    return [*lines, *(f"By hand: {note}" for note in found.unwritten)]
