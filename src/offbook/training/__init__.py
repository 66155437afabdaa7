"""The training loop, and what is decided before it."""
