"""Our own migrations are ASCII: a database in LATIN1 has no room for anything else."""

from orchestrator.migrator.sources import service_source


def test_the_services_own_migrations_are_ascii():
    folder = service_source().folder
    for path in folder.path.glob("*.sql"):
        assert path.read_bytes().isascii(), path.name
