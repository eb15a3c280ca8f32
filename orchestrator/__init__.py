"""The start-up of a service: it waits for Postgres, applies Drizzle migrations, and then serves."""

__version__ = "0.1.0"
