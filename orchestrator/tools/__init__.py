"""What a person runs beside a start: no start ever loads it."""
