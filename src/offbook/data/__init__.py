"""Data files: their rows, and rows as conversations."""
