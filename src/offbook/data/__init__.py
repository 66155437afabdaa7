"""What a row says."""
