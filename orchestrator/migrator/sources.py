"""Which folders there are to migrate from, and the ledger of each. Touches the file system."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from orchestrator.migrator.folder import Folder, read_folder
from orchestrator.migrator.ledger import LedgerTable
from orchestrator.migrator.records import SERVICE_SCHEMA

if TYPE_CHECKING:
    from orchestrator.settings import Settings


class Source(msgspec.Struct, frozen=True):
    """A folder and the ledger that it is kept in: the service's own, or the user's."""

    label: Literal["service", "user"]
    folder: Folder
    table: LedgerTable


def read_sources(settings: Settings) -> list[Source]:
    """The service's own folder, then the user's. Blocking. A broken image fails here, before it waits for anything.

    Raises:
        FolderError: a folder is not what Drizzle would accept.
    """
    service = service_source()
    ledger = msgspec.structs.replace(service.table, trusted_owners=settings.migration_trusted_owners)
    sources = [msgspec.structs.replace(service, table=ledger)]
    if settings.migrations_dir is not None:
        table = LedgerTable(settings.migrations_schema, settings.migrations_table, settings.migration_trusted_owners)
        sources.append(Source("user", read_folder(settings.migrations_dir), table))
    return sources


def service_source(folder: Path | None = None) -> Source:
    """The service's own migrations, from `folder` or from where the program keeps them. Blocking; errors as above."""
    return Source(
        "service", read_folder(folder or service_folder()), LedgerTable(SERVICE_SCHEMA, "__drizzle_migrations")
    )


def service_folder() -> Path:
    """Where the program's own migrations are: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"
