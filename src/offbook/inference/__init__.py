"""Replies of a trained model."""
