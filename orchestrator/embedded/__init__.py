"""A private Postgres for a first run and for the tests."""
