"""What the tests stand on, a file a job. `tests/conftest.py` loads those with fixtures for everybody."""
