"""What a run directory holds, written and read."""
