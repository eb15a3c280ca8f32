"""Backups of the database, and how one is tested and restored."""
