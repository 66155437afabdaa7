"""A run on one page: curves, scores and replies, in one HTML file."""
