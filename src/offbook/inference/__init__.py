"""Replies of a trained model."""

MAX_STRENGTH = 1.5  # of an adapter, in a chat or an evaluation; beyond, replies fall apart
