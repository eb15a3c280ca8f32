"""The SQL of a migration, read with Postgres's own grammar."""
