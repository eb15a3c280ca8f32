"""The SQL of a migration, read with Postgres's own grammar: its statements, and what each needs of a transaction."""
