"""Bases and adapters: found, loaded, made and saved."""
