"""Files: how they are downloaded, checked, and written to disk."""
