"""Running what is pending: the only files that execute a migration.

`apply.py` goes through the pending files; `transactional.py` runs a file as one transaction, `stepwise.py` one that
cannot be; `recovery.py` and `losses.py` go on after a crash, `lock_retry.py` after a lock that was not granted.
"""
