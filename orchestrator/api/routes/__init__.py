"""The routes behind the gate, a file for each thing that they are about."""
