"""What can be set for a run, and how it is read."""
