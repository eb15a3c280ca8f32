"""`studio`: a database client in the terminal, harlequin, on the configured database. Takes the process's place."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from orchestrator import streams
from orchestrator.commands.console import say
from orchestrator.commands.runner import failed_early, load

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from orchestrator.dsn import Dsn

_NOTE = """\
Read-only is enforced by the server (default_transaction_read_only), for every statement that does not ask otherwise:
it guards against slips. Whoever may write can lift it with SET TRANSACTION READ WRITE. Where nobody must be able to,
give DATABASE_URL of a role that has no more than: GRANT pg_read_all_data TO that_role."""

# libpq's options that harlequin has by other names; it would put defaults of its own in the place of the environment's.
_ARGUMENTS = (
    ("PGHOST", "--host"),
    ("PGPORT", "--port"),
    ("PGUSER", "--user"),
    ("PGDATABASE", "--dbname"),
    ("PGSSLMODE", "--sslmode"),
    ("PGSSLCERT", "--sslcert"),
    ("PGSSLKEY", "--sslkey"),
    ("PGCHANNELBINDING", "--channel_binding"),
)
_READ_ONLY = "-c default_transaction_read_only=on"


def studio(parser: argparse.ArgumentParser) -> None:
    """Add the options of `studio`."""
    parser.description = f"{parser.description}\n\n{_NOTE}"
    parser.add_argument("--write", action="store_true", help="let statements write")
    parser.set_defaults(run=_studio)


def studio_environment(inherited: Mapping[str, str], dsn: Dsn, *, write: bool) -> dict[str, str]:
    """The environment of a program on libpq that reaches `dsn`, and there reads only, unless `write`.

    Of `inherited` no variable of ours remains, and of libpq's only what every command takes from there.
    """
    from orchestrator.variables import VARIABLES

    ours = {name for variable in VARIABLES for name in (variable.name, f"{variable.name}_FILE")}
    kept = {name: value for name, value in inherited.items() if name not in ours and not name.startswith("PG")}
    found = {"PGAPPNAME": "orchestrator studio", **dsn.libpq_environment(inherited)}
    if not write:
        # Last, so that it counts more than what the DSN's own options say.
        found["PGOPTIONS"] = f"{found.get('PGOPTIONS', '')} {_READ_ONLY}".strip()
    return {**kept, **found}


def studio_arguments(environment: Mapping[str, str], *, write: bool) -> list[str]:
    """The command line of harlequin: no password stands in it, and no profile of the person's can change the place."""
    arguments = ["--profile", "None", "--adapter", "postgres", *([] if write else ["--read-only"])]
    for variable, option in _ARGUMENTS:
        if variable in environment:
            arguments += [option, environment[variable]]
    return [sys.executable, "-P", "-m", "harlequin", *arguments]


def _studio(options: argparse.Namespace) -> int:
    from importlib.util import find_spec

    from orchestrator.errors import EXIT_CONFIG, OrchestratorError

    for module in ("harlequin", "harlequin_postgres"):
        if find_spec(module) is None:
            say("studio needs harlequin: pip install 'orchestrator[dev]'", file=sys.stderr)
            return EXIT_CONFIG
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        say("studio needs a terminal; in a container: docker compose exec -it …", file=sys.stderr)
        return EXIT_CONFIG
    try:
        settings = load(options)
    except OrchestratorError as error:
        return failed_early(error)
    assert settings.database is not None  # noqa: S101 load() demands it
    environment = studio_environment(os.environ, settings.database, write=options.write)
    arguments = studio_arguments(environment, write=options.write)
    streams.flush(None)
    # Harlequin takes this process's place: its signals and its terminal are then its own.
    return os.execve(arguments[0], arguments, environment)  # noqa: S606 no shell is meant
