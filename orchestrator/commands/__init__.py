"""The commands, one file for each: its options, and how its result is shown to a person or as JSON.

`runner.py` surrounds every command with settings, logs, signals and an exit code; `console.py` holds what is shown on a
terminal, `reading.py` the connection with which a command reads.
"""
