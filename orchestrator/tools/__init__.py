"""What a person runs beside a start: `verify`, `rehearse`, `generate`, `new`, `repair`. No start ever loads it."""
