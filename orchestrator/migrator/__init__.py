"""Drizzle folders and ledgers: reading both, and deciding what is pending, edited or out of order.

`resolve.py` decides, and is pure; `state.py` reads what it needs.
"""
