"""A private Postgres server for a first run (`--embedded`) and for the tests: its files, its start and its end."""
