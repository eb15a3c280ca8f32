"""What a statement will do to a live database, found without running it: `plan` and `lint`.

`impact.py` decides the locks, rewrites, scans and builds of a statement; `lint_rules.py` judges them; `follow.py` keeps
what is known of the database (`catalog.py`) up to date from statement to statement.
"""
