"""Backups with pg_dump, the test of a backup, and its restore: into a new database that is then swapped in."""
