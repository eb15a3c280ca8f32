"""HTTP: health, the gate in front of everything else, and what stands behind it."""
