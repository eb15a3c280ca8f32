"""The job server: handlers, a queue in Postgres, workers, schedules."""
