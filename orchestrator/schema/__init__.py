"""A database's schema as data: read, compared, and written as DDL."""
