"""What is done to a database: read the folder, plan, apply, keep the ledger."""
