"""How bytes arrive, are checked, and are written to disk."""
