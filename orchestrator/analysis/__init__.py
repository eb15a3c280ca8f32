"""What a statement will do to a live database, found without running it."""
