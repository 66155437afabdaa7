"""A trained model in the formats that other programs read, each compared with the original."""
