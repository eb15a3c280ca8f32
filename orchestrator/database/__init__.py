"""Connections to Postgres: connecting with retries, sessions, the migration lock, extensions, the monitor.

Nothing here knows of migrations or jobs.
"""
