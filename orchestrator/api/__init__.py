"""HTTP: `/health`, the gate that stays shut until READY, access control, limits, event streams, metrics, OpenAPI."""
