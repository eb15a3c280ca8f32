"""The start-up of a service, done right: wait for Postgres, apply Drizzle migrations, then serve."""

__version__ = "0.1.0"
