"""Everything that speaks to Postgres: connect, lock, extensions, monitor, embedded."""
