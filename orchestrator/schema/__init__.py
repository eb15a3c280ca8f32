"""A database's schema as data: read from the catalogue, compared, and written as DDL, for `verify` and `generate`."""
