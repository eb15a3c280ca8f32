"""Run what is pending: the only files that execute a migration."""
